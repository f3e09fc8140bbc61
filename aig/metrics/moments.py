"""Mean and covariance of a feature stream, in one pass and mergeable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aig.metrics._inputs import Features, as_features, check_dimensions


@dataclass(eq=False)
class Moments:
    """Count, mean and centred sum of products of features of dimension d, in float64.

    `Moments()` is empty and merges with any d. Sums of squares would lose 8 % of the trace at a common offset of 1e3 in
    float32; centred sums do not.
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

    def update(self, batch: Features, block: int = 8192) -> Moments:
        """Add the rows of batch (n, d), in place, and return self. Float64 copies are made of `block` rows at a time.

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

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Covariance (d, d), in squared feature units: M2 / (n - ddof). Raises ValueError unless n > ddof."""
        if self.n <= ddof:
            raise ValueError(f"a covariance with ddof = {ddof} needs more than {ddof} rows, got {self.n}: add images")
        return self.M2 / (self.n - ddof)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Plain numpy arrays: n () int64, mean (d,) and M2 (d, d) float64; `from_dict` undoes it."""
        return {"n": np.array(self.n, np.int64), "mean": self.mean, "M2": self.M2}

    @classmethod
    def from_dict(cls, arrays: Mapping[str, np.ndarray]) -> Moments:
        """Moments out of `to_dict`'s arrays, where M2 may be flat. Raises ValueError where they do not fit together."""
        n, mean = int(arrays["n"]), np.array(arrays["mean"], np.float64)
        M2 = np.array(arrays["M2"], np.float64)
        if n < 0 or mean.ndim != 1 or M2.size != mean.size**2:
            raise ValueError(f"n = {n}, mean {mean.shape} and M2 {M2.shape} are no moments: write them with to_dict")
        return cls(n, mean, M2.reshape(mean.size, mean.size))


def _added(total: Moments, x: Features, name: str, block: int = 8192) -> Moments:
    for start in range(0, len(x), block):
        rows = as_features(x[start : start + block], name, min_rows=1, first_row=start)
        mean = rows.mean(0)
        centred = rows - mean
        total = total.merge(Moments(len(rows), mean.cpu().numpy(), (centred.T @ centred).cpu().numpy()))
    return total


def moments_pair(ref: Features | Moments, gen: Features | Moments) -> tuple[Moments, Moments]:
    """Moments of both, which must have at least two rows and equal d."""
    r = ref if isinstance(ref, Moments) else _added(Moments(), ref, "ref")
    g = gen if isinstance(gen, Moments) else _added(Moments(), gen, "gen")
    for name, moments in (("ref", r), ("gen", g)):
        if moments.n < 2:
            raise ValueError(f"{name} has {moments.n} rows, fewer than the 2 needed: generate more images")
    check_dimensions(len(r.mean), len(g.mean))
    return r, g
