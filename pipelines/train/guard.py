"""Guard rails of a training worker: it detects exploding steps and keeps the adapter that a stop goes back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor

from aig.adapters import sharding
from pipelines.config import Train
from pipelines.study import limits
from pipelines.study.limits import Stop

WINDOW = 50  # steps that define what is usual
LEAST = 10  # with fewer, nothing is unusual yet


class Explosions:
    """Detects steps far beyond what was usual over the last `WINDOW` steps that did not explode."""

    def __init__(self, factor: float | None, clip: float, usual: Iterable[Sequence[float]] = ()) -> None:
        self.factor, self.clip = factor, clip
        self.usual: deque[tuple[float, float]] = deque(((loss, norm) for loss, norm in usual), WINDOW)

    def check(self, loss: float, norm: float) -> str | None:
        """What exploded in a step of this loss and gradient norm, in words; if nothing, None, and the step is usual.

        The norm is compared with its median, the loss's rise over its median with the median absolute deviation. To let
        a training at rest move again, a norm below the clip is no explosion, and the deviation is taken as at least a
        thousandth of the median.
        """
        if self.factor is not None and len(self.usual) >= LEAST:
            losses, norms = zip(*self.usual, strict=True)
            middle, size = median(losses), median(norms)
            spread = max(median(abs(each - middle) for each in losses), abs(middle) / 1000)
            last = f"of the last {len(self.usual)} steps"
            if norm > self.clip and 0 < self.factor * size < norm:
                return f"a gradient of norm {norm:.3g}, {norm / size:.3g} times the median {last}"
            if 0 < self.factor * spread < loss - middle:
                times = (loss - middle) / spread
                return f"a loss of {loss:.4g}, {times:.3g} usual deviations over the median {last}, {middle:.4g}"
        self.usual.append((loss, norm))
        return None

    def state(self) -> list[list[float]]:
        """The constructor's `usual`, for a checkpoint."""
        return [list(each) for each in self.usual]


class Guard:
    """Watches one training by the rules of `pipelines.study.limits`, in every worker.

    `tensors`: what the adapter is saved from, the parameters or their moving averages.
    """

    def __init__(self, settings: Train, tensors: Sequence[Tensor]) -> None:
        self.settings, self.tensors = settings, tensors
        self.explosions = Explosions(settings.explosion, settings.clip)
        self.stop: Stop | None = None
        self.held: dict[str, Any] | None = None

    def hold(self, step: int) -> None:
        """Keep a copy of the whole adapter: it is what remains if a later validation stops the training."""
        if self.settings.limits:
            weights = [sharding.full(tensor.detach()).to("cpu", copy=True) for tensor in self.tensors]
            self.held = {"step": step, "weights": weights}

    def judge(self, step: int, rows: Sequence[Mapping[str, Any]] | None, world: int) -> None:
        """Hold this step's adapter if its validation is within every limit train.stop_*, else decide whether to stop.

        Every worker has to call it; the first one has the validations, `rows`, and decides.
        """
        if not self.settings.limits:
            return
        verdict = limits.judge(self.settings, rows) if rows is not None else None
        if world > 1:
            verdict = broadcast_from_rank_zero(verdict)
        assert verdict is not None
        if verdict.within:
            self.hold(step)
        self.stop = verdict.stop

    def put_back(self) -> int:
        """Make the held adapter the current one; returns its step."""
        assert self.held is not None
        with torch.no_grad():
            for tensor, held in zip(self.tensors, self.held["weights"], strict=True):
                tensor.copy_(sharding.like(held, tensor))
        return self.held["step"]

    def state(self) -> dict[str, Any]:
        """The guard's part of a checkpoint."""
        stop = None if self.stop is None else asdict(self.stop)
        return {"usual": self.explosions.state(), "held": self.held, "stop": stop}

    def restore(self, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
        """Go on from a checkpoint's state and the curve; False if limits are set and the curve's base is gone."""
        held, stop = state["held"], state["stop"]
        if self.settings.limits and (held is None or not rows or rows[0]["step"] != 0):
            return False
        self.explosions = Explosions(self.settings.explosion, self.settings.clip, state["usual"])
        self.held, self.stop = held, stop and Stop(**stop)
        return True
