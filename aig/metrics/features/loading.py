"""Load extractors from specifications."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from aig import vision
from aig.digests import of_callable
from aig.metrics.features.base import Features
from aig.metrics.features.spec import FeatureSpec, Spec, parse
from aig.vision import missing
from aig.world import weights


def load(spec: Spec, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Features:
    """Load an extractor by name or mapping (`FeatureSpec`'s keys).

    Names: `inception`, the FID network with the weights and the resize of papers; `inception-torchvision`,
    torchvision's own, whose distances do not compare with papers; `dinov2`, the class token of DINOv2; `clip`, image
    embeddings of any CLIP; `world`, the embedded one for 32x32 images; `package.module:callable`, your own, with a
    `dimension`. The network computes in `dtype`; features are float32. Raises ValueError that names the specification
    and the fix; for weights that cannot be downloaded, what to get, from where, to which path.

    Examples:
        >>> extractor = aig.metrics.features.load("world")
        >>> extractor(torch.rand(2, 3, 32, 32)).shape, extractor.dimension
        (torch.Size([2, 64]), 64)
    """
    parsed = parse(spec)
    return _module(parsed).load(parsed, torch.device(device), dtype)


def needed(spec: Spec) -> list[str]:
    """The addresses that `load` would download from, none if everything is here; loads no weights.

    Call it before workers start. Raises ValueError for files that cannot be downloaded.

    Examples:
        >>> aig.metrics.features.needed("world"), len(aig.metrics.features.digest("world"))
        ([], 32)
    """
    parsed = parse(spec)
    return missing(_module(parsed).sources(parsed))


def digest(spec: Spec) -> str:
    """A hash, 32 hex digits, of the extractor's weights files or its module's source, as `aig.rewards.digests`."""
    parsed = parse(spec)
    if parsed.family == "function":
        _module(parsed).load(parsed, torch.device("cpu"), torch.float32)  # for its error
        return of_callable(parsed.name)
    if parsed.family == "world":
        return weights.digest_of("features")
    return vision.digest(_module(parsed).sources(parsed), parsed.architecture)


def _module(spec: FeatureSpec) -> Any:
    # One module per family, imported on first use: transformers and torchvision take seconds.
    return import_module(f"aig.metrics.features.{spec.family}")
