"""An estimate with its interval, and the one way to print it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that JSON writes as null if it is NaN."""


class Estimate(NamedTuple):
    """A value with its interval; NaN if a bound is unknown."""

    value: Number
    low: Number = math.nan
    high: Number = math.nan

    @property
    def sign(self) -> int:
        """1 or −1 if the interval lies on that side of zero, 0 if it covers zero or is unknown."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    @property
    def known(self) -> bool:
        """Whether value and interval are finite."""
        return all(map(math.isfinite, self))

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)


UNKNOWN = Estimate(math.nan)
LEAST = 5e-7  # six decimals, the most that are shown, show less as 0: it is rounding


def number(value: float, digits: int = 2, plus: bool = False) -> str:
    """A number with that many decimals and a true minus sign; an en dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if plus else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def decimals(estimate: Estimate) -> int:
    """Decimals that show two figures of the interval's half-width; of a value alone, three figures."""
    half = (estimate.high - estimate.low) / 2
    size, figures = (half, 2) if half > LEAST else (abs(estimate.value), 3)
    if not LEAST < size < math.inf:
        return 2
    return min(6, max(0, figures - 1 - math.floor(math.log10(size))))


def interval(estimate: Estimate, plus: bool = False) -> str:
    """The value and its interval, rounded to what the interval supports: 12.40 [12.11, 12.71]."""
    digits = decimals(estimate)
    value = number(estimate.value, digits, plus)
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return value
    return f"{value} [{number(estimate.low, digits, plus)}, {number(estimate.high, digits, plus)}]"


def difference(estimate: Estimate, by_seed: Mapping[Any, float]) -> str:
    """A signed estimate with the value of each training seed if there are several."""
    digits = decimals(estimate)
    values = {seed: number(value, digits, plus=True) for seed, value in by_seed.items() if math.isfinite(value)}
    shown = interval(estimate, plus=True)
    if len(values) < 2:
        return shown
    *first, last = map(str, values)
    return f"{shown} ({', '.join(values.values())} in training seeds {', '.join(first)} and {last})"
