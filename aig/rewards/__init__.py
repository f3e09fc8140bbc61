"""Rewards: `reward(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`; `load` finds one by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from aig.rewards.world import WorldReward, accuracies

__all__ = ["NAMES", "FunctionReward", "Reward", "WorldReward", "accuracies", "check_trainable", "load"]


class Reward(Protocol):
    """A score of images for prompts; higher is better unless it says otherwise."""

    name: str
    range: tuple[float, float]
    """The range that scores usually lie in, for axes and checks; not a bound."""
    higher_is_better: bool
    differentiable: bool
    trainable: bool
    """False for what exists to judge: gold is never tuned to."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor: ...


class FunctionReward:
    """A user's own callable `(images, prompts) -> (B,)`; its attributes `range`, `higher_is_better`, ... are taken over
    where set."""

    def __init__(self, function: Callable[[Tensor, list[str]], Tensor], name: str) -> None:
        self.function, self.name = function, name
        self.range: tuple[float, float] = getattr(function, "range", (0.0, 1.0))
        self.higher_is_better: bool = getattr(function, "higher_is_better", True)
        self.differentiable: bool = getattr(function, "differentiable", True)
        self.trainable: bool = getattr(function, "trainable", True)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.function(images, prompts)


NAMES = ("fragile", "robust", "gold", "gold_a", "gold_b")


def load(spec: str | dict[str, Any], device: str | torch.device = "cpu") -> Reward:
    """A reward by name: the embedded world's `fragile` and `robust` (to tune to), `gold`, `gold_a`, `gold_b` (to judge
    by),
    or `package.module:callable`, your own. A mapping `{"name": ...}` is the same.

    Raises ValueError that names what was asked for, the nearest known name and the fix.
    """
    name = spec.get("name", "") if isinstance(spec, dict) else spec
    if isinstance(spec, dict) and set(spec) != {"name"}:
        raise ValueError(f"reward {spec!r}: the embedded rewards and your own take the key 'name' alone")
    if name in NAMES:
        return WorldReward(name, device)
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            return FunctionReward(getattr(import_module(module), attribute), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"reward {name!r} cannot be imported ({error}); it must read package.module:callable"
            ) from None
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"reward {name!r} is not known{hint} (known: {', '.join(NAMES)}, or package.module:callable for your own)"
    )


def check_trainable(reward: Reward) -> None:
    """ValueError, with the reason, for a reward that a model must not or cannot be tuned to."""
    if not reward.trainable:
        raise ValueError(
            f"reward {reward.name!r} exists to judge and is never tuned to; train on another, as fragile or robust"
        )
    if not reward.differentiable:
        raise ValueError(
            f"reward {reward.name!r} is not differentiable: it can score images, but DRaFT cannot train on it"
        )
