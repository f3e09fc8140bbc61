"""Coverage by nearest neighbours: precision, recall, density and coverage; exact, over tiles of pairs of rows.

A tile is a block of rows against another. Its distances come from one matrix product with bounded rounding; pairs that
the bound leaves open are measured again by differences in float64. So the result depends neither on the tiles nor on a
common offset, and memory beside the features grows with the square of a block.

To spread the tiles of sets too large for one process over workers: `radii_tile` of every two blocks of a set, merged
per block by `merge_radii`, whose last column holds the squared radii; then `hits_tile` of every block of ref with every
block of gen, added up by `Hits.add`, and `Hits.scores`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from aig.metrics._distances import Block, blocks, differences, levels, tie
from aig.metrics._inputs import Features, as_feature_pair, as_features, check_dimensions, check_equal_n

BLOCK = 1024


class NeighbourScores(NamedTuple):
    """The four measures of `neighbour_scores`."""

    precision: float
    """In [0, 1]: the share of gen in a ball of ref."""
    recall: float
    """In [0, 1]: the share of ref in a ball of gen."""
    density: float
    """At least 0, about 1 for equal distributions: the mean number of balls of ref around a row of gen, over k."""
    coverage: float
    """In [0, 1]: the share of balls of ref that hold a row of gen."""


def neighbour_scores(
    ref: Features, gen: Features, k: int = 5, *, block: int = BLOCK, allow_unequal_n: bool = False
) -> NeighbourScores:
    """All of `precision_recall` and `density_coverage` for little more than the cost of one, with their errors.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(50, 4))
        >>> aig.metrics.neighbour_scores(x, x + 100)
        NeighbourScores(precision=0.0, recall=0.0, density=0.0, coverage=0.0)
    """
    r, g = _pair(ref, gen, k, allow_unequal_n)
    return _hits(r, g, _radii(r, k, block), _radii(g, k, block), block).scores(k)


def precision_recall(
    ref: Features, gen: Features, k: int = 5, *, block: int = BLOCK, allow_unequal_n: bool = False
) -> tuple[float, float]:
    """Improved precision and recall, each in [0, 1] (Kynkäänniemi et al. 2019).

    Precision is the share of gen inside some ball around a reference row that reaches its k-th nearest other reference
    row; recall is the same with the sets exchanged. Balls are open, as in prdc, so a row that occurs k + 1 times or
    more has an empty one. ref (n, d), gen (m, d), on CPU or GPU. Memory beside the features grows with block²; the
    result does not depend on block. Raises ValueError for fewer than k + 1 rows, values that are not finite, constant
    features, different d, and unequal n unless allowed: more rows make smaller balls.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(50, 4))
        >>> aig.metrics.precision_recall(x, x), aig.metrics.density_coverage(x, x)[1]
        ((1.0, 1.0), 1.0)
    """
    scores = neighbour_scores(ref, gen, k, block=block, allow_unequal_n=allow_unequal_n)
    return scores.precision, scores.recall


def density_coverage(
    ref: Features, gen: Features, k: int = 5, *, block: int = BLOCK, allow_unequal_n: bool = False
) -> tuple[float, float]:
    """Density, >= 0 and about 1 for equal distributions, and coverage in [0, 1] (Naeem et al. 2020).

    Density is the mean over gen of the number of reference balls around it, over k; coverage is the share of reference
    balls that hold a row of gen. Balls, inputs, memory and errors as in `precision_recall`.
    """
    r, g = _pair(ref, gen, k, allow_unequal_n)
    scores = _hits(r, g, _radii(r, k, block), None, block).scores(k)
    return scores.density, scores.coverage


# Tiles


def radii_tile(
    x: Features, y: Features | None, k: int, bound_x: Features | None = None, bound_y: Features | None = None
) -> tuple[Tensor, Tensor]:
    """Squared distances of each row of x (n, d) to its k nearest rows of y (m, d), and of each row of y to those of x.

    Returns (n, k) and (m, k) in float64, ascending, inf for missing neighbours. y = None stands for x itself, no row
    its own neighbour; both results are then the same. bound_x (n,) and bound_y (m,) are the last column of
    `merge_radii` of earlier tiles: distances beyond them may be returned as inf, which saves time. Raises ValueError
    for values that are not finite or different d.

    Examples:
        >>> x, y = np.array([[0.0], [1.0]]), np.array([[3.0], [9.0]])
        >>> own, (other, _) = aig.metrics.radii_tile(x, None, k=1)[0], aig.metrics.radii_tile(x, y, k=1)
        >>> radii = aig.metrics.merge_radii(own, other)[:, -1]  # squared, to the nearest other row
        >>> radii.tolist(), aig.metrics.hits_tile(x, y / 3, radii, None).gen_rows.tolist()
        ([1.0, 1.0], [0, 1])
    """
    a = as_features(x, "x", 1, keep_float32=True)
    within_x = None if bound_x is None else _radius(bound_x, "bound_x", a)
    if y is None:
        return _radii_tile(blocks(a)[0], None, k, within_x, None)
    b = as_features(y, "y", 1, keep_float32=True).to(a.device)
    check_dimensions(a.shape[1], b.shape[1], "x", "y")
    of_x, of_y = blocks(a, b)
    return _radii_tile(of_x, of_y, k, within_x, None if bound_y is None else _radius(bound_y, "bound_y", b))


def merge_radii(*tiles: Tensor) -> Tensor:
    """Merge the results (n, k) of `radii_tile` for one block of rows, in any order: the k smallest, ascending."""
    return torch.cat(tiles, 1).sort(1).values[:, : tiles[0].shape[1]]


def hits_tile(ref: Features, gen: Features, radii_ref: Features, radii_gen: Features | None) -> Hits:
    """Count for each row the rows of gen (m, d) in balls of ref (n, d), and the reverse.

    radii_ref (n,) and radii_gen (m,) are squared, the last column of `merge_radii` over all tiles of the whole sets;
    without radii_gen nothing is counted for recall. Raises ValueError for values that are not finite, different d, or
    another number of radii.
    """
    r = as_features(ref, "ref", 1, keep_float32=True)
    g = as_features(gen, "gen", 1, keep_float32=True).to(r.device)
    check_dimensions(r.shape[1], g.shape[1])
    of_ref, of_gen = blocks(r, g)
    around_gen = None if radii_gen is None else _radius(radii_gen, "radii_gen", g)
    return _hits_tile(of_ref, of_gen, _radius(radii_ref, "radii_ref", r), around_gen)


@dataclass(eq=False)
class Hits:
    """Counts of rows in balls, for a tile or whole sets of n rows of ref and m of gen.

    Examples:
        >>> total = aig.metrics.Hits.none(n=2, m=3)
        >>> total.add(aig.metrics.Hits(torch.tensor([1]), torch.tensor([1]), torch.tensor([0])), 1, 2)
        >>> total.scores(k=1)
        NeighbourScores(precision=0.3333333333333333, recall=0.0, density=0.3333333333333333, coverage=0.5)
    """

    ref_balls: Tensor
    """(m,) int64, balls of ref around each row of gen."""
    gen_rows: Tensor
    """(n,) int64, rows of gen in each ball of ref."""
    gen_balls: Tensor
    """(n,) int64, balls of gen around each row of ref."""

    @classmethod
    def none(cls, n: int, m: int, device: torch.device | str = "cpu") -> Hits:
        """Zeros, to add tiles to."""
        return cls(*(torch.zeros(rows, dtype=torch.int64, device=device) for rows in (m, n, n)))

    def add(self, tile: Hits, ref_start: int, gen_start: int) -> None:
        """Add the counts of a tile that starts at these rows of the whole sets, in any order."""
        of_ref = slice(ref_start, ref_start + len(tile.gen_rows))
        self.ref_balls[gen_start : gen_start + len(tile.ref_balls)] += tile.ref_balls
        self.gen_rows[of_ref] += tile.gen_rows
        self.gen_balls[of_ref] += tile.gen_balls

    def scores(self, k: int) -> NeighbourScores:
        """The four measures, once all tiles of the whole sets have been added."""

        def share(counts: Tensor) -> float:
            return int((counts > 0).sum()) / len(counts)

        density = int(self.ref_balls.sum()) / (k * len(self.ref_balls))
        return NeighbourScores(share(self.ref_balls), share(self.gen_balls), density, share(self.gen_rows))


def _radius(radii: Features, name: str, rows: Tensor) -> Tensor:
    squared = torch.as_tensor(radii).to(rows.device, torch.float64)
    if squared.shape != (len(rows),):
        shape = tuple(squared.shape)
        raise ValueError(f"{name} has shape {shape} for {len(rows)} rows: give one squared distance per row")
    return squared


def _pair(ref: Features, gen: Features, k: int, allow_unequal_n: bool) -> list[Block]:
    if k < 1:
        raise ValueError(f"k is {k}: give the number of neighbours, at least 1")
    r, g = as_feature_pair(ref, gen, k + 1, keep_float32=True)
    if not allow_unequal_n:
        check_equal_n(len(r), len(g), "the size of a ball depends on n")
    return blocks(r, g)


def _radii(x: Block, k: int, block: int) -> Tensor:
    """Squared distance (n,) of each row to its k-th nearest other row."""
    parts = x.split(block)
    # Each block with itself first: its radii bound the search in the other tiles.
    nearest = [_radii_tile(part, None, k, None, None)[0] for part in parts]
    for i, j in combinations(range(len(parts)), 2):
        of_i, of_j = _radii_tile(parts[i], parts[j], k, nearest[i][:, -1], nearest[j][:, -1])
        nearest[i], nearest[j] = merge_radii(nearest[i], of_i), merge_radii(nearest[j], of_j)
    return torch.cat(nearest)[:, -1]


def _hits(ref: Block, gen: Block, radii_ref: Tensor, radii_gen: Tensor | None, block: int) -> Hits:
    total = Hits.none(len(ref.rows), len(gen.rows), ref.rows.device)
    for i, of_ref in enumerate(ref.split(block)):
        for j, of_gen in enumerate(gen.split(block)):
            rows, columns = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            tile = _hits_tile(of_ref, of_gen, radii_ref[rows], None if radii_gen is None else radii_gen[columns])
            total.add(tile, rows.start, columns.start)
    return total


def _radii_tile(
    x: Block, y: Block | None, k: int, bound_x: Tensor | None, bound_y: Tensor | None
) -> tuple[Tensor, Tensor]:
    other = x if y is None else y
    for squared, error in levels(x, other):
        if y is None:
            squared.fill_diagonal_(torch.inf)
        of_x = _nearest(squared, error, x, other, k, bound_x)
        if of_x is None:
            continue
        of_y = of_x if y is None else _nearest(squared.T, error, other, x, k, bound_y)
        if of_y is not None:
            return of_x, of_y
    raise AssertionError("the last level has no error, so it leaves nothing open")


def _nearest(squared: Tensor, error: float, x: Block, y: Block, k: int, bound: Tensor | None) -> Tensor | None:
    """The k smallest exact distances (n, k) of each row of x to rows of y; None if too many pairs are open."""
    n, m = squared.shape
    if error == 0:
        nearest = x.rows.new_full((n, k), torch.inf, dtype=torch.float64)
        nearest[:, : min(k, m)] = squared.topk(min(k, m), dim=1, largest=False).values
        return nearest
    few = n * m // 64 + 2 * k * n  # pairs that are cheaper to measure one by one than the tile at the next level
    if bound is not None and torch.isfinite(bound).all():
        open_ = squared <= (bound + error).to(squared.dtype)[:, None]
        if int(open_.sum()) <= few:
            return _smallest(open_, x, y, k)
    # The k-th smallest plus its error bounds the k-th distance; any pair within it, less its own error, may be nearer.
    reach = squared.topk(min(k, m), dim=1, largest=False).values[:, -1].double() + 2 * error
    open_ = (squared <= reach.to(squared.dtype)[:, None]) & (squared < torch.inf)
    return _smallest(open_, x, y, k) if int(open_.sum()) <= few else None


def _smallest(open_: Tensor, x: Block, y: Block, k: int) -> Tensor:
    """The k smallest exact distances (n, k) among each row's open pairs (n, m), padded by inf."""
    pairs = open_.nonzero()
    squared, order = differences(x, y, pairs).sort()
    row, again = pairs[order, 0].sort(stable=True)
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    kept = rank < k
    nearest = x.rows.new_full((len(x.rows), k), torch.inf, dtype=torch.float64)
    nearest[row[kept], rank[kept]] = squared[again][kept]
    return nearest


