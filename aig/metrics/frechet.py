"""The Fréchet distance of two Gaussians fitted to features."""

import numpy as np

from aig.metrics._inputs import Features
from aig.metrics.moments import Moments, moments_pair


def frechet_distance(ref: Features | Moments, gen: Features | Moments, *, allow_unequal_n: bool = False) -> float:
    """‖μ_ref − μ_gen‖² + tr(Σ_ref + Σ_gen − 2 (Σ_ref Σ_gen)^½) in squared feature units, >= 0 (Dowson and Landau 1982).

    With Inception features it is FID. ref, gen: (n, d) or their Moments; ddof = 1.
    Raises ValueError for fewer than two rows, values that are not finite, constant features, different d, and unequal n
    unless allowed: the bias shrinks with n, so compare arms at equal n.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 4))
        >>> round(aig.metrics.frechet_distance(x, aig.metrics.Moments.of(x + 1)), 6)
        4.0
    """
    r, g = moments_pair(ref, gen, None if allow_unequal_n else "the distance's bias depends on n")
    cov_ref, cov_gen = r.covariance(), g.covariance()
    # With Σ = F Fᵀ, tr (Σ_ref Σ_gen)^½ is the sum of the singular values of F_refᵀ F_gen. Eigenvalues of the product
    # would have to be rooted, which turns rounding of 1e-16 into 1e-8 for every null direction.
    cross = np.linalg.svd(_factor(cov_ref).T @ _factor(cov_gen), compute_uv=False).sum()
    delta = r.mean - g.mean
    return max(0.0, float(delta @ delta + np.trace(cov_ref) + np.trace(cov_gen) - 2 * cross))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (d, rank) with F Fᵀ = covariance, by a symmetric eigendecomposition without eigenvalues that are rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])
