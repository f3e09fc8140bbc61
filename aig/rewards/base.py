"""What every reward is and every library reward does: check its inputs, then score the images' views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aig.vision import Views

TOLERANCE = 1e-3  # how far outside [0, 1] a float may lie by rounding; the resize clamps it


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


class InputError(ValueError):
    """Images or prompts that cannot be scored; `rows` are their places in the batch."""

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class LibraryReward:
    """A reward of this library: `score` computes, `__call__` checks before it does.

    `checkpoint()` makes it hold less for the backward pass: its image tower's blocks are computed again, or, where it
    has no tower, the whole of it. `round_through()` makes it see images as they would be saved.
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
        """Scores (B,) of images (B, 3, H, W), floats in [0, 1], for as many prompts; the same under autocast.

        Raises InputError (a ValueError) for images that are no such floats, that are NaN or out of range, and for empty
        prompts.
        """
        check_images(self.name, images)
        return self.checked(Views(images, self._rounding), prompts)

    def checked(self, views: Views, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of checked images, with the prompts checked here; outside autocast, which would change them."""
        check_prompts(self.name, prompts, len(views.images), self.reads_prompts)
        texts = list(prompts)
        with torch.autocast(views.images.device.type, enabled=False):
            if self._recompute and torch.is_grad_enabled():
                return checkpoint(self.score, views, texts, use_reentrant=False)  # type: ignore[return-value]
            return self.score(views, texts)

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        """Scores (B,) of what was checked."""
        raise NotImplementedError

    def checkpoint(self) -> None:
        self._recompute = True

    def round_through(self) -> None:
        """Round images to 8 bits, as saving does, and after each pass of a resize where reports resize with PIL.

        Scores are then those of `report` but for a hundredth of their spread in the worst image; gradients pass the
        roundings as if they were not there, so they are not those of the rounded score, which is flat.
        """
        self._rounding = True


def report(reward: Any, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores (B,) of images (B, 3, H, W) uint8, as they were saved: preprocessed as the model's authors do where it
    is a pretrained one, else as `reward(images / 255, prompts)`. Without gradient.

    Raises InputError for what is no batch of 8-bit images, and for empty prompts.
    """
    return report_all({"": reward}, images, prompts)[""]


@torch.no_grad()
def report_all(rewards: dict[str, Any], images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """As `report`, for several rewards by name: preprocessing and image embeddings that they share are made once."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"reports score images (B, 3, H, W) uint8, as saved, got {found}; aig.to_uint8 rounds floats")
    views = Views(images)
    return {
        name: reward.checked(views, prompts)
        if isinstance(reward, LibraryReward)
        else reward(views.floats, list(prompts))
        for name, reward in rewards.items()
    }


def check_images(name: str, images: Tensor) -> None:
    """InputError unless these are images (B, 3, H, W), floats in [0, 1]."""
    if not isinstance(images, Tensor):
        raise InputError(f"reward {name!r} takes a tensor of images (B, 3, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise InputError(
            f"reward {name!r} takes images as floats in [0, 1], got {images.dtype}; give images / 255, or score 8-bit "
            "images with aig.rewards.report"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(f"reward {name!r} takes images (B, 3, H, W), got {tuple(images.shape)}")
    low, high = images.detach().flatten(1).aminmax(dim=1)  # (B,) each; NaN passes through
    bad = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        lows, highs = (
            ", ".join(f"{low[row]:.4g}" for row in rows[:4]),
            ", ".join(f"{high[row]:.4g}" for row in rows[:4]),
        )
        raise InputError(
            f"reward {name!r} takes images in [0, 1]: rows {rows} have NaN or lie outside (lowest {lows}; highest "
            f"{highs}); decode gives [0, 1], a model's own [-1, 1] needs images / 2 + 0.5",
            rows,
        )


def check_prompts(name: str, prompts: Sequence[str], count: int, needed: bool = True) -> None:
    """InputError unless there are `count` prompts, none of them empty where they are read."""
    if isinstance(prompts, str) or len(prompts) != count:
        found = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise InputError(f"reward {name!r} takes one prompt an image: {count} images, {found}; give a list of {count}")
    empty = [row for row, prompt in enumerate(prompts) if not isinstance(prompt, str) or not prompt.strip()]
    if needed and empty:
        raise InputError(f"reward {name!r}: the prompts of rows {empty} are empty; give a text an image", empty)
