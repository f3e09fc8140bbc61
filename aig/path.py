"""How far an arm's trajectory goes from the base model's: the path KL in nats, and the eps_mse path length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aig.grid import Grid, State

# (step, arm index, the arm's state before the step, mixed prediction, base prediction or None)
Observer = Callable[[int, int, State, Tensor, "Tensor | None"], None]


class PathMeter:
    """Adds up what separates each arm from the base along the arm's own trajectory; an observer of `advance` from step
    0 on, `with_base`.

    The path KL of an arm is that of its trajectories to the base's, KL(p_arm(x_T..x_k) || p_base(x_T..x_k)) =
    E_arm sum_i ||mu_arm - mu_base||^2 / (2 sigma_i^2) by the chain rule, with both means at the arm's own x_t. An
    image's value is the sum along its trajectory, in nats; its mean over images estimates the KL without bias. x_k is
    the last state that got noise: a step without noise, as the last one of a schedule that ends at sigma = 0, has no
    density ratio and is left out.

    The path length is the mean over all steps of ||eps_arm - eps_base||^2 / numel: no KL, and the same for any noise.
    """

    def __init__(self, grid: Grid, arms: int, images: int, device: torch.device) -> None:
        self.grid = grid
        self.length = torch.zeros(arms, images, device=device)
        """eps_mse path lengths (arms, images), >= 0."""
        self.kl = torch.zeros(arms, images, device=device) if grid.has_path_kl else None
        """Path KL in nats (arms, images), >= 0; None where sampling is deterministic and no KL exists."""
        self._sigma = [grid.deviation(i) for i in range(len(grid))]
        # What a multistep scheduler would remember, had it followed the arm (and the base) on the arm's own x_t.
        self._memories: list[tuple[tuple[Tensor, ...], ...]] = [((), ())] * arms

    @torch.no_grad()
    def __call__(self, i: int, a: int, state: State, mixed: Tensor, base: Tensor | None) -> None:
        if base is None:
            raise ValueError("a path is measured against the base's prediction at every step: advance with_base=True")
        square = (mixed.float() - base.float()).square().flatten(1)
        self.length[a] += self.grid.eps_scale(i) * square.mean(dim=1) / len(self.grid)
        if self.kl is not None:
            self.kl[a] += self._step_kl(i, a, state.x, mixed, base)

    def _step_kl(self, i: int, a: int, x_t: Tensor, mixed: Tensor, base: Tensor) -> Tensor:  # (G,)
        # In float32, since means that bf16 holds apart by one bit are a sigma apart where sigma is small.
        x, zero = x_t.float(), torch.zeros_like(x_t, dtype=torch.float32)
        means = [
            self.grid.move(i, prediction.float(), State(x, memory), zero)
            for prediction, memory in zip((mixed, base), self._memories[a], strict=True)
        ]
        self._memories[a] = means[0].memory, means[1].memory
        if self._sigma[i] == 0:
            return torch.zeros(len(x), device=x.device)
        return (means[0].x - means[1].x).square().flatten(1).sum(dim=1) / (2 * self._sigma[i] ** 2)
