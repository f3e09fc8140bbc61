"""Fields of a configuration section: the values that they allow, and what changing one means for a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from pipelines.config.errors import ConfigError


def number(
    default: Any, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, **mark: bool
) -> Any:
    """A field whose value (each value of a list) is in [low, high] and greater than `above`; None passes too."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, **mark})


def choice(default: Any, *options: Any, **mark: bool) -> Any:
    return field(default=default, metadata={"options": options, **mark})


# Says how a run is carried out, or is computed anew each time: it may change between a run and its resumption.
EXECUTION = {"execution": True}
# A list of NAME=VALUE: only the NAMEs count towards a run's identity; the run keeps copies of the values.
NAMED = {"named": True}
# Part of an adapter's name: trainings that differ in these alone share a run directory.
IN_KEY = {"in_key": True}


class Section:
    """A section of the configuration, which checks every field against its metadata."""

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


def bounds(value: int | tuple[int, ...]) -> tuple[int, int]:
    """The least and the most that a number or a pair [least, most] allows."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def check_bounds(key: str, value: int | tuple[int, ...] | None) -> None:
    if isinstance(value, tuple) and (len(value) != 2 or value[0] > value[1]):
        raise ConfigError(f"{key} is {list(value)}: give a number, or [least, most] as in [1, 4]")


def distinct(section: str, values: Any, keys: Sequence[str]) -> None:
    for key in keys:
        value = getattr(values, key)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ConfigError(f"{section}.{key} is {list(value)}: give each value once")
