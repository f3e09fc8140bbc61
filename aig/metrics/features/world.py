"""The embedded world's extractor: 64 standardized features of 32x32 images, trained with its scenes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aig.metrics.features.base import Features
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Source, Views
from aig.vision.preprocess import resize
from aig.world import weights

SIZE = (32, 32)


def sources(spec: FeatureSpec) -> list[Source]:
    """None: the weights are in the package."""
    return []


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """The shipped network, which is small and computes in float32 at least."""
    dtype = torch.promote_types(dtype, torch.float32)
    network: Any = weights.load("features").to(device, dtype)

    def extract(views: Views) -> Tensor:
        return network.features(resize(views.floats.to(device, dtype), SIZE))

    return Features(extract, spec.title, 64, SIZE, "bicubic, antialiased, to 32x32")
