"""How a pretrained model sees an image: resized, cropped or padded, normalized; differentiable, or as for a report.

Most models were published with PIL's resize. The tensor path follows PIL's filters (`antialias=True`, which has the
same kernels) and differs from them only by PIL's rounding to 8 bits after each of the two passes, which it can do as
well where that is asked for. Without antialiasing a 512 px image is off by 1.8-7.3 of 255 levels, with it by 0.3.
Where a model was published with a resize of float tensors (`as_tensor`), both paths are that resize.
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

    Two of them with equal fields give equal pixels. Raises ValueError for an unknown fit or filter, and for a crop that
    is larger than what is left after the resize.
    """

    size: tuple[int, int]
    """Height and width that the model takes, px."""
    fit: str = "crop"
    """`crop`: shortest side to `shortest`, centre crop. `pad`: the whole image inside, zeros (black) around it.
    `stretch`: both sides to `size`, whatever the aspect."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    shortest: int | None = None
    """Length of the shortest side before the crop, px; None: the crop's own."""
    floor_centre: bool = False
    """Where a crop has an odd number of pixels to lose: floor, as transformers does, or round half to even, as
    torchvision and open_clip do."""
    as_tensor: bool = False
    """Resize floats in one step, reports too, without rounding or clamping, as torchvision does a tensor; or else as
    PIL does 8-bit levels."""
    own: Callable[[Image.Image], Tensor] | None = field(default=None, compare=False, repr=False)
    """The model's own processor of one PIL image, for reports."""

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"preprocessing: fit {self.fit!r} is unknown, take one of {', '.join(FITS)}")
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"preprocessing: interpolation {self.interpolation!r} is unknown, take one of {', '.join(FILTERS)}"
            )
        if self.fit == "crop" and self.shortest is not None and self.shortest < max(self.size):
            raise ValueError(
                f"preprocessing: a crop of {self.size} does not fit into a shortest side of {self.shortest}"
                " px; make `shortest` at least as long"
            )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, px, of an image of (height, width) after the resize and before crop or padding."""
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
        """Top and left, px, of the crop from an image of (height, width) after the resize."""
        rests = height - self.size[0], width - self.size[1]
        top, left = (rest // 2 if self.floor_centre else round(rest / 2) for rest in rests)
        return top, left

    def crops_as(self, other: Preprocess, height: int, width: int) -> bool:
        """Whether a crop from images of (height, width), before the resize, begins where that of `other` does."""
        small = self.resized(height, width)
        return small == other.resized(height, width) and self._origin(*small) == other._origin(*small)

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, *size) of float images (B, 3, H, W) in [0, 1], differentiable."""
        return self.finish(self.resize(images))

    def resize(self, images: Tensor, rounding: bool = False) -> Tensor:
        """Float images (B, 3, H, W) before crop or padding; `rounding` as in the function `resize`."""
        size = self.resized(*images.shape[-2:])
        if not self.as_tensor:
            return resize(images, size, self.interpolation, rounding)
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode=self.interpolation, antialias=True)

    def report(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, *size) float32 on the CPU of images (B, 3, H, W) uint8, through PIL unless `as_tensor`: by the
        model's own processor where `own` is set."""
        if self.as_tensor:
            return self(images.cpu().float() / 255)
        pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        if self.own is not None:
            return torch.stack([self.own(picture) for picture in pictures])
        height, width = self.resized(*images.shape[-2:])
        small = [picture.resize((width, height), FILTERS[self.interpolation]) for picture in pictures]
        return self.finish(torch.stack([_tensor(picture) for picture in small]))


def resize(images: Tensor, size: tuple[int, int], interpolation: str = "bicubic", rounding: bool = False) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at another size, antialiased, by rows and then by columns as PIL does.

    Each of the two is clamped as PIL's are: a bicubic filter overshoots, and clamping at the end alone would be off by
    up to 9 of 255 levels beside saturated areas. With `rounding` each gives one of 256 levels, too, by `round_through`.
    """
    for target in ((images.shape[-2], size[1]), size):
        if tuple(images.shape[-2:]) != tuple(target):
            images = F.interpolate(images, target, mode=interpolation, antialias=True).clamp(0, 1)
            images = round_through(images) if rounding else images
    return images


def round_through(images: Tensor) -> Tensor:
    """Images in [0, 1] at the nearest of 256 levels, with the gradient that they have without (straight-through)."""
    return images + ((images * 255).round() / 255 - images).detach()


def _tensor(picture: Image.Image) -> Tensor:
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


class Views:
    """One batch of images as several models see it; what two of them have in common is computed once.

    Images (B, 3, H, W) are floats in [0, 1] (the differentiable path) or uint8 (the report path). With `rounding` the
    former are rounded to 8 bits wherever the latter are, straight through.
    """

    def __init__(self, images: Tensor, rounding: bool = False) -> None:
        self.rounding = rounding and images.dtype != torch.uint8
        self.images = round_through(images) if self.rounding else images
        self._made: dict[Hashable, Tensor] = {}

    @property
    def reports(self) -> bool:
        """Whether these are images as saved, which go through a model's own processor."""
        return self.images.dtype == torch.uint8

    @property
    def floats(self) -> Tensor:
        """The images (B, 3, H, W) as floats in [0, 1]."""
        return self.images.float() / 255 if self.reports else self.images

    def pixels(self, preprocess: Preprocess) -> Tensor:
        """What a model with this preprocessing takes, (B, 3, *size): each made once, and each size resized to once."""
        if self.reports:
            return self.once((preprocess, preprocess.own), lambda: preprocess.report(self.images))
        images = self.images if self.images.dtype == torch.float64 else self.images.float()
        step = preprocess.resized(*images.shape[-2:]), preprocess.interpolation, preprocess.as_tensor
        small = self.once(step, lambda: preprocess.resize(images, self.rounding))
        return self.once(preprocess, lambda: preprocess.finish(small))

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, or what it gave the last time that this key was asked for."""
        if key not in self._made:
            self._made[key] = compute()
        return self._made[key]
