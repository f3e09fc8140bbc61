"""Specifications of extractors: a name or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aig.vision.specs import check_name, check_texts, from_mapping

# name: the module of aig.metrics.features that loads it
FAMILIES = {
    "inception": "inception",
    "inception-torchvision": "imagenet",
    "dinov2": "dinov2",
    "clip": "clip",
    "world": "world",
}
NAMES = tuple(FAMILIES)


@dataclass(frozen=True)
class FeatureSpec:
    """One extractor. Raises ValueError for unknown names and for keys that it does not take."""

    name: str
    """One of `NAMES`, or `package.module:callable`."""
    weights: str | None = None
    """Hub id, folder or file; None: the published ones."""
    architecture: str | None = None
    """For `clip`: an open_clip model name or the path of its config JSON; None: through transformers."""
    processor: str | None = None
    """Hub id or folder of the image processor, for extractors through transformers; None: that of the weights."""
    label: str | None = None
    """The extractor's name in messages; None: `name`."""

    def __post_init__(self) -> None:
        check_name("features {} are", self.name, NAMES)
        check_texts(f"features {self.name!r}", self, ("weights", "architecture", "processor", "label"))
        for key in ("weights", "architecture", "processor"):
            if getattr(self, key) is not None and key not in TAKES.get(self.family, ()):
                raise ValueError(
                    f"features {self.name!r} take no {key}; leave it out"
                    + (f", or set {', '.join(TAKES[self.family])}" if self.family in TAKES else "")
                )

    @property
    def family(self) -> str:
        """The module of aig.metrics.features that loads it."""
        return FAMILIES.get(self.name, "function")

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def user(self) -> str:
        """Its name in messages."""
        return f"features {self.title!r}"


# family: the keys that it reads besides name and label
TAKES = {
    "inception": ("weights",),
    "imagenet": ("weights",),
    "dinov2": ("weights", "processor"),
    "clip": ("weights", "architecture", "processor"),
}

Spec = str | Mapping[str, Any] | FeatureSpec


def parse(spec: Spec) -> FeatureSpec:
    """The specification of a name or a mapping; ValueError for an unknown name or key, with the nearest known one.

    Examples:
        >>> aig.metrics.features.parse("world") == aig.metrics.features.FeatureSpec("world")
        True
    """
    if isinstance(spec, FeatureSpec):
        return spec
    if isinstance(spec, str):
        return FeatureSpec(spec)
    return from_mapping(FeatureSpec, "features", spec, NAMES)
