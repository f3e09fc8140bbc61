"""The distance of an arm's trajectory from the base model's: the path KL in nats, and the eps_mse path length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aig.grid import Grid, State

# (step, arm index, the arm's state before the step, mixed prediction, base prediction or None)
Observer = Callable[[int, int, State, Tensor, "Tensor | None"], None]


class Transitions:
    """KL of an arm's transitions to the base's, in nats, step by step along the arm's own trajectory.

    By the chain rule, KL(p_arm(x_T..x_k) || p_base(x_T..x_k)) = E_arm sum_i ||mu_arm - mu_base||^2 / (2 sigma_i^2),
    with both means at the arm's own x_T..x_i. A multistep scheduler's mean also reads either model's earlier
    predictions at those same x, so both memories are kept here. Differentiable wherever gradients are enabled. Training
    and evaluation measure their path KL with this class alone.
    """

    def __init__(self, grid: Grid, tuned: Sequence[Tensor] = (), base: Sequence[Tensor] = ()) -> None:
        """`tuned` and `base`: the scheduler's memory of each model's earlier steps, the latest last."""
        self.grid = grid
        self._tuned, self._base = tuple(tuned), tuple(base)

    def __getitem__(self, rows: slice | Sequence[int]) -> Transitions:
        """The transitions of some of the images."""
        return Transitions(self.grid, [m[rows] for m in self._tuned], [m[rows] for m in self._base])

    def observe(self, i: int, a: int, state: State, tuned: Tensor, base: Tensor | None) -> None:
        """Remember a step before the counted ones: an observer of `advance` with one arm, `with_base`."""
        assert base is not None
        self.step(i, state.x, tuned, base)

    def step(self, i: int, x_t: Tensor, tuned: Tensor, base: Tensor) -> Tensor:
        """KL (B,) of step i's two Gaussians from the predictions (B, C, H, W) at x_t; call it for each step in turn.

        0 if the step adds no noise: both transitions are points, and no density ratio exists.
        """
        # In float32: if sigma is small, means one bit apart in bf16 are a sigma apart.
        x, zero = wide(x_t), torch.zeros_like(wide(x_t))
        arm = self.grid.move(i, wide(tuned), State(x, self._tuned), zero)
        other = self.grid.move(i, wide(base), State(x, self._base), zero)
        self._tuned, self._base = arm.memory, other.memory
        sigma = self.grid.deviation(i)
        if not sigma > 0:
            return x.new_zeros(len(x))
        return (arm.x - other.x).square().flatten(1).sum(dim=1) / (2 * sigma**2)


class PathMeter:
    """Measures each arm's distances to the base along its own trajectory: an observer of `advance`, `with_base`.

    An image's path KL is the sum of its `Transitions`, in nats; its mean over images estimates the KL without bias. A
    step without noise, such as the last of a schedule that ends at sigma = 0, is left out. The path length is the mean
    over all steps of ||eps_arm - eps_base||^2 / numel: no KL, and the same for any noise.
    """

    def __init__(self, grid: Grid, arms: int, images: int, device: torch.device) -> None:
        self.grid = grid
        self.length = torch.zeros(arms, images, device=device)
        """eps_mse path lengths (arms, images), >= 0."""
        self.kl = torch.zeros(arms, images, device=device) if grid.has_path_kl else None
        """Path KL in nats (arms, images), >= 0; None if sampling is deterministic, since no KL exists."""
        self._transitions = [Transitions(grid) for _ in range(arms)]

    @torch.no_grad()
    def __call__(self, i: int, a: int, state: State, mixed: Tensor, base: Tensor | None) -> None:
        if base is None:
            raise ValueError("a path needs the base's prediction at every step: advance with_base=True")
        square = (mixed.float() - base.float()).square().flatten(1)
        self.length[a] += self.grid.eps_scale(i) * square.mean(dim=1) / len(self.grid)
        if self.kl is not None:
            self.kl[a] += self._transitions[a].step(i, state.x, mixed, base)


def wide(values: Tensor) -> Tensor:
    """The values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
