"""The FID network: Inception v3 of 2015-12-05 with the weights, the resize and the pooling of the original evaluation
in TensorFlow 1 (Heusel et al. 2017), so that distances compare with those in papers.

The weights are torch-fidelity's port. On 8-bit images the features equal torch-fidelity's bit for bit.
"""

from __future__ import annotations

from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from aig.metrics.features.base import Features
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Source, Views, fetch

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SIZE, DIMENSION, CLASSES = (299, 299), 2048, 1008


def sources(spec: FeatureSpec) -> list[Source]:
    """One file, by default in torch hub's cache, as for torch-fidelity."""
    return [Source(spec.user, spec.weights or ADDRESS, (FILE,))]


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """2048 pooled features of 299x299 pixels."""
    (source,) = sources(spec)
    net = network()
    fill(net, source, spec)
    net.fc = nn.Identity()  # type: ignore[assignment]  # the features are the last layer's input
    net = net.to(device, dtype).eval().requires_grad_(False)

    def extract(views: Views) -> Tensor:
        levels = views.images.float() if views.reports else views.images.float() * 255
        pixels = (resize(levels.to(device), SIZE) - 128) / 128
        return net(pixels.to(dtype))

    return Features(extract, spec.title, DIMENSION, SIZE, "bilinear without antialiasing, as TensorFlow 1 does")


def fill(net: nn.Module, source: Source, spec: FeatureSpec) -> None:
    """Load all weights of a checkpoint file; ValueError if it does not fit."""
    path = source.file(fetch(source))
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, UnpicklingError, OSError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{spec.user}: the checkpoint {path} does not fit ({str(error).strip().splitlines()[0]}); give the file "
            f"{source.files[0]}"
        ) from error


def network() -> Inception3:
    """torchvision's Inception v3 with the pooling of the TensorFlow graph, unfilled."""
    blocks = [BasicConv2d, BlockA, InceptionB, BlockC, InceptionD, BlockE, InceptionAux]
    net = Inception3(CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
    net.Mixed_7c.largest = True  # type: ignore[assignment]
    return net


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (B, 3, H, W) bilinearly as TensorFlow 1 did with align_corners=False, without antialiasing.

    Output pixel i is read at i * in/out; later versions and torch read at (i + 1/2) * in/out - 1/2.
    """
    for axis, length in ((3, size[1]), (2, size[0])):
        images = _resize_axis(images, axis, length)
    return images


def _resize_axis(images: Tensor, axis: int, length: int) -> Tensor:
    before = images.shape[axis]
    scale = torch.tensor(before / length, dtype=torch.float32, device=images.device)
    place = torch.arange(length, dtype=torch.float32, device=images.device) * scale
    low = place.long()
    high = (low + 1).clamp_max(before - 1)
    share = (place - low.float()).to(images.dtype).view([-1 if a == axis else 1 for a in range(4)])
    below = images.index_select(axis, low)
    return below + (images.index_select(axis, high) - below) * share


def _mean_pool(x: Tensor) -> Tensor:
    """TensorFlow's average over a window, which does not count the padding."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class BlockA(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_mean_pool(x)),
        ]


class BlockC(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_mean_pool(x)),
        ]


class BlockE(InceptionE):
    largest = False
    """The last block of the published graph pools the maximum; the architecture's paper pools the mean."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1) if self.largest else _mean_pool(x)
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(single), self.branch3x3_2b(single)], 1),
            torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1),
            self.branch_pool(pooled),
        ]
