"""Specifications of rewards: a name, a mapping, a list of them, or a weighted sum as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aig.vision.specs import check_name, check_texts, from_mapping

# name: the module of aig.rewards that loads it
FAMILIES = {
    "pickscore": "pickscore",
    "hpsv2": "hps",
    "hpsv2.1": "hps",
    "clip": "clip",
    "aesthetic": "aesthetic",
    "imagereward": "imagereward",
    "world": "world",
    "fragile": "world",
    "robust": "world",
    "gold": "world",
    "gold_a": "world",
    "gold_b": "world",
}
NAMES = tuple(FAMILIES)


@dataclass(frozen=True)
class RewardSpec:
    """One reward, or one term of a weighted sum. Raises ValueError for unknown names and values of another type."""

    name: str
    """One of `NAMES`, or `package.module:callable`."""
    weights: str | None = None
    """Hub id, folder or file; None: the published ones."""
    architecture: str | None = None
    """An open_clip model name or the path of its config JSON (HPSv2: `ViT-H-14`); for `aesthetic` the hub id or folder
    of the CLIP under its head."""
    processor: str | None = None
    """Hub id or folder of the processor, for rewards through transformers."""
    weight: float = 1.0
    """In a weighted sum."""
    label: str | None = None
    """The reward's name in columns and messages; None: `name`."""

    def __post_init__(self) -> None:
        if not isinstance(self.weight, (int, float)) or isinstance(self.weight, bool) or not math.isfinite(self.weight):
            raise ValueError(f"reward {self.name!r}: weight must be a finite number, got {self.weight!r}")
        check_texts(f"reward {self.name!r}", self, ("weights", "architecture", "processor", "label"))
        check_name("reward {} is", self.name, NAMES)
        if self.family in ("world", "function") and (self.weights or self.architecture or self.processor):
            raise ValueError(
                f"reward {self.name!r}: weights, architecture and processor are for the pretrained rewards; the "
                "embedded ones and your own take name, weight and label"
            )

    @property
    def family(self) -> str:
        """The module of aig.rewards that loads it."""
        return FAMILIES.get(self.name, "function")

    @property
    def column(self) -> str:
        return self.label or self.name

    @property
    def user(self) -> str:
        """Its name in messages."""
        return f"reward {self.column!r}"


Spec = str | Mapping[str, Any] | RewardSpec | Sequence[Any]


def parse(spec: Spec) -> list[RewardSpec]:
    """The terms of a specification, in order: one, or those of a weighted sum.

    Raises ValueError for an unknown name or key (with the nearest known one), a weight that is not a number, and a
    column that occurs twice.

    Examples:
        >>> [(term.name, term.weight) for term in aig.rewards.parse("fragile + 0.5*gold")]
        [('fragile', 1.0), ('gold', 0.5)]
        >>> aig.rewards.parse({"name": "clip", "label": "mine"}) == [aig.rewards.RewardSpec("clip", label="mine")]
        True
    """
    if isinstance(spec, RewardSpec):
        return [spec]
    if isinstance(spec, str):
        terms = [_term(text) for text in re.split(r"(?<!\d[eE])\+", spec)]
    elif isinstance(spec, Mapping):
        terms = [from_mapping(RewardSpec, "reward", spec, NAMES)]
    else:
        terms = [term for part in spec for term in parse(part)]
        if not terms:
            raise ValueError("reward []: an empty list; give a name, or a list of at least one")
    columns = [term.column for term in terms]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(
            f"reward {spec!r}: {', '.join(twice)} occurs twice; add up the weights, or give each a label of its own"
        )
    return terms


def _term(text: str) -> RewardSpec:
    weight, star, name = text.rpartition("*")
    if not star:
        return RewardSpec(text.strip())
    try:
        return RewardSpec(name.strip(), weight=float(weight))
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        raise ValueError(f"reward {text.strip()!r}: {weight.strip()!r} is no number; write 0.5*pickscore") from None
