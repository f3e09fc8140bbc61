"""From replicates of an estimate to an interval."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

STUDENTIZED, PERCENTILE = "studentized", "percentile"
METHODS = (STUDENTIZED, PERCENTILE)
# Of the sample's variance in every replicate's: where most prompts tie, some replicates draw equal ones alone, and no
# deviation is finite in their units. A tenth of a prompt leaves coverage elsewhere as it is.
SHARED = 0.1


def expanded_percentiles(replicates: np.ndarray, level: float, prompts: int) -> np.ndarray:  # (2, ...)
    """Expanded percentiles (Hesterberg 2015), which make a mean's interval as wide as its t interval."""
    tail = NormalDist().cdf(-t_quantile(level, prompts - 1) * (prompts / (prompts - 1)) ** 0.5)
    return np.quantile(replicates, [tail, 1 - tail], axis=0)


def studentized(values: np.ndarray, counts: np.ndarray, level: float) -> np.ndarray:  # (2, k)
    """The bootstrap-t interval (Efron and Tibshirani 1993, section 12.5) of means over prompts: it follows their skew.

    values (k, prompts); counts (n, prompts), how often each replicate drew each prompt. The quantiles over replicates
    of (their mean − the mean) / their own standard error stand for those of Student's t. NaN where a value is NaN.
    """
    prompts = values.shape[1]
    estimate = values.mean(1)
    centred = values - estimate[:, None]
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
    below, above = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], axis=0)
    error = np.sqrt(sample / (prompts - 1))
    return np.stack([estimate - above * error, estimate - below * error])


def wilson(share: np.ndarray, n: int, level: float) -> np.ndarray:  # (2, ...)
    """Wilson's score interval (1927) of a share in [0, 1] of n independent trials: of width above 0 at 0 and 1, too."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return np.stack([centre - half, centre + half])


def t_quantile(level: float, freedom: int) -> float:
    """Half-width of a t interval in standard errors, by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5)."""
    # By hand, since scipy is no dependency.
    z = NormalDist().inv_cdf((1 + level) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
