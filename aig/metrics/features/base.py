"""What every extractor is: a frozen network with its own way of seeing an image, checked inputs and checked outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aig.vision import Preprocess, Views

TOLERANCE = 1e-3  # how far outside [0, 1] a float may lie by rounding


class Features:
    """A frozen extractor; it says what it makes of an image before its network sees it."""

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
        """How an image of another size comes to that one, in words."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, d) float32 of images (B, 3, H, W), floats in [0, 1] of any size.

        Raises ValueError for images that are no such floats, that have NaN or lie out of range, and for an extractor
        that does not give (B, d).
        """
        self._check(images)
        return self.extract(Views(images))

    @torch.no_grad()
    def extract(self, views: Views) -> Tensor:
        """Features (B, d) float32 of checked images; images of 8 bits go through the model's own processor."""
        features = self._extract(views)
        wanted = (len(views.images), self.dimension)
        if not isinstance(features, Tensor) or tuple(features.shape) != wanted:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features {self.name!r} must be a tensor {wanted}, one row an image, not {found}")
        return features.float()

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"features {self.name!r} take images (B, 3, H, W), got {found}")
        if not images.is_floating_point():
            raise ValueError(
                f"features {self.name!r} take images as floats in [0, 1], got {images.dtype}; give images / 255, or "
                "8-bit images to aig.metrics.features.report"
            )
        low, high = images.detach().flatten(1).aminmax(dim=1)  # (B,) each; NaN passes through
        bad = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))
        if bad.any():
            raise ValueError(
                f"features {self.name!r} take images in [0, 1]: rows {bad.nonzero().flatten().tolist()} have NaN or "
                "lie outside; decode gives [0, 1], a model's own [-1, 1] needs images / 2 + 0.5"
            )


def in_words(preprocess: Preprocess) -> str:
    """How a preprocessing brings an image to its size, for `Features.resize`."""
    height, width = preprocess.size
    fit = {
        "crop": f"shortest side to {preprocess.shortest or max(preprocess.size)}, centre crop to {height}x{width}",
        "pad": f"longest side into {height}x{width}, black around",
        "stretch": f"to {height}x{width}",
    }
    return f"{preprocess.interpolation}, antialiased, {fit[preprocess.fit]}"


def report(extractor: Features, images: Tensor) -> Tensor:
    """Features (B, d) float32 of images (B, 3, H, W) uint8, as they were saved: through the model's own image processor
    where it has one.

    Raises ValueError for what is no batch of 8-bit images.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"features {extractor.name!r}: a report takes images (B, 3, H, W) uint8, as saved, got {found}; "
            "aig.to_uint8 rounds floats"
        )
    return extractor.extract(Views(images))
