"""What is measured of an image before it is rounded to 8 bits."""

from __future__ import annotations

from torch import Tensor

PIXEL_STD = "pixel_std"


def pixel_std(images: Tensor) -> Tensor:
    """The largest standard deviation over the pixels of any colour (B,) of images (B, 3, H, W); NaN if a pixel is not
    finite."""
    return images.float().flatten(2).std(dim=2, correction=0).amax(dim=1)
