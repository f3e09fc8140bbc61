"""What each arm does in each step of the sampling loop: the predictions that it needs, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from aig import adapters, schedules
from aig.arm import Arm
from aig.grid import Grid
from aig.models.protocol import Model, Sampling


class Call(NamedTuple):
    """One prediction: of a state, through an adapter (`BASE` is none), at a guidance scale."""

    state: int
    route: str
    guidance: float


class Step(NamedTuple):
    """What an arm does in one step: (1 - w) low + w high, or one of the two for each image."""

    low: str
    high: str
    w: float
    guidance: float
    heads: tuple[bool, ...] | None = None
    """By image whether its coin took `high`; None without a coin."""

    @property
    def predictions(self) -> int:
        return 2 if self.heads is None and self.w not in (0, 1) else 1

    @property
    def without_base(self) -> float:
        """The share of the images for which the arm makes no prediction of the base."""
        if self.low != adapters.BASE or self.w == 1:
            return 1
        return 0 if self.heads is None else sum(self.heads) / len(self.heads)

    def calls(self, state: int, count: int) -> Iterator[tuple[Call, list[int]]]:
        """The predictions that the step needs, and of which of the `count` rows."""
        low, high = (Call(state, route, self.guidance) for route in (self.low, self.high))
        heads = (False,) * count if self.w == 0 else (True,) * count if self.w == 1 else self.heads
        for call, side in ((low, False), (high, True)):
            rows = [row for row in range(count) if heads is None or heads[row] == side]
            if rows:
                yield call, rows

    def mixed(self, predictions: Mapping[Call, Tensor], state: int) -> Tensor:
        low, high = (Call(state, route, self.guidance) for route in (self.low, self.high))
        if self.w in (0, 1):
            return predictions[high if self.w else low]
        if self.heads is None:
            return schedules.mix(predictions[low], predictions[high], self.w)
        heads = torch.tensor(self.heads, device=predictions[low].device)
        return torch.where(heads.view(-1, 1, 1, 1), predictions[high], predictions[low])


class Plan:
    """An arm's weights and guidance by step, and the names that its rows are routed by."""

    def __init__(self, model: Model, grid: Grid, arm: Arm, sampling: Sampling) -> None:
        self.arm, self.denoiser = arm, model.denoiser
        self.weights = grid.weights(arm.curve) if arm.adapter is not None else [0.0] * len(grid)
        scale = sampling.guidance if arm.guidance is None else arm.guidance
        begin, end = arm.interval
        self.guidance = [scale if begin <= i / len(grid) < end else 1.0 for i in range(len(grid))]
        self.high, self.low = self._route(arm.adapter, arm.lora_scale), self._route(arm.against, 1.0)
        if arm.space == "weight" and adapters.is_copy(model.denoiser, arm.adapter or ""):
            raise ValueError(
                f"arm {arm.name!r}: adapter {arm.adapter!r} is a full copy of the denoiser, and space = 'weight' "
                "needs a LoRA, whose scale costs nothing to change: use space = 'prediction'"
            )

    def _route(self, adapter: str | None, scale: float) -> str:
        return adapters.BASE if adapter is None else adapters.scaled(self.denoiser, adapter, scale)

    def step(self, i: int, coin: Callable[[int], Tensor] | None) -> Step:
        w, guidance = self.weights[i], self.guidance[i]
        if self.arm.space == "weight":
            route = self._route(self.arm.adapter, self.arm.lora_scale * w)
            return _plain(route, guidance)
        if self.high == self.low or w == 0:
            return _plain(self.low, guidance)
        if w == 1:
            return _plain(self.high, guidance)
        if not self.arm.curve.coin:
            return Step(self.low, self.high, w, guidance)
        if coin is None:
            raise ValueError(f"arm {self.arm.name!r}: schedule {self.arm.schedule!r} needs coin, a number per image")
        heads = tuple((coin(i) < w).tolist())
        if len(set(heads)) == 1:
            return _plain(self.high if heads[0] else self.low, guidance)
        return Step(self.low, self.high, w, guidance, heads)


def _plain(route: str, guidance: float) -> Step:
    """One model alone: arms that come to it in different ways share it."""
    base = route == adapters.BASE
    return Step(route if base else "", "" if base else route, 0.0 if base else 1.0, guidance)
