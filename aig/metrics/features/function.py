"""A user's own extractor, `package.module:callable`."""

from __future__ import annotations

from importlib import import_module

import torch

from aig.metrics.features.base import Features
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Source


def sources(spec: FeatureSpec) -> list[Source]:
    """Nothing: what a user's own code reads is its own business."""
    return []


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """The callable (B, 3, H, W) in [0, 1] -> (B, d) behind a name, with its attributes `dimension` (d) and, where set,
    `input_size` and `resize`. It chooses its own device and dtype, and does its own resizing."""
    module, _, attribute = spec.name.partition(":")
    try:
        function = getattr(import_module(module), attribute)
        dimension = int(function.dimension)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{spec.user} cannot be loaded ({error}); it needs package.module:callable with .dimension"
        ) from None
    size, resize = getattr(function, "input_size", None), getattr(function, "resize", "its own")
    return Features(lambda views: function(views.floats), spec.title, dimension, size, resize)
