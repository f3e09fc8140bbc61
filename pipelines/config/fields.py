"""The fields of a configuration section: what they may hold, and what a change of them means for a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from pipelines.config.errors import ConfigError as ConfigError


def number(
    default: Any, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, **mark: bool
) -> Any:
    """A field whose value (each value, for a list) is in [low, high] and greater than `above`; None is let through."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, **mark})


def choice(default: Any, *options: Any, **mark: bool) -> Any:
    return field(default=default, metadata={"options": options, **mark})


# How a run is carried out, or what is computed anew each time: these may change between a run and its resumption.
EXECUTION = {"execution": True}
# Lists of NAME=VALUE of which a run's identity holds the names alone: it keeps copies of what they stand for.
NAMED = {"named": True}
# What the key of an adapter says: runs of `train` that differ in these alone live side by side in one run directory.
IN_KEY = {"in_key": True}


class Section:
    """Checks every field of a configuration section against its metadata."""

    def __post_init__(self) -> None:
        section = type(self).__name__.lower()
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            for single in value if isinstance(value, tuple) else (value,):
                _check_value(f"{section}.{item.name}", single, item.metadata)


def _check_value(key: str, value: Any, rule: Mapping[str, Any]) -> None:
    if "options" in rule and value not in rule["options"]:
        raise ConfigError(f"{key} is {value!r}: give one of {', '.join(map(str, rule['options']))}")
    if "low" not in rule or isinstance(value, (str, bool)) or value is None:
        return
    low, high, above = rule["low"], rule["high"], rule["above"]
    if math.isfinite(value) and low <= value <= high and value > above:
        return
    bounds = [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"at least {low:g}"] if low > -math.inf else []
    bounds += [f"at most {high:g}"] if high < math.inf else []
    raise ConfigError(f"{key} is {value}: give a number {' and '.join(bounds) or 'that is finite'}")


def bounds(wanted: int | tuple[int, ...]) -> tuple[int, int]:
    """Least and most of a number, or of both."""
    return (wanted, wanted) if isinstance(wanted, int) else (wanted[0], wanted[1])


def check_bounds(key: str, wanted: int | tuple[int, ...] | None) -> None:
    if isinstance(wanted, tuple) and (len(wanted) != 2 or wanted[0] > wanted[1]):
        raise ConfigError(f"{key} is {list(wanted)}: give a number, or [least, most] as in [1, 4]")


def distinct(section: str, values: Any, keys: Sequence[str]) -> None:
    for key in keys:
        value = getattr(values, key)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ConfigError(f"{section}.{key} is {list(value)}: give each value once")
