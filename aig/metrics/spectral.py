"""Spectral distances: how the spread of features changed, regardless of their mean and orientation.

Reward tuning rightly moves mean and style, which a Fréchet distance and recall punish; a covariance spectrum ignores
translation and rotation, and sees a collapse of variance. Two rotated copies have distance 0, so show recall beside it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aig.metrics._inputs import Features, Groups, as_features, as_labels, group_index
from aig.metrics.moments import Moments, moments_pair


def spectral_distance(ref: Features | Moments, gen: Features | Moments, *, allow_unequal_n: bool = False) -> float:
    """‖λ(Σ_ref) − λ(Σ_gen)‖₂ in squared feature units, >= 0: the Spectral Distance of arXiv 2409.06493.

    ref, gen: (n, d) or their Moments. Covariances have ddof = 1. Eigenvalues come sorted from `eigvalsh` in float64,
    clipped at 0: the unsorted ones of a nonsymmetric solver, as in the paper's code, give a large distance between two
    samples of one distribution. Raises ValueError for fewer than two rows, values that are not finite, constant
    features, different d, and unequal n unless allowed: a sample spectrum depends on n, so unequal n alone makes a
    distance.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> y = x * np.sqrt(10) @ [[0, 1], [-1, 0]] + 5  # rotated, moved, of ten times the variance
        >>> round(aig.metrics.log_spectral_distance(x, y), 6)
        1.414214
        >>> aig.metrics.spectral_distance(x, x[:, ::-1]) < 1e-12
        True
    """
    values_ref, values_gen = _spectra(ref, gen, allow_unequal_n)
    return float(np.linalg.norm(values_ref - values_gen))


def log_spectral_distance(ref: Features | Moments, gen: Features | Moments, *, allow_unequal_n: bool = False) -> float:
    """‖log10(λ_ref + 1e-10) − log10(λ_gen + 1e-10)‖₂ in decades, >= 0; inputs and errors as in `spectral_distance`.

    All d eigenvalues have equal weight. With n <= d some are null and count as 1e-10; `spectral_profile` omits these.
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
    noise_floor: float | None = None
    """The distance of two halves of the reference in dB, if given: at most what sampling alone causes."""

    @property
    def k(self) -> int:
        """The number of eigenvalues that hold the requested share of the reference's energy."""
        return len(self.ref)

    @property
    def distance(self) -> float:
        """Root mean square difference over the k eigenvalues, in dB, >= 0."""
        return float(np.sqrt(np.mean((self.gen - self.ref) ** 2)))

    @property
    def mean_log_ratio(self) -> float:
        """Mean of gen − ref in dB: negative if variance collapsed, −3 dB for half of the variance everywhere."""
        return float(np.mean(self.gen - self.ref))


