"""Mean and covariance of a feature stream, in one pass and mergeable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

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
        """Add the rows of batch (n, d), in place, and return self.

        Float64 copies are made of `block` rows at a time, by default of 8 MiB.

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

    def to_arrow(self) -> pa.RecordBatch:
        """One row: n int64, mean and M2 (flat, row by row) lists of float64, 8 (d² + d + 1) bytes.

        It is what a worker returns, and rows of several are one table that `from_arrow` merges.
        """
        return pa.RecordBatch.from_pydict(
            {
                "n": pa.array([self.n], pa.int64()),
                "mean": pa.array([self.mean], pa.list_(pa.float64())),
                "M2": pa.array([self.M2.ravel()], pa.list_(pa.float64())),
            }
        )

    @classmethod
    def from_arrow(cls, rows: pa.Table | pa.RecordBatch) -> Moments:
        """Moments of all rows, one a worker, merged. Raises ValueError for other columns or arrays that do not fit."""
        missing = {"n", "mean", "M2"} - set(rows.schema.names)
        if missing:
            raise ValueError(f"columns {sorted(missing)} are missing from {rows.schema.names}: write it with to_arrow")
        columns = (rows["n"].to_pylist(), _rows_of(rows["mean"]), _rows_of(rows["M2"]))
        return cls.merged(cls.from_dict({"n": n, "mean": mean, "M2": M2}) for n, mean, M2 in zip(*columns, strict=True))

    def to_bytes(self) -> bytes:
        """`to_arrow` as an Arrow IPC stream; `from_bytes` undoes it."""
        batch, sink = self.to_arrow(), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Moments:
        """Moments out of `to_bytes`. Raises ValueError for other bytes."""
        try:
            return cls.from_arrow(pa.ipc.open_stream(data).read_all())
        except pa.ArrowInvalid as error:
            raise ValueError(f"these {len(data)} bytes are no moments ({error}): write them with to_bytes") from None


def _added(total: Moments, x: Features, name: str, block: int | None = None) -> Moments:
    if block is None:
        block = streamed(x)
    for start in range(0, len(x), block):
        rows = as_features(x[start : start + block], name, min_rows=1, first_row=start)
        mean = rows.mean(0)
        centred = rows - mean
        total = total.merge(Moments(len(rows), mean.cpu().numpy(), (centred.T @ centred).cpu().numpy()))
    return total


def _rows_of(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [np.asarray(row.values) for chunk in chunks for row in chunk]


def moments_pair(
    ref: Features | Moments, gen: Features | Moments, unequal_n: str | None = None, may_collapse: bool = False
) -> tuple[Moments, Moments]:
    """Moments of both, which must have at least two rows, some variance, equal d and, given a reason, equal n.

    may_collapse lets gen be Moments without variance, as within-prompt ones of copies are.
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
