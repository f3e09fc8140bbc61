"""Preprocessing of pretrained models: resize, crop or pad, normalize; differentiable, or as for a report.

Most models were published with PIL's resize. The tensor path follows PIL's filters (`antialias=True`, with the same
kernels) and differs only by PIL's rounding to 8 bits after each of the two passes, which it can do too on request.
Without antialiasing a 512 px image is off by 1.8-7.3 of 255 levels, with it by 0.3. For a model that was published with
a resize of float tensors (`as_tensor`), both paths are that resize.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FITS = ("crop", "pad", "stretch")
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP and most that came after
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

T = TypeVar("T")


@dataclass(frozen=True)
class Preprocess:
    """From images (B, 3, H, W) in [0, 1] to a model's normalized pixels (B, 3, *size).

    Raises ValueError for an unknown fit or filter, and for a crop larger than the resized image.

    Examples:
        >>> aig.vision.Preprocess((224, 224))(torch.rand(2, 3, 512, 384)).shape
        torch.Size([2, 3, 224, 224])
    """

    size: tuple[int, int]
    """Height and width that the model takes, px."""
    fit: str = "crop"
    """`crop`: shortest side to `shortest`, centre crop. `pad`: the whole image inside, zeros (black) around it.
    `stretch`: both sides to `size`, whatever the aspect ratio."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    shortest: int | None = None
    """Length of the shortest side before the crop, px; None: the crop's own."""
    floor_centre: bool = False
    """For an odd number of pixels to crop: floor as transformers does, else round half to even as torchvision does."""
    as_tensor: bool = False
    """Resize floats in one step without rounding or clamping, as torchvision does; else as PIL does 8-bit levels."""
    own: Callable[[Image.Image], Tensor] | None = field(default=None, compare=False, repr=False)
    """The model's own processor of one PIL image, for reports."""

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"preprocessing: fit {self.fit!r} is unknown, use one of {', '.join(FITS)}")
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"preprocessing: interpolation {self.interpolation!r} is unknown, use one of {', '.join(FILTERS)}"
            )
        if self.fit == "crop" and self.shortest is not None and self.shortest < max(self.size):
            raise ValueError(
                f"preprocessing: a crop of {self.size} does not fit into a shortest side of {self.shortest}"
                " px; make `shortest` at least as long"
            )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, px, of an image after the resize and before crop or padding."""
        if self.fit == "stretch":
            return self.size
        if self.fit == "pad" and self.as_tensor:  # hpsv2's arithmetic: 123 px of 384 x 210, where open_clip's has 122
            scale = min(self.size[0] / height, self.size[1] / width)
            return round(height * scale), round(width * scale)
        if self.fit == "pad":
            ratio = max(height / self.size[0], width / self.size[1])
            return round(height / ratio), round(width / ratio)
        shortest = max(self.size) if self.shortest is None else self.shortest
        if height <= width:
            return shortest, int(shortest * width / height)
        return int(shortest * height / width), shortest

    def finish(self, images: Tensor) -> Tensor:
        """Crop or pad resized images (B, 3, h, w) in [0, 1] to `size`, and normalize them."""
        height, width = images.shape[-2:]
        if self.fit == "crop":
            top, left = self._origin(height, width)
            images = images[..., top : top + self.size[0], left : left + self.size[1]]
        if self.fit == "pad":
            more_h, more_w = self.size[0] - height, self.size[1] - width
            images = F.pad(images, (more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2))
        mean, std = (
            torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (images - mean) / std  # (B, 3, *size)

    def _origin(self, height: int, width: int) -> tuple[int, int]:
        """Top and left, px, of the crop from a resized image."""
        rests = height - self.size[0], width - self.size[1]
        top, left = (rest // 2 if self.floor_centre else round(rest / 2) for rest in rests)
        return top, left

    def crops_as(self, other: Preprocess, height: int, width: int) -> bool:
        """Whether the crops of this and `other` from images of (height, width), before the resize, are the same."""
        small = self.resized(height, width)
        return small == other.resized(height, width) and self._origin(*small) == other._origin(*small)

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, *size) of float images (B, 3, H, W) in [0, 1], differentiable."""
        return self.finish(self.resize(images))

    def resize(self, images: Tensor, rounding: bool = False) -> Tensor:
        """Resize float images (B, 3, H, W), before crop or padding; `rounding` as in the function `resize`."""
        size = self.resized(*images.shape[-2:])
        if not self.as_tensor:
            return resize(images, size, self.interpolation, rounding)
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode=self.interpolation, antialias=True)

    def report(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, *size) float32 on the CPU of images (B, 3, H, W) uint8, by `own` or PIL unless `as_tensor`."""
        if self.as_tensor:
            return self(images.cpu().float() / 255)
        pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        if self.own is not None:
            return torch.stack([self.own(picture) for picture in pictures])
        height, width = self.resized(*images.shape[-2:])
        small = [picture.resize((width, height), FILTERS[self.interpolation]) for picture in pictures]
        return self.finish(torch.stack([_tensor(picture) for picture in small]))


def resize(images: Tensor, size: tuple[int, int], interpolation: str = "bicubic", rounding: bool = False) -> Tensor:
    """Resize images (B, 3, H, W) in [0, 1], antialiased, by rows and then by columns as PIL does.

    Both passes clamp as PIL's do: a bicubic filter overshoots, and clamping only at the end would be off by up to 9 of
    255 levels beside saturated areas. With `rounding` both also round to 256 levels, by `round_through`.
    """
    for target in ((images.shape[-2], size[1]), size):
        if tuple(images.shape[-2:]) != tuple(target):
            images = F.interpolate(images, target, mode=interpolation, antialias=True).clamp(0, 1)
            images = round_through(images) if rounding else images
    return images


def round_through(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 256 levels, with the gradient of the identity (straight-through)."""
    return images + ((images * 255).round() / 255 - images).detach()


def _tensor(picture: Image.Image) -> Tensor:
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


class Views:
    """One batch of images for several models, which share common preprocessing.

    Images (B, 3, H, W) are floats in [0, 1] (the differentiable path) or uint8 (the report path). With `rounding`
    floats are rounded to 8 bits wherever reports are, straight through.

    Examples:
        >>> views, preprocess = aig.vision.Views(torch.rand(2, 3, 64, 64)), aig.vision.Preprocess((32, 32))
        >>> views.pixels(preprocess) is views.pixels(preprocess)
        True
    """

    def __init__(self, images: Tensor, rounding: bool = False) -> None:
        self.rounding = rounding and images.dtype != torch.uint8
        self.images = round_through(images) if self.rounding else images
        self._made: dict[Hashable, Tensor] = {}

    @property
    def reports(self) -> bool:
        """Whether these are saved images, for a model's own processor."""
        return self.images.dtype == torch.uint8

    @property
    def floats(self) -> Tensor:
        """The images (B, 3, H, W) as floats in [0, 1]."""
        return self.images.float() / 255 if self.reports else self.images

    def pixels(self, preprocess: Preprocess) -> Tensor:
        """A model's input (B, 3, *size), computed once per preprocessing, and resized once per size."""
        if self.reports:
            return self.once((preprocess, preprocess.own), lambda: preprocess.report(self.images))
        images = self.images if self.images.dtype == torch.float64 else self.images.float()
        step = preprocess.resized(*images.shape[-2:]), preprocess.interpolation, preprocess.as_tensor
        small = self.once(step, lambda: preprocess.resize(images, self.rounding))
        return self.once(preprocess, lambda: preprocess.finish(small))

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, cached by the key."""
        if key not in self._made:
            self._made[key] = compute()
        return self._made[key]
