"""Contrasts for verdicts: an estimate with an interval, a p-value, and its values by training seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from aig.pareto.intervals import LEAST_PROMPTS, t_quantile

# With fewer training seeds a verdict holds for these adapters only.
LEAST_SEEDS = 3


class Contrast(NamedTuple):
    """An estimate with its interval; NaN for values that the data cannot give."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided, for a true value of 0: below 1 − level exactly if the interval excludes 0."""
    by_seed: tuple[float, ...]
    """The estimate from each training seed alone."""


def contrast(values: np.ndarray, left_out: np.ndarray, replicates: np.ndarray, level: float) -> Contrast:
    """The mean over training seeds of a statistic of the prompts, with an interval and a p-value.

    values (seeds,): the statistic of each training seed; left_out (prompts, seeds): without each prompt in turn;
    replicates (n, seeds): in each replicate of a bootstrap of the prompts, the same prompts for every seed.

    The variance over prompts is the jackknife's, which holds for statistics with kinks, unlike a bootstrap's
    studentized intervals. Its degrees of freedom are prompts − 1, fewer if its pseudo-values have heavy tails. From
    LEAST_SEEDS seeds on, the variance between seeds / seeds is added, with Satterthwaite's degrees of freedom (1946):
    the interval is then for adapters of other seeds and prompts, and a little wide, since the seeds' interaction with
    the prompts is in both terms. With fewer seeds it is for these adapters.

    The error of a skewed or curved statistic changes with its value; so, as in Wilson's interval, it is taken at the
    true value in question: variance + slope · (true − estimate), with the slope the third moment of the replicates over
    their second. It is never taken as less than at the estimate: no interval is narrower than Student's t.

    Examples:
        >>> x = np.random.default_rng(0).normal(1, 1, 40)  # a statistic of 40 prompts, one training seed
        >>> left_out = (x.sum() - x)[:, None] / 39
        >>> replicates = np.random.default_rng(1).choice(x, (1000, 40)).mean(1)[:, None]
        >>> result = aig.pareto.contrast(np.array([x.mean()]), left_out, replicates, level=0.95)
        >>> result.low < result.value < result.high, result.p < 0.001
        (True, True)
    """
    prompts = len(left_out)
    value, by_seed = float(values.mean()), tuple(values.tolist())
    if prompts < LEAST_PROMPTS or not np.isfinite(left_out).all():
        return Contrast(value, np.nan, np.nan, np.nan, by_seed)
    deleted = left_out.mean(1)
    variance = float((prompts - 1) / prompts * ((deleted - deleted.mean()) ** 2).sum())
    # Var(s²) / s⁴ is about (2 + excess kurtosis) / n, and 2 / freedom for normal values.
    heavy = max(0.0, float(stats.kurtosis(deleted, bias=False))) if variance else 0.0
    variance, freedom = two_level(variance, 2 * (prompts - 1) / (2 + heavy), values)
    drawn = replicates.mean(1)
    drawn = drawn - drawn.mean()
    slope = float((drawn**3).mean() / (drawn**2).mean()) if drawn.any() else 0.0
    low, high = _score_interval(value, variance, slope, t_quantile(level, freedom))
    at_zero = max(variance, variance - slope * value)
    error = abs(value) / np.sqrt(at_zero) if at_zero > 0 else np.inf
    p = float(2 * stats.t.sf(error, freedom)) if value else 1.0
    return Contrast(value, low, high, p, by_seed)


def two_level(variance: float, freedom: float, by_seed: np.ndarray) -> tuple[float, float]:
    """Variance and degrees of freedom of a mean over training seeds (seeds,), given those over prompts."""
    if len(by_seed) < LEAST_SEEDS:
        return variance, freedom
    between = float(by_seed.var(ddof=1)) / len(by_seed)
    total = variance + between
    if total == 0:
        return total, freedom
    return total, total**2 / (variance**2 / freedom + between**2 / (len(by_seed) - 1))


def _score_interval(value: float, variance: float, slope: float, t: float) -> tuple[float, float]:
    """True values with (true − value)² <= t² · (variance + slope · (true − value)), joined with Student's interval."""
    middle, half = t**2 * slope / 2, np.sqrt(t**4 * slope**2 / 4 + t**2 * variance)
    plain = t * np.sqrt(variance)
    return float(value + min(middle - half, -plain)), float(value + max(middle + half, plain))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): at most a share alpha of families of true hypotheses has one below alpha.

    Holds under any dependence. NaN stays NaN and counts as no hypothesis.

    Examples:
        >>> aig.pareto.holm([0.01, 0.04, float("nan"), 0.5])
        [0.03, 0.08, nan, 0.5]
    """
    known = [i for i, value in enumerate(p) if not np.isnan(value)]
    adjusted, most = [float("nan")] * len(p), 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p[i])):
        most = max(most, min(1.0, (len(known) - rank) * p[i]))
        adjusted[i] = most
    return adjusted
