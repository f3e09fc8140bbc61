"""Coverage by nearest neighbours: precision, recall, density, coverage. Exact, in blocks of rows."""

from collections.abc import Iterator

import torch

from aig.metrics._inputs import Features, as_feature_pair


def precision_recall(ref: Features, gen: Features, k: int = 5, *, block: int = 512) -> tuple[float, float]:
    """Improved precision and recall, each in [0, 1] (Kynkäänniemi et al. 2019).

    Precision is the share of gen inside some ball around a reference row that reaches its k-th nearest other reference
    row; recall is the same with the sets exchanged. Balls are open, as in prdc, so a row that stands k + 1 times or
    more has an empty one. ref (n, d), gen (m, d), on CPU or GPU. Memory grows with block × max(n, m) beside the
    features; the result does not depend on block.
    Raises ValueError for fewer than k + 1 rows, values that are not finite, or different d.
    """
    r, g = _centred_pair(ref, gen, k)
    radius_ref, radius_gen = _radii(r, k, block), _radii(g, k, block)
    precise = torch.zeros(len(g), dtype=torch.bool, device=r.device)
    recalled = 0
    for rows, squared in _blocks(r, g, block):
        precise |= (squared < radius_ref[rows, None]).any(0)
        recalled += int((squared < radius_gen).any(1).sum())
    return float(precise.double().mean()), recalled / len(r)


def density_coverage(ref: Features, gen: Features, k: int = 5, *, block: int = 512) -> tuple[float, float]:
    """Density, >= 0 and about 1 for equal distributions, and coverage in [0, 1] (Naeem et al. 2020).

    Density is the mean over gen of the number of reference balls around it, over k; coverage is the share of reference
    balls that hold a row of gen. Balls, inputs, memory and errors as in `precision_recall`.
    """
    r, g = _centred_pair(ref, gen, k)
    radius = _radii(r, k, block)
    held = covered = 0
    for rows, squared in _blocks(r, g, block):
        inside = squared < radius[rows, None]
        held += int(inside.sum())
        covered += int(inside.any(1).sum())
    return held / (k * len(g)), covered / len(r)


def _centred_pair(ref: Features, gen: Features, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    if k < 1:
        raise ValueError(f"k is {k}: give the number of neighbours, at least 1")
    r, g = as_feature_pair(ref, gen, min_rows=k + 1)
    # Distances come from squared norms less products, which would cancel at a large common offset.
    mean = r.mean(0)
    return r - mean, g - mean


def _radii(x: torch.Tensor, k: int, block: int) -> torch.Tensor:
    """Squared distance (n,) of each row to its k-th nearest other row, less what rounding can add."""
    # k + 1, since a row is at distance 0 from itself.
    squared = torch.cat([s.topk(k + 1, dim=1, largest=False).values[:, -1] for _, s in _blocks(x, x, block)])
    # Images are often shared between the sets (an arm that equals the base), and a copy of the k-th neighbour stands on
    # the ball's surface: outside, whatever the rounding. For a row y near that surface ‖x‖² + ‖y‖² is at most 3‖x‖² +
    # 2r².
    resolution = 4 * x.shape[1] ** 0.5 * torch.finfo(x.dtype).eps
    return squared - resolution * (3 * (x * x).sum(1) + 2 * squared)


def _blocks(x: torch.Tensor, y: torch.Tensor, block: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Squared distances (block, m) of blocks of rows of x to all rows of y."""
    xx, yy = (x * x).sum(1), (y * y).sum(1)
    for start in range(0, len(x), block):
        rows = slice(start, min(start + block, len(x)))
        yield rows, torch.addmm(xx[rows, None] + yy, x[rows], y.T, alpha=-2)
