"""From a specification to an extractor."""

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
    """An extractor by name or mapping (`FeatureSpec`'s keys).

    Names: `inception`, the FID network with the weights and the resize of papers; `inception-torchvision`,
    torchvision's own, whose distances do not compare with papers; `dinov2`, the class token of DINOv2; `clip`, image
    embeddings of any CLIP; `world`, the embedded one for 32x32 images; `package.module:callable`, your own, with a
    `dimension`. `dtype` is what the network computes in; features are float32.

    Raises ValueError that names what was asked for and the fix; where weights are neither here nor to be downloaded,
    what to get, from where, to which path.
    """
    asked = parse(spec)
    return _module(asked).load(asked, torch.device(device), dtype)


def needed(spec: Spec) -> list[str]:
    """The addresses that `load` would download from, none where everything is here; loads no weights.

    Raises ValueError where something can neither be found nor downloaded. Call it before workers start.
    """
    asked = parse(spec)
    return missing(_module(asked).sources(asked))


def digest(spec: Spec) -> str:
    """A hash of what the features come from beside the extractor's settings, as `aig.rewards.digests` has it."""
    asked = parse(spec)
    if asked.family == "function":
        _module(asked).load(asked, torch.device("cpu"), torch.float32)  # which says what is wrong with it
        return of_callable(asked.name)
    if asked.family == "world":
        return weights.digest_of("features")
    return vision.digest(_module(asked).sources(asked), asked.architecture)


def _module(spec: FeatureSpec) -> Any:
    # One module a family, imported when asked for: transformers and torchvision take seconds.
    return import_module(f"aig.metrics.features.{spec.family}")
