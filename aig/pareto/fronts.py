"""Pareto-optimal points and dominated volumes, all objectives maximized."""

from __future__ import annotations

import math
from collections.abc import Sequence

import moocore
import numpy as np


def optimal_mask(points: np.ndarray) -> np.ndarray:
    """Whether each of the points (..., n, m), all objectives maximized, is dominated by no other: bool (..., n).

    A point dominates another if it is at least as good in every objective and better in one; so a point that ties in
    one objective and loses in another is not optimal, and duplicates of an optimal point are all optimal. Points with a
    value that is not finite are never optimal and dominate nothing. Leading dimensions are separate sets. Raises
    ValueError for fewer than two dimensions.

    Examples:
        >>> aig.pareto.optimal_mask(np.array([[0, 2], [1, 1], [2, 0], [0.5, 0.5]])).tolist()
        [True, True, True, False]
    """
    points = finite_or_nan(points)
    if points.ndim < 2:
        raise ValueError(f"points has shape {points.shape}: give (n, objectives)")
    dominated = dominates(points[..., :, None, :], points[..., None, :, :]).any(-2)
    return np.asarray(~dominated & ~np.isnan(points).any(-1))


def hypervolume(points: np.ndarray, reference: Sequence[float] | np.ndarray) -> float:
    """Volume between the reference (m,) and the points (n, m), all objectives maximized, >= 0, in their units' product.

    A point that is not above the reference in every objective adds nothing, nor does one with a value that is not
    finite. Without points it is 0. Raises ValueError for other shapes or for a reference that is not finite.

    Examples:
        >>> aig.pareto.hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), reference=[0, 0])
        3.0
    """
    points = np.asarray(points, np.float64)
    reference = np.asarray(reference, np.float64)
    if points.ndim != 2 or reference.shape != points.shape[1:]:
        raise ValueError(f"points has shape {points.shape} and reference {reference.shape}: give (n, m) and (m,)")
    if not np.isfinite(reference).all():
        raise ValueError(f"reference is {reference}: give finite values, worse than the points of interest")
    above = points[np.isfinite(points).all(1) & (points > reference).all(1)]
    return float(moocore.hypervolume(above, ref=reference, maximise=True)) if len(above) else 0.0


def mean_hypervolume(points: np.ndarray, size: int, ends: np.ndarray) -> np.ndarray:
    """Mean hypervolume over all subsets of `size` of the points, each with all the ends: (...), >= 0.

    points (..., n, 2) and ends (..., e, 2) are relative to the reference, both objectives maximized; leading dimensions
    are separate sets. The mean is exact: of n points sorted by a value, the r-th is the best of a random subset with
    probability C(n − r, size − 1) / C(n, size), and between two neighbouring x every point further right bounds y. With
    size = n it is the hypervolume; points add nothing as there. Raises ValueError for a size out of range.

    Examples:
        >>> points = np.array([[1.0, 1.0], [3.0, 1.0]])
        >>> aig.pareto.mean_hypervolume(points, size=1, ends=np.empty((0, 2)))
        array(2.)
    """
    n, count = points.shape[-2], points.shape[-2] + ends.shape[-2]
    if not 0 <= size <= n or (n and not size):
        raise ValueError(f"size is {size} of {n} points: give at least 1 and at most all")
    best = np.array([math.comb(n - r, size - 1) / math.comb(n, size) for r in range(1, n + 1)])
    every = np.concatenate([points, ends], axis=-2)
    every = np.where((np.isfinite(every) & (every > 0)).all(-1, keepdims=True), every, 0.0)
    order = np.argsort(-every[..., 0], axis=-1, kind="stable")
    x, y = (np.take_along_axis(every[..., axis], order, -1) for axis in (0, 1))
    width = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    total = np.zeros(every.shape[:-2])
    for right in range(1, count + 1):
        inner, height = order[..., :right] < n, y[..., :right]
        floor = np.where(inner, 0.0, height).max(-1)
        above = np.where(inner, height - floor[..., None], 0.0).clip(min=0)
        above = -np.sort(-above, axis=-1)[..., :n]
        total += width[..., right - 1] * (floor + above @ best[: above.shape[-1]])
    return total


def attainment(sets: Sequence[np.ndarray] | np.ndarray, share: float) -> np.ndarray:
    """Corners (k, m) of the region that at least a share, in (0, 1], of the sets attain, all objectives maximized.

    sets: each (n_i, m), m = 2 or 3, for example the replicates of one front. A set attains a place if one of its points
    is at least as good there in every objective (Grunert da Fonseca et al. 2001): share 0.5 gives the median front.
    Points that are not finite attain nothing. Corners do not dominate one another; there are none if too few sets
    attain anything. Raises ValueError for no sets, other shapes, or another share.

    Examples:
        >>> aig.pareto.attainment([[[1.0, 1.0]], [[2.0, 2.0]], [[3.0, 3.0]]], share=0.5)
        array([[2., 2.]])
    """
    rows = [np.asarray(points, np.float64) for points in sets]
    if not rows or any(points.ndim != 2 or points.shape[1] not in (2, 3) for points in rows):
        raise ValueError(f"sets have shapes {[points.shape for points in rows][:5]}: give (n, 2) or (n, 3) each")
    if len({points.shape[1] for points in rows}) > 1 or not 0 < share <= 1:
        raise ValueError(f"share is {share}, sets of {len(rows)}: give a share in (0, 1] and one number of objectives")
    m, needed = rows[0].shape[1], int(np.ceil(share * len(rows) - 1e-9))
    rows = [points[np.isfinite(points).all(1)] for points in rows]
    rows = [points for points in rows if len(points)]
    if len(rows) < needed:
        return np.empty((0, m))
    # Half a set less, since moocore rounds a percentage of the sets up; it minimizes, hence the signs.
    percent = 100 * (needed - 0.5) / len(rows)
    owner = np.repeat(np.arange(1, len(rows) + 1), [len(points) for points in rows])
    return -moocore.eaf(-np.concatenate(rows), owner, percentiles=[percent])[:, :m]


def finite_or_nan(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def dominates(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a is at least as good in every objective (last dimension) and better in one; false for NaN."""
    return np.asarray((a >= b).all(-1) & (a > b).any(-1))
