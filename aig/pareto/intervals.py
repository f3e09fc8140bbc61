"""Intervals from replicates of an estimate."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from scipy import stats

STUDENTIZED, PERCENTILE = "studentized", "percentile"
METHODS = (STUDENTIZED, PERCENTILE)
# No interval below this: fewer resampled prompts say too little about others; with two, 95 % intervals cover 86 %.
LEAST_PROMPTS = 4
# Weight of the sample's variance in every replicate's: if most prompts tie, some replicates draw only equal ones, and
# no deviation is finite in their units. A tenth of a prompt does not change coverage otherwise.
SHARED = 0.1


def no_interval(prompts: int) -> str | None:
    """The reason why this number of prompts has no interval; None if it has one.

    Examples:
        >>> aig.pareto.no_interval(3), aig.pareto.no_interval(4)
        ('3 prompts: no interval below 4', None)
    """
    return f"{prompts} prompts: no interval below {LEAST_PROMPTS}" if prompts < LEAST_PROMPTS else None


def expanded_percentiles(replicates: np.ndarray, level: float, prompts: int) -> np.ndarray:  # (2, ...)
    """Expanded percentiles (Hesterberg 2015), which widen a mean's interval to its t interval.

    NaN for fewer than LEAST_PROMPTS prompts.
    """
    if prompts < LEAST_PROMPTS:
        return np.full((2, *replicates.shape[1:]), np.nan)
    tail = NormalDist().cdf(-t_quantile(level, prompts - 1) * (prompts / (prompts - 1)) ** 0.5)
    return np.quantile(replicates, [tail, 1 - tail], axis=0)


def studentized(values: np.ndarray, counts: np.ndarray, level: float) -> np.ndarray:  # (2, k)
    """The bootstrap-t interval (Efron and Tibshirani 1993, section 12.5) of means over prompts: it follows their skew.

    values (k, prompts); counts (n, prompts), how often each replicate drew each prompt. The quantiles over replicates
    of (their mean − the mean) / their own standard error replace those of Student's t. NaN if a value is NaN, and for
    fewer than LEAST_PROMPTS prompts.
    """
    if values.shape[1] < LEAST_PROMPTS:
        return np.full((2, len(values)), np.nan)
    below, above = np.quantile(studentized_replicates(values, counts), [(1 - level) / 2, (1 + level) / 2], axis=0)
    estimate, error = values.mean(1), standard_error(values)
    return np.stack([estimate - above * error, estimate - below * error])


def studentized_replicates(values: np.ndarray, counts: np.ndarray) -> np.ndarray:  # (n, k)
    """(A replicate's mean − the mean) / the replicate's standard error, for values (k, prompts)."""
    prompts = values.shape[1]
    centred = values - values.mean(1)[:, None]
    sample = (centred**2).mean(1)
    t = np.empty((len(counts), len(values)))
    step = max(1, 2**22 // prompts)  # weights of 32 MB at a time
    for start in range(0, len(counts), step):
        weights = counts[start : start + step] / prompts
        shift = weights @ centred.T
        variance = (weights @ (centred**2).T - shift**2).clip(min=0)
        variance += SHARED / prompts * (sample - variance)
        with np.errstate(invalid="ignore", divide="ignore"):
            t[start : start + step] = np.where(sample == 0, 0.0, shift / np.sqrt(variance / (prompts - 1)))
    return t


def standard_error(values: np.ndarray) -> np.ndarray:  # (k,)
    """Standard errors of the means of values (k, prompts)."""
    return values.std(1) / np.sqrt(values.shape[1] - 1)


def wilson(share: np.ndarray, n: int, level: float) -> np.ndarray:  # (2, ...)
    """Wilson's score interval (1927) of a share in [0, 1] of n independent trials: its width at 0 and 1 is positive."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return np.stack([centre - half, centre + half])


def t_quantile(level: float, freedom: float) -> float:
    """Half-width of a t interval in standard errors."""
    return float(stats.t.ppf((1 + level) / 2, freedom))
