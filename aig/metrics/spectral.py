"""Spectral distances: how the spread of features changed, whatever became of their mean and orientation.

Reward tuning rightly moves mean and style, which a Fréchet distance and recall punish; a covariance spectrum ignores
translation and rotation, and sees a collapse of variance. Two rotated copies have distance 0, so show recall beside it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aig.metrics._inputs import Features, Groups, as_features, group_index
from aig.metrics.moments import Moments, moments_pair


def spectral_distance(ref: Features | Moments, gen: Features | Moments, *, allow_unequal_n: bool = False) -> float:
    """‖λ(Σ_ref) − λ(Σ_gen)‖₂ in squared feature units, >= 0: the Spectral Distance of arXiv 2409.06493.

    ref, gen: (n, d) or their Moments. Covariances have ddof = 1. Eigenvalues come sorted from `eigvalsh` in float64,
    clipped at 0: the unsorted ones of a nonsymmetric solver, as in the paper's code, give a large distance between two
    samples of one distribution.
    Raises ValueError for fewer than two rows, values that are not finite, different d, and unequal n, unless that is
    allowed: a sample spectrum depends on n, so that unequal n alone makes a distance.
    """
    values_ref, values_gen = _spectra(ref, gen, allow_unequal_n)
    return float(np.linalg.norm(values_ref - values_gen))


def log_spectral_distance(ref: Features | Moments, gen: Features | Moments, *, allow_unequal_n: bool = False) -> float:
    """‖log10(λ_ref + 1e-10) − log10(λ_gen + 1e-10)‖₂ in decades, >= 0; inputs and errors as in `spectral_distance`.

    All d eigenvalues count alike. With n <= d some are null and 1e-10 stands for them; `spectral_profile` leaves these
    out.
    """
    values_ref, values_gen = _spectra(ref, gen, allow_unequal_n)
    return float(np.linalg.norm(np.log10(values_ref + 1e-10) - np.log10(values_gen + 1e-10)))


@dataclass(frozen=True, eq=False)
class SpectralProfile:
    """The top of two spectra in decibels, 10 log10 of an eigenvalue in squared feature units, largest first."""

    ref: np.ndarray
    """(k,) dB"""
    gen: np.ndarray
    """(k,) dB"""

    @property
    def k(self) -> int:
        """How many eigenvalues hold the asked share of the reference's energy."""
        return len(self.ref)

    @property
    def distance(self) -> float:
        """Root mean square difference over the k eigenvalues, in dB, >= 0."""
        return float(np.sqrt(np.mean((self.gen - self.ref) ** 2)))

    @property
    def mean_log_ratio(self) -> float:
        """Mean of gen − ref in dB: negative where variance collapsed, −3 dB for half of the variance everywhere."""
        return float(np.mean(self.gen - self.ref))


def spectral_profile(
    ref: Features | Moments, gen: Features | Moments, *, energy: float = 0.99, allow_unequal_n: bool = False
) -> SpectralProfile:
    """Both spectra at the top eigenvalues that hold `energy`, in (0, 1], of the reference's trace: fit for n <= d.

    Eigenvalues of gen stop 100 dB under the reference's largest, so that a lost direction counts and stays finite. Its
    noise floor is the profile of two disjoint sets of base images of the same n. Inputs and errors as in
    `spectral_distance`; a reference without any variance is refused too.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}: give a share in (0, 1]")
    values_ref, values_gen = _spectra(ref, gen, allow_unequal_n)
    if values_ref[0] == 0:
        raise ValueError("ref has no variance, so its energy has no top: check the feature extractor")
    floor = 1e-10 * values_ref[0]
    share = np.cumsum(values_ref) / values_ref.sum()
    # The last share can round to less than an energy of 1; no eigenvalue under the floor is worth keeping.
    k = min(int(np.searchsorted(share, energy)) + 1, int((values_ref > floor).sum()))
    return SpectralProfile(10 * np.log10(values_ref[:k]), 10 * np.log10(np.maximum(values_gen[:k], floor)))


def within_prompt_moments(x: Features, groups: Groups) -> Moments:
    """Moments whose covariance() is the pooled within-group one.

    That is Σ_g Σ_i (x_i − mean_g)(x_i − mean_g)ᵀ / (n − number of groups).

    x (n, d), groups (n,) one prompt id a row. The result's n is the degrees of freedom plus one, its mean that of all
    rows; give it to the spectral measures, but do not merge it. Raises ValueError for bad features, a wrong number of
    groups, or no group with two rows.
    """
    rows = as_features(x, "x")
    labels, place = group_index(groups, len(rows))
    freedom = len(rows) - len(labels)
    if freedom < 1:
        raise ValueError(
            f"{len(labels)} groups for {len(rows)} rows leave no two rows in one group: use more seeds a prompt"
        )
    index = torch.from_numpy(place).to(rows.device)
    sums = rows.new_zeros(len(labels), rows.shape[1]).index_add_(0, index, rows)
    centred = rows - (sums / torch.bincount(index)[:, None])[index]
    return Moments(freedom + 1, rows.mean(0).cpu().numpy(), (centred.T @ centred).cpu().numpy())


def _spectra(
    ref: Features | Moments, gen: Features | Moments, allow_unequal_n: bool
) -> tuple[np.ndarray, np.ndarray]:  # (d,), (d,), largest first
    r, g = moments_pair(ref, gen)
    if r.n != g.n and not allow_unequal_n:
        raise ValueError(
            f"ref has n = {r.n} and gen n = {g.n}: a sample spectrum depends on n, so unequal n alone makes a "
            "distance; take equally many rows, or pass allow_unequal_n=True"
        )
    return _spectrum(r), _spectrum(g)


def _spectrum(moments: Moments) -> np.ndarray:
    return np.linalg.eigvalsh(moments.covariance())[::-1].clip(min=0)
