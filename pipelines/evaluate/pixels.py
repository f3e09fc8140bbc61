"""What is measured of an image where it is drawn, before it is rounded to 8 bits."""

from __future__ import annotations

from torch import Tensor

PIXEL_STD = "pixel_std"


def pixel_std(images: Tensor) -> Tensor:
    """Of images (B, 3, H, W): the largest standard deviation of a colour over the pixels (B,), NaN where one is not
    finite."""
    return images.float().flatten(2).std(dim=2, correction=0).amax(dim=1)
