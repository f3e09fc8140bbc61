"""What an extractor is asked for with: a name, or a mapping."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

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
    """One extractor."""

    name: str
    """One of `NAMES`, or `package.module:callable`."""
    weights: str | None = None
    """Hub id, folder or file; None: the published ones."""
    architecture: str | None = None
    """For `clip`: an open_clip model name or the path of its config JSON; None goes through transformers."""
    processor: str | None = None
    """Hub id or folder of the image processor, for what goes through transformers; None: that of the weights."""
    label: str | None = None
    """What the extractor is called in messages; None: its name."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or (self.name not in FAMILIES and ":" not in self.name):
            close = difflib.get_close_matches(str(self.name), NAMES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"features {self.name!r} are not known{hint} (known: {', '.join(NAMES)}, or package.module:callable "
                "for your own)"
            )
        for key in ("weights", "architecture", "processor", "label"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"features {self.name!r}: {key} must be a text or left out, got {value!r}")
            if value is not None and key not in TAKES.get(self.family, ()) and key != "label":
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
        """How messages call it."""
        return f"features {self.title!r}"


# family: the keys beside name and label that it reads
TAKES = {
    "inception": ("weights",),
    "imagenet": ("weights",),
    "dinov2": ("weights", "processor"),
    "clip": ("weights", "architecture", "processor"),
}

Spec = str | Mapping[str, Any] | FeatureSpec


def parse(spec: Spec) -> FeatureSpec:
    """The extractor that a name or a mapping means.

    Raises ValueError for an unknown name or key, with the nearest known one.
    """
    if isinstance(spec, FeatureSpec):
        return spec
    if isinstance(spec, str):
        return FeatureSpec(spec)
    known = [item.name for item in fields(FeatureSpec)]
    for key in spec:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"features {dict(spec)!r}: unknown key {key!r}{hint} (known: {', '.join(known)})")
    if "name" not in spec:
        raise ValueError(f"features {dict(spec)!r}: the key 'name' is missing; give one of {', '.join(NAMES)}")
    return FeatureSpec(**spec)