def _hits_tile(ref: Block, gen: Block, radii_ref: Tensor, radii_gen: Tensor | None) -> Hits:
    # The sets often share images (an arm that equals the base), and a copy of the k-th neighbour is on the ball's
    # surface: outside, whatever the rounding.
    shrink = 1 - tie(ref.rows.shape[1])
    for squared, error in levels(ref, gen):
        in_ref = _below(squared, error, ref, gen, (radii_ref * shrink)[:, None])
        if in_ref is None:
            continue
        ref_balls, gen_rows = in_ref.sum(0), in_ref.sum(1)
        if radii_gen is None:
            return Hits(ref_balls, gen_rows, torch.zeros_like(gen_rows))
        in_gen = _below(squared, error, ref, gen, (radii_gen * shrink)[None])
        if in_gen is not None:
            return Hits(ref_balls, gen_rows, in_gen.sum(1))
    raise AssertionError("the last level has no error, so it leaves nothing open")


def _below(squared: Tensor, error: float, x: Block, y: Block, limit: Tensor) -> Tensor | None:
    """Whether each exact distance is below the limit, (n, 1) or (1, m); None if too many pairs are open."""
    surely = squared < (limit - error).to(squared.dtype)
    open_ = (squared < (limit + error).to(squared.dtype)) ^ surely
    n, m = squared.shape
    if int(open_.sum()) > n * m // 64 + 16 * (n + m):
        return None
    pairs = open_.nonzero()
    surely[pairs[:, 0], pairs[:, 1]] = differences(x, y, pairs) < limit.expand(n, m)[pairs[:, 0], pairs[:, 1]]
    return surely
