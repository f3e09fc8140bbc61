"""Mean distances over pairs of rows, and any diversity measure per prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from aig.metrics._inputs import Features, Groups, as_features, check_dimensions, group_index, streamed, unit_rows


@dataclass(eq=False)
class CosineSums:
    """The sums behind the mean cosine distance of a feature stream: n and Σz, z the rows at unit length; mergeable.

    Examples:
        >>> sums = aig.metrics.CosineSums().update(np.eye(3)).merge(aig.metrics.CosineSums())
        >>> sums.mean_distance()
        1.0
    """

    n: int = 0
    """Number of rows."""
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(d,) Σz in float64."""

    def update(self, batch: Features) -> CosineSums:
        """Add the rows of batch (n, d), in place, and return self; float64 copies hold 8 MiB.

        Raises ValueError, and changes nothing, for another d than before, values that are not finite, or a row of
        zeros.
        """
        added = self
        size = streamed(batch)
        for start in range(0, len(batch), size):
            z = unit_rows(batch[start : start + size], "x", 1, start)
            added = added.merge(CosineSums(len(z), z.sum(0).cpu().numpy()))
        self.n, self.total = added.n, added.total
        return self

    def merge(self, other: CosineSums) -> CosineSums:
        """The sums of both sets of rows together, as a new object."""
        if self.n == 0 or other.n == 0:
            full = other if self.n == 0 else self
            return CosineSums(full.n, full.total.copy())
        check_dimensions(len(self.total), len(other.total), "one set of rows", "the other")
        return CosineSums(self.n + other.n, self.total + other.total)

    def mean_distance(self) -> float:
        """Mean of 1 − cos over pairs of different rows, in [0, n / (n − 1)]: 1 − (‖Σz‖² − n) / (n (n − 1)).

        Raises ValueError for fewer than two rows.
        """
        if self.n < 2:
            raise ValueError(f"x has {self.n} rows, fewer than the 2 needed: generate more images")
        return max(0.0, 1 - (float(self.total @ self.total) - self.n) / (self.n * (self.n - 1)))


def mean_pairwise_cosine_distance(x: Features) -> float:
    """Mean of 1 − cos over pairs of different rows of x (n, d), in [0, n / (n − 1)], in O(n d).

    `CosineSums` streams it. Raises ValueError for fewer than two rows, values that are not finite, or a row of zeros.

    Examples:
        >>> aig.metrics.mean_pairwise_cosine_distance(np.array([[1.0, 0], [2, 0], [0, 3]]))  # 0, 1 and 1
        0.6666666666666667
    """
    return CosineSums().update(x).mean_distance()


def mean_pairwise_distance(x: Features) -> float:
    """Mean Euclidean distance over pairs of different rows of x (n, d), in feature units, >= 0.

    Needs O(n²) memory: meant for one prompt's images. Raises ValueError for fewer than two rows or values that are not
    finite.

    Examples:
        >>> aig.metrics.mean_pairwise_distance(np.array([[0.0], [1], [3]]))
        2.0
    """
    return float(torch.nn.functional.pdist(as_features(x, "x")).mean())


def per_prompt(metric: Callable[[Features], float], x: Features, groups: Groups) -> np.ndarray:
    """metric of each group's rows (g,), in the sorted order of the distinct groups (that of `numpy.unique`).

    x (n, d), groups (n,) one prompt id per row. Average it over prompts, or pass it to `aig.pareto.bootstrap`. Raises
    ValueError for a wrong number of groups; an error of the metric names the group.

    Examples:
        >>> x, prompts = np.array([[0.0], [1], [0], [3]]), ["star", "star", "heart", "heart"]
        >>> aig.metrics.per_prompt(aig.metrics.mean_pairwise_distance, x, prompts)  # heart, star
        array([3., 1.])
    """
    labels, place = group_index(groups, len(x))
    values = np.empty(len(labels))
    for i, label in enumerate(labels):
        try:
            values[i] = metric(x[np.flatnonzero(place == i)])
        except ValueError as error:
            raise ValueError(f"group {label}: {error}") from error
    return values
