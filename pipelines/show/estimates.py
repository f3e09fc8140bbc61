"""An estimate with its interval, and the one way to print it."""

from __future__ import annotations

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """A value with its interval; NaN where a bound is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def sign(self) -> int:
        """1 or −1 where the interval lies on that side of zero, 0 where it covers zero or is unknown."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    @property
    def known(self) -> bool:
        """Whether value and interval are finite."""
        return all(map(math.isfinite, self))

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)


UNKNOWN = Estimate(math.nan)


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
    size, figures = (half, 2) if math.isfinite(half) and half > 0 else (abs(estimate.value), 3)
    if not math.isfinite(size) or size == 0:
        return 2
    return min(6, max(0, figures - 1 - math.floor(math.log10(size))))


def interval(estimate: Estimate, plus: bool = False) -> str:
    """The value and its interval, rounded to what the interval supports: 12.40 [12.11, 12.71]."""
    digits = decimals(estimate)
    value = number(estimate.value, digits, plus)
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return value
    return f"{value} [{number(estimate.low, digits, plus)}, {number(estimate.high, digits, plus)}]"
