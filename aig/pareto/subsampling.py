"""Intervals of measures of sets of images, which a bootstrap would mislead.

A bootstrap draws rows twice. A duplicate is its own nearest neighbour and shrinks a spectrum, so distances between
distributions, precision and recall would change for that reason alone. Subsets without replacement hold each row once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aig.pareto.intervals import LEAST_PROMPTS, t_quantile, wilson


@dataclass(frozen=True, eq=False)
class Subsample:
    """A measure of sets, on all prompts and on subsets of `size` prompts without repetition."""

    estimate: np.ndarray
    """(m,) on all prompts."""
    replicates: np.ndarray
    """(n, m) on each subset; the same arguments give the same subsets, so those of two arms are paired."""
    prompts: int
    size: int
    level: float

    @property
    def interval(self) -> np.ndarray:
        """(m, 2), low and high: estimate ± t · s · √(size / (prompts − size)), s the replicates' standard deviation.

        That is the delete-d jackknife (Shao and Wu 1989). The subsets' own mean does not enter, since measures of sets
        depend on n. NaN without replicates, or for fewer than LEAST_PROMPTS prompts.
        """
        if not len(self.replicates) or self.prompts < LEAST_PROMPTS:
            return np.full((len(self.estimate), 2), np.nan)
        freedom = min(self.prompts, len(self.replicates)) - 1
        scale = np.sqrt(self.size / (self.prompts - self.size))
        half = t_quantile(self.level, freedom) * scale * self.replicates.std(0, ddof=1)
        return np.stack([self.estimate - half, self.estimate + half], -1)

    def share_interval(self, measure: int, trials: int) -> tuple[float, float]:
        """`interval` of one measure that is a share of `trials` images: in [0, 1] and no narrower than Wilson's.

        If all images are hits, so are those of every subset, which would leave no width. Images of a prompt are alike,
        so they tell no more than as many independent ones, for which Wilson's interval holds.
        """
        low, high = self.interval[measure]
        if self.prompts < LEAST_PROMPTS:
            return float(low), float(high)
        lowest, highest = wilson(self.estimate[measure], trials, self.level)
        return max(0.0, min(low, lowest)), min(1.0, max(high, highest))

    def less(self, other: Subsample) -> Subsample:
        """The difference to another arm on the same subsets; ValueError for other subsets."""
        return Subsample._combined([self, other], [1.0, -1.0])

    @staticmethod
    def mean(members: Sequence[Subsample]) -> Subsample:
        """The mean of arms on the same subsets; ValueError for other subsets."""
        return Subsample._combined(members, [1 / len(members)] * len(members))

    @staticmethod
    def _combined(members: Sequence[Subsample], weights: Sequence[float]) -> Subsample:
        first = members[0]
        if len({(m.prompts, m.size, m.replicates.shape) for m in members}) > 1:
            raise ValueError("the members have other prompts or subsets: measure them with the same arguments")
        pairs = list(zip(weights, members, strict=True))
        estimate = np.sum([weight * member.estimate for weight, member in pairs], 0)
        replicates = np.sum([weight * member.replicates for weight, member in pairs], 0)
        return Subsample(estimate, replicates, first.prompts, first.size, first.level)


def subsample(
    measure: Callable[[np.ndarray], np.ndarray],
    prompts: int,
    n: int = 32,
    *,
    size: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Subsample:
    """Measure all prompts, and n subsets of them without repetition.

    measure: sorted indices of distinct prompts (k,), which select sets of images -> values (m,).
    size: prompts per subset, from 1 to prompts − 1, by default half: the variance is scaled as for an average of
    independent prompts, which holds better the nearer size is to prompts. With n < 2 or fewer than two prompts there is
    only the estimate.
    level: in (0, 1). The result depends on the arguments alone. Raises ValueError for a size or a level out of range.

    Examples:
        >>> scores = np.random.default_rng(0).normal(1, 0.1, size=40)  # one per prompt
        >>> result = aig.pareto.subsample(lambda rows: np.array([scores[rows].mean()]), prompts=40)
        >>> result.interval.round(2).tolist()
        [[0.97, 1.02]]
    """
    size = prompts // 2 if size is None else size
    if n < 0 or not 0 < level < 1:
        raise ValueError(f"n is {n} and level {level}: give n >= 0 and a level in (0, 1)")
    if n and prompts > 1 and not 0 < size < prompts:
        raise ValueError(f"size is {size} of {prompts} prompts: give at least 1 and fewer than all")
    rng = np.random.default_rng(seed)
    estimate = np.asarray(measure(np.arange(prompts)), np.float64)
    subsets = [np.sort(rng.choice(prompts, size, replace=False)) for _ in range(n if prompts > 1 and n > 1 else 0)]
    replicates = np.array([measure(subset) for subset in subsets], np.float64).reshape(len(subsets), len(estimate))
    return Subsample(estimate, replicates, prompts, size, level)