def spectral_profile(
    ref: Features | Moments,
    gen: Features | Moments,
    *,
    energy: float = 0.99,
    halves: tuple[Features | Moments, Features | Moments] | None = None,
    allow_unequal_n: bool = False,
) -> SpectralProfile:
    """Both spectra at the top eigenvalues that hold `energy`, in (0, 1], of the reference's trace: fit for n <= d.

    Eigenvalues of gen are clipped 100 dB under the reference's largest, so a lost direction counts and stays finite;
    gen's Moments may have no variance, since within-prompt ones of copies have none. halves are two disjoint sets of
    base images (`seed_halves`) for the noise floor, the distance of the second's profile from the first's; with n / 2
    rows each, that floor is about √2 times that of n. Inputs and errors as in `spectral_distance`.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 4))
        >>> profile = aig.metrics.spectral_profile(x, x / np.sqrt(2), energy=0.9)
        >>> profile.k, round(profile.mean_log_ratio, 2), isinstance(profile, aig.metrics.SpectralProfile)
        (4, -3.01, True)
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}: give a share in (0, 1]")
    values_ref, values_gen = _spectra(ref, gen, allow_unequal_n, may_collapse=True)
    floor = 1e-10 * values_ref[0]
    share = np.cumsum(values_ref) / values_ref.sum()
    # The last share can round to less than an energy of 1; no eigenvalue under the floor is worth keeping.
    k = min(int(np.searchsorted(share, energy)) + 1, int((values_ref > floor).sum()))
    noise = None if halves is None else spectral_profile(*halves, energy=energy, allow_unequal_n=True).distance
    return SpectralProfile(10 * np.log10(values_ref[:k]), 10 * np.log10(np.maximum(values_gen[:k], floor)), noise)


def spectral_profiles(
    ref: Features, gen: Features, ref_groups: Groups, gen_groups: Groups | None = None, *, energy: float = 0.99
) -> dict[str, SpectralProfile]:
    """`pooled` and `within` (within prompts) profiles of ref and gen, each (n, d), with the noise floor of ref's seeds.

    groups (n,) are prompt ids per row, gen's those of ref by default. A collapse shows within prompts; the pooled
    profile may hide it behind the spread of the prompts. Raises ValueError as `spectral_profile`,
    `within_prompt_moments` and `seed_halves` do.

    Examples:
        >>> x, prompts = np.random.default_rng(0).normal(size=(100, 4)), np.repeat(np.arange(10), 10)
        >>> {name: round(p.distance, 2) for name, p in aig.metrics.spectral_profiles(x, x / 2, prompts).items()}
        {'pooled': 6.02, 'within': 6.02}
    """
    gen_groups = ref_groups if gen_groups is None else gen_groups
    labels = as_labels(ref_groups)
    rows = seed_halves(labels)
    parts = [(ref[half], labels[half]) for half in rows]
    within = tuple(within_prompt_moments(*part) for part in parts)
    return {
        "pooled": spectral_profile(ref, gen, energy=energy, halves=(parts[0][0], parts[1][0])),
        "within": spectral_profile(
            within_prompt_moments(ref, labels),
            within_prompt_moments(gen, gen_groups),
            energy=energy,
            halves=(within[0], within[1]),
        ),
    }


def seed_halves(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Split each group's rows alternately: two disjoint sets of row indices, of the same prompts and equal size.

    groups (n,) one prompt id per row; the last row of an odd group is in neither. Raises ValueError if no group has two
    rows.

    Examples:
        >>> first, second = aig.metrics.seed_halves(["star", "star", "heart", "heart"])
        >>> first.tolist(), second.tolist()
        ([0, 2], [1, 3])
    """
    labels = as_labels(groups)
    order = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # place within the group
    paired = rank < np.repeat(counts - counts % 2, counts)
    if not paired.any():
        raise ValueError(f"{len(counts)} groups for {len(labels)} rows have no two seeds to halve: use more per prompt")
    return np.sort(order[paired & (rank % 2 == 0)]), np.sort(order[paired & (rank % 2 == 1)])


def within_prompt_moments(x: Features, groups: Groups) -> Moments:
    """Moments with the pooled within-group covariance Σ_g Σ_i (x_i − mean_g)(x_i − mean_g)ᵀ / (n − number of groups).

    x (n, d), groups (n,) one prompt id per row. The result's n is the degrees of freedom plus one, its mean that of all
    rows; pass it to the spectral measures, but do not merge it. Raises ValueError for bad features, a wrong number of
    groups, or no group with two rows.

    Examples:
        >>> x, prompts = np.array([[0.0], [2], [100], [102]]), ["star", "star", "heart", "heart"]
        >>> aig.metrics.within_prompt_moments(x, prompts).covariance().tolist()
        [[2.0]]
    """
    rows = as_features(x, "x")
    labels, place = group_index(groups, len(rows))
    freedom = len(rows) - len(labels)
    if freedom < 1:
        raise ValueError(f"{len(labels)} groups for {len(rows)} rows: no group has two rows; use more seeds per prompt")
    index = torch.from_numpy(place).to(rows.device)
    sums = rows.new_zeros(len(labels), rows.shape[1]).index_add_(0, index, rows)
    centred = rows - (sums / torch.bincount(index)[:, None])[index]
    return Moments(freedom + 1, rows.mean(0).cpu().numpy(), (centred.T @ centred).cpu().numpy())


def _spectra(
    ref: Features | Moments, gen: Features | Moments, allow_unequal_n: bool, may_collapse: bool = False
) -> tuple[np.ndarray, np.ndarray]:  # (d,), (d,), largest first
    r, g = moments_pair(ref, gen, None if allow_unequal_n else "a sample spectrum depends on n", may_collapse)
    return _spectrum(r), _spectrum(g)


def _spectrum(moments: Moments) -> np.ndarray:
    return np.linalg.eigvalsh(moments.covariance())[::-1].clip(min=0)
