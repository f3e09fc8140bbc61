"""Maximum mean discrepancies: KID with its cubic kernel, and CMMD with a Gaussian one."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aig.metrics._inputs import Features, as_feature_pair, check_equal_n, unit_rows

BLOCK = 1024


class SubsetDistance(NamedTuple):
    """The result of `kernel_distance_subsets`, without unit."""

    mean: float
    std: float
    """Standard deviation over subsets, with ddof = 0 as in other packages."""


def kernel_distance(ref: Features, gen: Features, *, block: int = BLOCK) -> float:
    """Unbiased squared MMD of all rows with the kernel (x·y / d + 1)³ (Bińkowski et al. 2018, KID).

    It has no unit and can be negative. ref (n, d), gen (m, d); n and m may differ, since it is unbiased. Memory beside
    the features grows with block². Raises ValueError for fewer than two rows, values that are not finite, constant
    features, or different d.

    Examples:
        >>> x = np.eye(4)
        >>> round(aig.metrics.kernel_distance(x, 3 * x), 4), round(aig.metrics.cmmd(x, -x), 4)
        (-2.1797, 9.9007)
    """
    return _cubic_mmd(*as_feature_pair(ref, gen), block)


def kernel_distance_subsets(
    ref: Features, gen: Features, *, subsets: int = 100, size: int = 1000, seed: int = 2020, block: int = BLOCK
) -> SubsetDistance:
    """Mean and standard deviation of `kernel_distance` over random subsets of `size` rows, as papers report KID.

    Subsets are drawn as in torch-fidelity, so the same seed gives its figures. Subsets share rows, so the deviation is
    no confidence interval. Raises ValueError as `kernel_distance`, and for sets smaller than a subset.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(40, 4))
        >>> aig.metrics.kernel_distance_subsets(x, x + 3, subsets=5, size=20).mean > 1
        True
    """
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets is {subsets} and size {size}: give at least 1 subset of at least 2 rows")
    r, g = as_feature_pair(ref, gen, min_rows=size)
    # The legacy generator, since its draws are those of published figures.
    random = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        rows = [torch.from_numpy(random.choice(len(x), size, replace=False)).to(x.device) for x in (r, g)]
        values[i] = _cubic_mmd(r[rows[0]], g[rows[1]], block)
    return SubsetDistance(float(values.mean()), float(values.std()))


def cmmd(
    ref: Features,
    gen: Features,
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
    unbiased: bool = False,
    allow_unequal_n: bool = False,
    block: int = BLOCK,
) -> float:
    """Squared MMD of CLIP image embeddings with the kernel exp(−‖x − y‖² / 2σ²), times scale (Jayasumana et al. 2024).

    ref (n, d), gen (m, d); rows are scaled to unit length first, as in the paper's code. The default is that code's
    estimate, which is >= 0 and counts pairs of a row with itself: its bias depends on n, so unequal n is refused unless
    allowed. `unbiased` is the paper's equation, without these pairs, and can be negative. Memory beside the features
    grows with block². Raises ValueError as `kernel_distance`, and for a row of zeros.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}: give a bandwidth above 0")
    r, g = as_feature_pair(ref, gen)
    if not (unbiased or allow_unequal_n):
        check_equal_n(len(r), len(g), "the biased estimate depends on n")
    r, g = unit_rows(r, "ref"), unit_rows(g, "gen")
    centre = r.mean(0)

    # exp(·) − 1, whose 1 cancels in an MMD: at σ = 10 all kernels are within 2 % of 1.
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2)
        return torch.expm1(squared.clamp_(min=0).div_(-2 * sigma**2))

    return scale * _mmd(r - centre, g - centre, kernel, unbiased, block)


def _cubic_mmd(ref: Tensor, gen: Tensor, block: int) -> float:
    """The unbiased MMD with the kernel (x·y / d + 1)³, from rows around their mean c.

    With x = c + a and y = c + b, x·y / d + 1 = s + u + v + w, where s = c·c / d + 1, u = c·a / d, v = c·b / d and
    w = a·b / d. Terms of x or y alone cancel in an MMD: s³, 3s²(u + v), 3s(u² + v²) and u³ + v³ are left out, which at
    a large common offset would be all digits of the kernel.
    """
    d = ref.shape[1]
    c = (ref.mean(0) + gen.mean(0)) / 2
    s = float(c @ c) / d + 1

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        w = a @ b.T / d
        u, v = (a @ c / d)[:, None], b @ c / d
        p = s + u + v
        return w * (3 * p.square() + w * (3 * p + w)) + 3 * u * v * (p + s)

    return _mmd(ref - c, gen - c, kernel, True, block)


def _mmd(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], unbiased: bool, block: int) -> float:
    """Squared MMD (Gretton et al. 2012, equation 3; equation 5 if biased)."""

    def within(rows: Tensor) -> float:
        n = len(rows)
        if not unbiased:
            return _sum(rows, rows, kernel, block) / n**2
        own = sum(float(kernel(part, part).diagonal().sum()) for part in rows.split(block))
        return (_sum(rows, rows, kernel, block) - own) / (n * (n - 1))

    return within(x) + within(y) - 2 * _sum(x, y, kernel, block) / (len(x) * len(y))


def _sum(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], block: int) -> float:
    return sum(float(kernel(a, b).sum()) for a in x.split(block) for b in y.split(block))
