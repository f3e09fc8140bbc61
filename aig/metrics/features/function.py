"""A user's own extractor, `package.module:callable`."""

from __future__ import annotations

import torch

from aig.digests import imported
from aig.metrics.features.base import Features
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Source


def sources(spec: FeatureSpec) -> list[Source]:
    """None: the files that a user's code reads are not known here."""
    return []


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """Import a callable (B, 3, H, W) in [0, 1] -> (B, d) with the attribute `dimension` (d), which resizes by itself.

    Its attributes `input_size` and `resize` describe that if set. It chooses its own device and dtype.
    """
    try:
        function = imported(spec.name)
        dimension = int(function.dimension)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{spec.user} cannot be loaded ({error}); it needs package.module:callable with .dimension"
        ) from None
    size, resize = getattr(function, "input_size", None), getattr(function, "resize", "its own")
    return Features(lambda views: function(views.floats), spec.title, dimension, size, resize)
