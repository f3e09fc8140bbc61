"""A user's own reward, `package.module:callable`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from aig.rewards.base import LibraryReward
from aig.rewards.spec import RewardSpec
from aig.vision import Source, Views


class FunctionReward(LibraryReward):
    """A user's own callable `(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`; its attributes `range`,
    `higher_is_better`, `differentiable`, `trainable` and `reads_prompts` are taken over where set."""

    def __init__(self, function: Callable[[Tensor, list[str]], Tensor], name: str) -> None:
        self.function, self.name = function, name
        self.range: tuple[float, float] = getattr(function, "range", (0.0, 1.0))
        for attribute in ("higher_is_better", "differentiable", "trainable", "reads_prompts"):
            setattr(self, attribute, getattr(function, attribute, True))

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        scores = self.function(views.floats, prompts)
        if not isinstance(scores, Tensor) or scores.shape != (len(prompts),):
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"reward {self.name!r} must return a tensor ({len(prompts)},), one score an image, not {found}"
            )
        return scores


def sources(spec: RewardSpec) -> list[Source]:
    """Nothing: what a user's own code reads is its own business."""
    return []


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> FunctionReward:
    """The callable behind a name; ValueError where it cannot be imported. It chooses its own device and dtype."""
    module, _, attribute = spec.name.partition(":")
    try:
        return FunctionReward(getattr(import_module(module), attribute), spec.column)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {spec.name!r} cannot be imported ({error}); it must read package.module:callable"
        ) from None
