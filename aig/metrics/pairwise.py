"""Mean distances over pairs of rows, and any diversity measure prompt by prompt."""

from collections.abc import Callable

import numpy as np
import torch

from aig.metrics._inputs import Features, Groups, as_features, group_index, unit_rows


def mean_pairwise_cosine_distance(x: Features) -> float:
    """Mean of 1 − cos over pairs of different rows of x (n, d), in [0, n / (n − 1)].

    Computed as 1 − (‖Σz‖² − n) / (n (n − 1)) in O(n d), z the rows at unit length. Raises ValueError for fewer than two
    rows, values that are not finite, or a row of zeros.
    """
    z = unit_rows(x, "x")
    n = len(z)
    return max(0.0, 1 - (float(z.sum(0).square().sum()) - n) / (n * (n - 1)))


def mean_pairwise_distance(x: Features) -> float:
    """Mean Euclidean distance over pairs of different rows of x (n, d), in feature units, >= 0.

    Takes O(n²) memory: meant for one prompt's images. Raises ValueError for fewer than two rows or values that are not
    finite.
    """
    return float(torch.nn.functional.pdist(as_features(x, "x")).mean())


def per_prompt(metric: Callable[[Features], float], x: Features, groups: Groups) -> np.ndarray:
    """metric of each group's rows (g,), in the sorted order of the distinct groups (that of `numpy.unique`).

    x (n, d), groups (n,) one prompt id a row. Average it over prompts, or give it to `aig.pareto.bootstrap`. Raises
    ValueError for a wrong number of groups; an error of the metric names the group.
    """
    labels, place = group_index(groups, len(x))
    values = np.empty(len(labels))
    for i, label in enumerate(labels):
        try:
            values[i] = metric(x[np.flatnonzero(place == i)])
        except ValueError as error:
            raise ValueError(f"group {label}: {error}") from error
    return values
