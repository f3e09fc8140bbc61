"""The Vendi score: the effective number of different rows."""

import numpy as np
import torch
from torch import Tensor

from aig.metrics._inputs import Features, as_features, streamed, unit_rows


def vendi_score(x: Features, q: float = 1, *, bandwidth: float | None = None) -> float:
    """exp of the Rényi entropy of a kernel's eigenvalues over n, at least 1 (Friedman and Dieng 2023).

    x (n, d), q >= 0 the order: 0 counts distinct directions, 1 is Shannon's, inf sees the largest mode alone. It grows
    with n: fix n and report it. The kernel is the cosine, with scores up to min(n, d), in O(n d min(n, d)): the d × d
    matrix has the non-null eigenvalues of the n × n one, and for n > d rows are read in blocks. With a bandwidth in
    feature units the kernel is exp(−‖x − y‖² / 2 bandwidth²), with scores up to n, in O(n²) memory and O(n³) time.
    Raises ValueError for fewer than two rows, values that are not finite, a negative q, a row of zeros (cosine), or a
    bandwidth that is not above 0.

    Examples:
        >>> round(aig.metrics.vendi_score(np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])), 6)
        2.0
    """
    if not q >= 0:
        raise ValueError(f"q is {q}: give an order >= 0, or inf")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}: give one above 0 in feature units, or None for the cosine kernel")
    kernel = _cosine(x) if bandwidth is None else _gaussian(as_features(x, "x"), bandwidth)
    p = torch.linalg.eigvalsh(kernel / len(x)).cpu().numpy()
    # Null eigenvalues are computed as rounding, which a small q would count.
    p = p[p > max(x.shape) * np.finfo(np.float64).eps * p[-1]]
    if q == 1:
        return float(np.exp(-np.sum(p * np.log(p))))
    if np.isinf(q):
        return float(1 / p[-1])
    return float(np.sum(p**q) ** (1 / (1 - q)))


def _cosine(x: Features) -> Tensor:
    """z zᵀ or zᵀ z, whichever is smaller, of the rows z at unit length."""
    if x.ndim != 2 or x.shape[0] <= max(2, x.shape[1]):
        z = unit_rows(x, "x")
        return z @ z.T
    size, gram = streamed(x), torch.zeros((), dtype=torch.float64)
    for start in range(0, len(x), size):
        z = unit_rows(x[start : start + size], "x", 1, start)
        gram = gram.to(z.device) + z.T @ z
    return gram


def _gaussian(x: Tensor, bandwidth: float) -> Tensor:
    x = x - x.mean(0)
    square = x.square().sum(1)
    squared = torch.addmm(square[:, None] + square, x, x.T, alpha=-2).clamp_(min=0)
    return squared.fill_diagonal_(0).div_(-2 * bandwidth**2).exp_()
