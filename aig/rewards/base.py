"""The protocol of rewards and the base class of the library's own: check the inputs, then score the images' views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aig.vision import Views
from aig.vision.inputs import InputError, check_images, check_saved


class Reward(Protocol):
    """A score (B,) of images (B, 3, H, W) in [0, 1] for B prompts."""

    name: str
    range: tuple[float, float]
    """The usual range of scores, for axes and checks; not a bound."""
    higher_is_better: bool
    differentiable: bool
    trainable: bool
    """False for a judge, such as gold, which is never tuned to."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor: ...


class LibraryReward:
    """A reward of this library: a subclass's `score` computes, `__call__` checks the inputs first.

    `checkpoint()` makes it hold less for the backward pass: it recomputes its image tower's blocks, or all of itself if
    it has no tower. `round_through()` makes it see images as they would be saved.

    Examples:
        >>> class Brightness(aig.rewards.LibraryReward):
        ...     name, range = "brightness", (0.0, 1.0)
        ...     def score(self, views, prompts):
        ...         return views.floats.mean(dim=(1, 2, 3))
        >>> Brightness()(torch.ones(1, 3, 8, 8), ["a red star"]).item()
        1.0
    """

    name: str
    range: tuple[float, float]
    higher_is_better = True
    differentiable = True
    trainable = True
    reads_prompts = True
    """False for a reward of the image alone; its prompts may be empty."""
    _recompute = False
    _rounding = False

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W), floats in [0, 1], for B prompts; the same under autocast.

        Raises InputError (a ValueError) for other images, NaN and values out of range, and for empty prompts.
        """
        self.check(images)
        return self.checked(Views(images, self._rounding), prompts)

    def check(self, images: Tensor) -> None:
        """InputError unless these are images (B, 3, H, W), floats in [0, 1]."""
        check_images(f"reward {self.name!r}", images, "aig.rewards.report")

    def checked(self, views: Views, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of checked images after checking the prompts; outside autocast, which would change them."""
        check_prompts(self.name, prompts, len(views.images), self.reads_prompts)
        texts = list(prompts)
        with torch.autocast(views.images.device.type, enabled=False):
            if self._recompute and torch.is_grad_enabled():
                return checkpoint(self.score, views, texts, use_reentrant=False)  # type: ignore[return-value]
            return self.score(views, texts)

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        """Scores (B,) of checked images and prompts."""
        raise NotImplementedError

    def checkpoint(self) -> None:
        self._recompute = True

    def round_through(self) -> None:
        """Round images to 8 bits, as saving does, and after each pass of a resize if reports resize with PIL.

        Scores then equal those of `report` within a hundredth of their spread in the worst image. Gradients ignore the
        rounding (straight-through), since the rounded score is flat.
        """
        self._rounding = True


def report(reward: Any, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores (B,) of images (B, 3, H, W) uint8, as they were saved, without gradient.

    A pretrained reward preprocesses as its authors do; any other scores `reward(images / 255, prompts)`. Raises
    InputError for anything but a batch of 8-bit images, and for empty prompts.

    Examples:
        >>> images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        >>> reward = aig.rewards.load("fragile")
        >>> torch.equal(aig.rewards.report(reward, images, ["a red star"]), reward(images / 255, ["a red star"]))
        True
    """
    return report_all({"": reward}, images, prompts)[""]


@torch.no_grad()
def report_all(rewards: dict[str, Any], images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """`report` for several rewards by name, which share preprocessing and image embeddings.

    Examples:
        >>> rewards = {name: aig.rewards.load(name) for name in ("gold_a", "gold_b")}
        >>> list(aig.rewards.report_all(rewards, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a red star"]))
        ['gold_a', 'gold_b']
    """
    check_saved("rewards", images)
    views = Views(images)
    return {
        name: reward.checked(views, prompts)
        if isinstance(reward, LibraryReward)
        else reward(views.floats, list(prompts))
        for name, reward in rewards.items()
    }


def check_prompts(name: str, prompts: Sequence[str], count: int, needed: bool = True) -> None:
    """InputError unless there are `count` prompts, none of them empty if they are needed."""
    if isinstance(prompts, str) or len(prompts) != count:
        got = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise InputError(f"reward {name!r} takes one prompt per image: {count} images, {got}; give a list of {count}")
    empty = [row for row, prompt in enumerate(prompts) if not isinstance(prompt, str) or not prompt.strip()]
    if needed and empty:
        raise InputError(f"reward {name!r}: the prompts of rows {empty} are empty; give one text per image", empty)
