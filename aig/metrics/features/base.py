"""The extractor: a frozen network with its own preprocessing, checked inputs and checked outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aig.vision import Preprocess, Views
from aig.vision.inputs import check_images, check_saved


class Features:
    """A frozen extractor: its name, its dimension and its preprocessing."""

    def __init__(
        self,
        extract: Callable[[Views], Tensor],
        name: str,
        dimension: int,
        input_size: tuple[int, int] | None,
        resize: str,
    ) -> None:
        self._extract = extract
        self.name = name
        self.dimension = dimension
        """d of the features (B, d)."""
        self.input_size = input_size
        """Height and width in pixels that the network takes; None: any."""
        self.resize = resize
        """The resize to that size, in words."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, d) float32 of images (B, 3, H, W), floats in [0, 1] of any size.

        Raises ValueError for other images, NaN and values out of range, and for an extractor that does not return (B,
        d).
        """
        check_images(f"features {self.name!r}", images, "aig.metrics.features.report")
        return self.extract(Views(images))

    @torch.no_grad()
    def extract(self, views: Views) -> Tensor:
        """Features (B, d) float32 of checked images; 8-bit images go through the model's own processor."""
        features = self._extract(views)
        expected = (len(views.images), self.dimension)
        if not isinstance(features, Tensor) or tuple(features.shape) != expected:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features {self.name!r} must be a tensor {expected}, one row per image, not {got}")
        return features.float()


def in_words(preprocess: Preprocess) -> str:
    """A preprocessing's resize in words, for `Features.resize`."""
    height, width = preprocess.size
    fit = {
        "crop": f"shortest side to {preprocess.shortest or max(preprocess.size)}, centre crop to {height}x{width}",
        "pad": f"longest side into {height}x{width}, black around",
        "stretch": f"to {height}x{width}",
    }
    return f"{preprocess.interpolation}, antialiased, {fit[preprocess.fit]}"


def report(extractor: Features, images: Tensor) -> Tensor:
    """Features (B, d) float32 of images (B, 3, H, W) uint8, as they were saved, through the model's own processor if
    any.

    Raises ValueError for anything but a batch of 8-bit images.

    Examples:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> aig.metrics.features.report(aig.metrics.features.load("world"), images).shape
        torch.Size([2, 64])
    """
    check_saved(f"features {extractor.name!r}", images)
    return extractor.extract(Views(images))
