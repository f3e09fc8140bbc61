"""A user's own reward, `package.module:callable`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aig.digests import imported
from aig.rewards.base import LibraryReward
from aig.rewards.spec import RewardSpec
from aig.vision import Source, Views


class FunctionReward(LibraryReward):
    """A user's own callable `(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`.

    Its attributes `range`, `higher_is_better`, `differentiable`, `trainable` and `reads_prompts` apply if set. Raises
    ValueError if it returns anything but a tensor (B,).

    Examples:
        >>> red = aig.rewards.FunctionReward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)), "red")
        >>> red(torch.ones(2, 3, 8, 8), ["a red star", "a red heart"]).tolist()
        [1.0, 1.0]
    """

    def __init__(self, function: Callable[[Tensor, list[str]], Tensor], name: str) -> None:
        self.function, self.name = function, name
        self.range: tuple[float, float] = getattr(function, "range", (0.0, 1.0))
        for attribute in ("higher_is_better", "differentiable", "trainable", "reads_prompts"):
            setattr(self, attribute, getattr(function, attribute, True))

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        scores = self.function(views.floats, prompts)
        if not isinstance(scores, Tensor) or scores.shape != (len(prompts),):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"reward {self.name!r} must return a tensor ({len(prompts)},), one score per image, not {got}"
            )
        return scores


def sources(spec: RewardSpec) -> list[Source]:
    """None: the files that a user's code reads are not known here."""
    return []


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> FunctionReward:
    """Import the callable; ValueError if that fails. It chooses its own device and dtype."""
    try:
        return FunctionReward(imported(spec.name), spec.column)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {spec.name!r} cannot be imported ({error}); it must read package.module:callable"
        ) from None
