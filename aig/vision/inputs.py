"""The checks of images that rewards and feature extractors share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-3  # how far outside [0, 1] a float may lie by rounding; the resize clamps it


class InputError(ValueError):
    """Images or prompts that cannot be scored; `rows` are their indices in the batch.

    Examples:
        >>> try:
        ...     aig.rewards.load("fragile")(torch.full((1, 3, 32, 32), torch.nan), ["a red star"])
        ... except aig.rewards.InputError as error:
        ...     print(error.rows)
        (0,)
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


def check_images(user: str, images: Any, report: str) -> None:
    """InputError unless these are images (B, 3, H, W), floats in [0, 1]; `report` names the function for 8-bit ones."""
    shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(f"{user}: give images (B, 3, H, W) as a tensor, got {shape}")
    if not images.is_floating_point():
        raise InputError(
            f"{user}: give images as floats in [0, 1], got {images.dtype}: images / 255, or 8-bit images to {report}"
        )
    low, high = images.detach().flatten(1).aminmax(dim=1)  # (B,) each; NaN passes through
    bad = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        lows, highs = (", ".join(f"{end[row]:.4g}" for row in rows[:4]) for end in (low, high))
        raise InputError(
            f"{user}: give images in [0, 1]: rows {rows} have NaN or lie outside (lowest {lows}; highest {highs}); "
            "decode gives [0, 1], a model's own [-1, 1] needs images / 2 + 0.5",
            rows,
        )


def check_saved(user: str, images: Any) -> None:
    """InputError unless these are 8-bit images (B, 3, H, W), as they were saved."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        kind = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"{user}: a report takes images (B, 3, H, W) uint8, as saved, got {kind}; aig.to_uint8 rounds floats"
        )
