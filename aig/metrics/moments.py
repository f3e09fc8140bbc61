"""Mean and covariance of a feature stream, in one pass and mergeable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from aig.metrics._inputs import (
    FeatureError,
    Features,
    as_features,
    check_dimensions,
    check_equal_n,
    check_varied,
    streamed,
)


@dataclass(eq=False)
class Moments:
    """Count, mean and centred sum of products of features of dimension d, in float64.

    `Moments()` is empty and merges with any d. Sums of squares would lose 8 % of the trace at a common offset of 1e3 in
    float32; centred sums do not.

    Examples:
        >>> a, b = aig.metrics.Moments.of(np.eye(2)), aig.metrics.Moments().update(2 * np.eye(2))
        >>> a.merge(b).n, a.merge(b).mean.tolist()
        (4, [0.75, 0.75])
    """

    n: int = 0
    """Number of rows."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(d,)"""
    M2: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(d, d), the sum over rows of (x - mean)(x - mean)ᵀ."""

    @classmethod
    def of(cls, x: Features) -> Moments:
        """Moments of the rows of x (n, d). Raises ValueError for another shape or for values that are not finite."""
        return cls().update(x)

    def update(self, batch: Features, block: int | None = None) -> Moments:
        """Add the rows of batch (n, d), in place, and return self; float64 copies hold `block` rows, by default 8 MiB.

        Raises ValueError, and changes nothing, for another d than before or for values that are not finite.
        """
        total = _added(self, batch, "batch", block)
        self.n, self.mean, self.M2 = total.n, total.mean, total.M2
        return self

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together, as a new object (Chan, Golub and LeVeque 1979, pairwise update)."""
        if self.n == 0 or other.n == 0:
            full = other if self.n == 0 else self
            return Moments(full.n, full.mean.copy(), full.M2.copy())
        check_dimensions(len(self.mean), len(other.mean), "one set of rows", "the other")
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * (other.n / n),
            self.M2 + other.M2 + np.outer(delta, delta) * (self.n * other.n / n),
        )

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of the rows of all parts together; `Moments()` for none."""
        total = cls()
        for part in parts:
            total = total.merge(part)
        return total

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Covariance (d, d), in squared feature units: M2 / (n - ddof). Raises ValueError unless n > ddof."""
        if self.n <= ddof:
            raise ValueError(f"a covariance with ddof = {ddof} needs more than {ddof} rows, got {self.n}: add images")
        return self.M2 / (self.n - ddof)


def _added(total: Moments, x: Features, name: str, block: int | None = None) -> Moments:
    if block is None:
        block = streamed(x)
    for start in range(0, len(x), block):
        rows = as_features(x[start : start + block], name, min_rows=1, first_row=start)
        mean = rows.mean(0)
        centred = rows - mean
        total = total.merge(Moments(len(rows), mean.cpu().numpy(), (centred.T @ centred).cpu().numpy()))
    return total


def moments_pair(
    ref: Features | Moments, gen: Features | Moments, unequal_n: str | None = None, may_collapse: bool = False
) -> tuple[Moments, Moments]:
    """Moments of both, which must have at least two rows, some variance, equal d and, given a reason, equal n.

    may_collapse admits Moments of gen without variance, such as within-prompt ones of copies.
    """
    r = ref if isinstance(ref, Moments) else _added(Moments(), ref, "ref")
    g = gen if isinstance(gen, Moments) else _added(Moments(), gen, "gen")
    for name, moments in (("ref", r), ("gen", g)):
        if moments.n < 2:
            raise FeatureError(f"{name} has {moments.n} rows, fewer than the 2 needed: generate more images")
    check_dimensions(len(r.mean), len(g.mean))
    checked = {"ref": r} if may_collapse and isinstance(gen, Moments) else {"ref": r, "gen": g}
    for name, moments in checked.items():
        # Copies of one row may differ from their mean by its rounding.
        rounding = (16 * np.finfo(np.float64).eps * np.abs(moments.mean)) ** 2
        check_varied(bool((np.diag(moments.M2) > moments.n * rounding).any()), name, moments.n)
    if unequal_n is not None:
        check_equal_n(r.n, g.n, unequal_n)
    return r, g
