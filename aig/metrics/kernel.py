"""The kernel distance: maximum mean discrepancy with a cubic kernel."""

import torch

from aig.metrics._inputs import Features, as_feature_pair


def kernel_distance(ref: Features, gen: Features, *, block: int = 2048) -> float:
    """Unbiased squared MMD of all rows with the kernel (x·y / d + 1)³ (Bińkowski et al. 2018, KID).

    It has no unit and can be negative. ref (n, d), gen (m, d). Memory grows with block × max(n, m). Raises ValueError
    for fewer than two rows, values that are not finite, or different d.
    """
    r, g = as_feature_pair(ref, gen)
    return _mean_within(r, block) + _mean_within(g, block) - 2 * _sum(r, g, block) / (len(r) * len(g))


def _mean_within(x: torch.Tensor, block: int) -> float:
    """Mean kernel over ordered pairs of different rows: leaving out the diagonal makes the estimate unbiased."""
    diagonal = float(((x * x).sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_sum(x, x, block) - diagonal) / (len(x) * (len(x) - 1))


def _sum(x: torch.Tensor, y: torch.Tensor, block: int) -> float:
    return sum(float((rows @ y.T / x.shape[1] + 1).pow(3).sum()) for rows in x.split(block))
