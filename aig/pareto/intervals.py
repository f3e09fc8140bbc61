"""From replicates of an estimate to an interval."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np


def expanded_percentiles(replicates: np.ndarray, level: float, prompts: int) -> np.ndarray:  # (2, ...)
    """Expanded percentiles (Hesterberg 2015), which make a mean's interval as wide as its t interval."""
    tail = NormalDist().cdf(-t_quantile(level, prompts - 1) * (prompts / (prompts - 1)) ** 0.5)
    return np.quantile(replicates, [tail, 1 - tail], axis=0)


def t_quantile(level: float, freedom: int) -> float:
    """Half-width of a t interval in standard errors, by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5)."""
    # By hand, since scipy is no dependency.
    z = NormalDist().inv_cdf((1 + level) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
