"""torchvision's Inception v3, trained on ImageNet: the FID network's architecture with other weights and resize.

Its distances do not compare with those in papers; use `inception` for these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.inception import Inception3, Inception_V3_Weights

from aig.metrics.features.base import Features, in_words
from aig.metrics.features.inception import DIMENSION, fill
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Preprocess, Source, Views

PUBLISHED = Inception_V3_Weights.IMAGENET1K_V1


def sources(spec: FeatureSpec) -> list[Source]:
    """One file, by default in torch hub's cache, as for torchvision."""
    return [Source(spec.user, spec.weights or PUBLISHED.url, (PUBLISHED.url.rsplit("/", 1)[1],))]


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """2048 pooled features after torchvision's preprocessing: shortest side to 342 px, centre crop of 299."""
    net = Inception3(transform_input=True, init_weights=False)
    fill(net, sources(spec)[0], spec)
    net.AuxLogits, net.fc = None, nn.Identity()  # type: ignore[assignment]
    net = net.to(device, dtype).eval().requires_grad_(False)
    own = PUBLISHED.transforms()
    size, shortest = own.crop_size[0], own.resize_size[0]
    preprocess = Preprocess(
        (size, size), mean=tuple(own.mean), std=tuple(own.std), interpolation="bilinear", shortest=shortest, own=own
    )

    def extract(views: Views) -> Tensor:
        return net(views.pixels(preprocess).to(device, dtype))

    return Features(extract, spec.title, DIMENSION, preprocess.size, in_words(preprocess))
