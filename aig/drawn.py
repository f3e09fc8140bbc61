"""KL penalties at a random step of each image's trajectory, which see the steps that the published KL does not.

The published KL is that of the last K steps. What an image shows, and with it diversity, is decided earlier, in steps
through which DRaFT sends no gradient. A penalty there needs only the state: the tuned prediction at it, with gradient,
and the base's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aig import adapters
from aig.models.protocol import Condition, Model
from aig.objective import DraftConfig, steps_of
from aig.path import Observer, Transitions, wide
from aig.sampler import Arm, Grid, Noise, State

Rows = slice | list[int]


def eps_mse(grid: Grid, i: int, tuned: Tensor, base: Tensor) -> Tensor:
    """||eps - eps_base||^2 / numel (B,) of step i's predictions (B, C, H, W); of velocities for flow matching."""
    # Squares of bf16 differences would lose most of their bits.
    return wide(tuned - base).square().flatten(1).mean(dim=1) * grid.eps_scale(i)


class DrawnStates:
    """The state of each image's trajectory at a step drawn uniformly from those of `kl_steps`, and the KL term there.

    eps_mse: the term is `eps_mse` at the drawn step. Its mean over draws is the mean over the steps; over all steps it
    is `PathMeter.length`. path: the term is the drawn transition's nats times the number of steps, and its mean over
    draws is the sum of all their nats. The state is a constant: the gradient is that of the prediction alone.

    The draw depends on the image's own seed, never on the batch. With lv > 1 there are as many draws per image.
    """

    def __init__(
        self, model: Model, condition: Condition, arm: Arm, config: DraftConfig, grid: Grid, noise: Noise
    ) -> None:
        self.model, self.condition, self.arm, self.config, self.grid = model, condition, arm, config, grid
        self.steps = steps_of(config, len(grid))
        self.at = [noise.choose(f"kl {n}", self.steps) for n in range(config.lv)]
        """Each draw's step of each image."""
        self._x: dict[tuple[int, int], Tensor] = {}  # by draw and image

    def observe(self, rows: Rows) -> Observer:
        """An observer of `advance` for one arm and these images; of the states it keeps the drawn ones alone."""
        images = list(range(len(self.condition)))[rows] if isinstance(rows, slice) else rows

        def keep(i: int, a: int, state: State, tuned: Tensor, base: Tensor | None) -> None:
            for n, at in enumerate(self.at):
                for row, image in enumerate(images):
                    if at[image] == i:
                        self._x[n, image] = state.x[row].detach().clone()  # a view would hold the whole batch

        return keep

    def kl(self, images: list[int], n: int = 0) -> Tensor:
        """The KL terms (B,) of some of the images in draw n, from one forward with gradient and one without."""
        grid, arm, denoiser = self.grid, self.arm, self.model.denoiser
        at = [self.at[n][image] for image in images]
        x = torch.stack([self._x[n, image] for image in images])  # (B, C, H, W)
        rows = [(i, slice(row, row + 1)) for row, i in enumerate(at)]
        scaled = torch.cat([grid.scaled(i, x[row]) for i, row in rows])

        def predict(route: str) -> Tensor:
            guidance = self.config.sampling.guidance
            return self.model.predict(scaled, grid.times[at], self.condition[images], [route] * len(at), guidance)

        assert arm.adapter is not None
        tuned = predict(adapters.scaled(denoiser, arm.adapter, arm.lora_scale))
        with torch.no_grad():
            base = predict(adapters.BASE)
        if self.config.kl == "path":
            nats = [Transitions(grid).step(i, x[row], tuned[row], base[row]) for i, row in rows]
            return torch.cat(nats) * len(self.steps)
        return torch.cat([eps_mse(grid, i, tuned[row], base[row]) for i, row in rows])
