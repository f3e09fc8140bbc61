"""The fall of the last of several snapshots below the best of them, which is chosen on the same prompts."""

from __future__ import annotations

import numpy as np
from scipy import stats

from aig.pareto.contrasts import LEAST_SEEDS, Contrast, two_level
from aig.pareto.intervals import LEAST_PROMPTS, standard_error, studentized_replicates, t_quantile


def below_peak(values: np.ndarray, counts: np.ndarray, level: float) -> Contrast:
    """The last snapshot's mean less the highest mean of all snapshots, the last included: never above 0.

    values (seeds, snapshots, prompts), the last snapshot last; counts (n, prompts), how often each replicate of a
    bootstrap drew each prompt.

    The highest of many means on the same prompts is too high. So the estimate chooses the peak for each prompt on all
    others (leave one out), and the interval's upper end is simultaneous over the snapshots: each replicate chooses
    again the snapshot from which the last one falls furthest, in standard errors (the bootstrap's max-t; Romano and
    Wolf 2005). If all snapshots are equal, it is below 0 in (1 − level) / 2 of samples. The lower end is the least over
    snapshots.

    With several training seeds it is the peak of their mean curve, and each seed's own in `by_seed`. From LEAST_SEEDS
    on the errors include the variance between seeds, by Student's t and Bonferroni's correction for the snapshots.
    There is no p-value, and no interval without another snapshot or for fewer than LEAST_PROMPTS prompts: NaN.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> values = rng.normal(size=(1, 1, 20)) + np.array([[[0.0], [2.0], [1.0]]])  # a peak in the middle
        >>> fall = aig.pareto.below_peak(values, rng.multinomial(20, [0.05] * 20, size=1000), level=0.95)
        >>> round(fall.value, 6), fall.high < 0
        (-1.0, True)
    """
    seeds, snapshots, prompts = values.shape
    by_seed = tuple(min(0.0, _left_out(single)) for single in values)
    mean = values.mean(0)
    value = min(0.0, _left_out(mean))
    if snapshots < 2 or prompts < LEAST_PROMPTS or not np.isfinite(values).all():
        return Contrast(value, np.nan, np.nan, np.nan, by_seed)
    falls = values[:, -1:] - values[:, :-1]  # (seeds, snapshots − 1, prompts)
    pooled = falls.mean(0)
    estimate, error = pooled.mean(1), standard_error(pooled)
    if seeds < LEAST_SEEDS:
        t = studentized_replicates(pooled, counts)
        most = np.quantile(t, (1 + level) / 2, axis=0)
        # No narrower than Student's t for few skewed prompts.
        least = np.full(len(error), min(np.quantile(t.min(1), (1 - level) / 2), -t_quantile(level, prompts - 1)))
    else:
        levels = [two_level(e**2, prompts - 1, fall) for e, fall in zip(error, falls.mean(2).T, strict=True)]
        error, freedom = np.sqrt([variance for variance, _ in levels]), np.array([freedom for _, freedom in levels])
        most = stats.t.ppf((1 + level) / 2, freedom)
        least = stats.t.ppf((1 - level) / 2 / len(error), freedom)
    low, high = (estimate - most * error).min(), min(0.0, (estimate - least * error).min())
    low = min(low, high)
    return Contrast(float(np.clip(value, low, high)), float(low), float(high), np.nan, by_seed)


def _left_out(values: np.ndarray) -> float:
    """The last of the snapshots (snapshots, prompts) less the best, chosen for each prompt on all others."""
    others = values.sum(1, keepdims=True) - values
    # The last of equal ones, since that is no fall.
    peak = len(values) - 1 - others[::-1].argmax(0)
    return float((values[-1] - np.take_along_axis(values, peak[None], 0)[0]).mean())
