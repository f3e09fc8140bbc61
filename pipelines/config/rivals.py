"""The texts of rivals: what a configuration says of guidance, autoguidance and averaged adapters, parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.config.errors import ConfigError

MOST = 64
"""The greatest weight and LoRA scale, as `aig.schedules.MOST`, which is not imported here: it needs torch."""


def guidance(text: str | float) -> tuple[float, tuple[float, float]]:
    """SCALE or SCALE@BEGIN-END, as 5 or 7@0.2-0.8: a guidance scale and where in progress it acts."""
    scale, at, interval = (text if isinstance(text, str) else f"{text:g}").partition("@")
    begin, dash, end = interval.partition("-")
    values = [_number(part) for part in (scale, *((begin, end) if at else ("0", "1")))]
    if bool(at) != bool(dash) or not (values[0] >= 1 and 0 <= values[1] < values[2] <= 1):
        raise ConfigError(
            f"evaluate.guidance: {text!r} is no scale from 1 on, nor SCALE@BEGIN-END with progress 0 <= BEGIN < END "
            "<= 1: write 5 or 7@0.2-0.8"
        )
    return values[0], (values[1], values[2])


def autoguidance(text: str) -> tuple[int, float]:
    """STEP=WEIGHT, as 40=2: the snapshot in the base's place, and the weight against it."""
    step, _, weight = text.partition("=")
    if not (re.fullmatch(r"[1-9][0-9]*", step) and 1 < _number(weight) <= MOST):
        raise ConfigError(
            f"evaluate.autoguidance: {text!r} is not STEP=WEIGHT with a snapshot's step and a weight above 1, {MOST} "
            "at most: write 40=2"
        )
    return int(step), _number(weight)


def soup(text: str) -> dict[str, float]:
    """ADAPTER=WEIGHT|ADAPTER=WEIGHT and so on: adapters and their weights in a sum."""
    parts = [part.rpartition("=") for part in text.split("|")]
    weights = {name: _number(weight) for name, _, weight in parts}
    if len(weights) < max(2, len(parts)) or "" in weights or not all(0 < w <= MOST for w in weights.values()):
        raise ConfigError(
            f"evaluate.soups: {text!r} is not ADAPTER=WEIGHT|ADAPTER=WEIGHT with two or more different adapters and "
            f"weights above 0, {MOST} at most: write fragile-k1-kl0=0.5|robust-k1-kl0=0.5"
        )
    return weights


FORMS: dict[str, Callable[[Any], Any]] = {"guidance": guidance, "autoguidance": autoguidance, "soups": soup}
"""By the key of `evaluate`."""


def check(key: str, texts: Sequence[Any]) -> None:
    """ConfigError for a text that is not of the key's form, or that says the same as an earlier one."""
    before: list[tuple[Any, Any]] = []
    for text in texts:
        value = FORMS[key](text)
        same = next((other for other, its in before if its == value), None)
        if same is not None:
            raise ConfigError(f"evaluate.{key}: {same!r} and {text!r} are the same: give each once")
        before.append((text, value))


def _number(text: str) -> float:
    """The number that a text is, NaN for any other."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
