from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import prdc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.spatial.distance import cdist, pdist
from torch_fidelity.metric_kid import kernel_mmd
from torchmetrics.image.fid import _compute_fid
from vendi_score import vendi

from aig.metrics import (
    CosineSums,
    Hits,
    Moments,
    _distances,
    _inputs,
    cmmd,
    density_coverage,
    frechet_distance,
    hits_tile,
    kernel_distance,
    kernel_distance_subsets,
    log_spectral_distance,
    mean_pairwise_cosine_distance,
    mean_pairwise_distance,
    merge_radii,
    neighbour_scores,
    per_prompt,
    precision_recall,
    radii_tile,
    seed_halves,
    spectral_distance,
    spectral_profile,
    spectral_profiles,
    vendi_score,
    within_prompt_moments,
)


def features(seed: int, n: int, d: int, offset: float = 0.0) -> np.ndarray:
    """Correlated Gaussian rows with a decaying spectrum."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.geomspace(2, 0.1, d) @ rng.normal(size=(d, d)) / d**0.5 + offset


def rotation(seed: int, d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


@pytest.fixture(scope="module")
def ref() -> np.ndarray:
    return features(0, 512, 64)


@pytest.fixture(scope="module")
def gen() -> np.ndarray:
    return 0.8 * features(1, 512, 64) + 0.1


# Moments


def test_moments_equal_numpy_at_a_large_offset():
    x = features(2, 300, 12, offset=1e3)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance(), np.cov(x, rowvar=False), rtol=1e-9, atol=1e-10)


def test_moments_of_float32_rows_keep_the_trace_that_sums_of_squares_lose():
    x = torch.from_numpy(features(2, 4096, 8, offset=1e3)).float()
    exact = np.cov(x.double().numpy(), rowvar=False)
    assert np.trace(Moments.of(x).covariance()) == pytest.approx(np.trace(exact), rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
    st.integers(1, 12),
    st.sampled_from([0.0, 1e2, 1e4]),
    st.integers(0, 2**32 - 1),
)
def test_merging_moments_is_associative_and_does_not_depend_on_order_to_1e_12(sizes, d, offset, seed):
    x = features(seed, sum(sizes), d, offset)
    a, b, c = (Moments.of(part) for part in np.split(x, np.cumsum(sizes)[:-1]))
    left = a.merge(b).merge(c)
    # A difference of means carries their rounding, which sets of a few rows show at a large offset.
    tolerance = 1e-12 * np.abs(left.M2).max(initial=0) + 8 * np.finfo(float).eps * offset
    for other in (a.merge(b.merge(c)), c.merge(a).merge(b), Moments.merged([b, c, a])):
        assert other.n == left.n == sum(sizes)
        np.testing.assert_allclose(other.mean, left.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other.M2, left.M2, rtol=0, atol=tolerance)


def test_reversed_and_read_only_arrays_are_taken():
    x = features(4, 30, 5)
    frozen = x.copy()
    frozen.flags.writeable = False
    expected = Moments.of(x).mean
    np.testing.assert_allclose(Moments.of(x[::-1]).mean, expected)
    np.testing.assert_allclose(Moments.of(frozen).mean, expected)


def test_moments_do_not_depend_on_how_rows_are_batched():
    x = features(3, 101, 6, offset=10)
    streamed = Moments()
    for row in np.array_split(x, 17):
        streamed.update(row)
    for other in (Moments.of(torch.from_numpy(x)), Moments().update(x, block=7)):
        assert other.n == streamed.n
        np.testing.assert_allclose(other.mean, streamed.mean, rtol=1e-13)
        np.testing.assert_allclose(other.M2, streamed.M2, rtol=1e-12, atol=1e-12)


def test_moments_stay_as_they_were_after_a_refused_batch():
    moments = Moments.of(features(4, 30, 5))
    bad = features(5, 9, 5)
    bad[7, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite in 1 of .* first in row 7"):
        moments.update(bad, block=4)
    with pytest.raises(ValueError, match="one set of rows has d = 5 and the other d = 6"):
        moments.update(features(5, 9, 6))
    assert moments.n == 30
    np.testing.assert_array_equal(moments.M2, Moments.of(features(4, 30, 5)).M2)


def test_a_covariance_of_one_row_is_refused():
    with pytest.raises(ValueError, match="more than 1 rows, got 1"):
        Moments.of(np.ones((1, 3))).covariance()


# Spectral distances


def test_spectral_distance_is_the_norm_of_the_difference_of_known_variances():
    # Rows ±1 along each axis, scaled: the covariance is diagonal by construction.
    base = np.vstack([np.eye(4), -np.eye(4)])
    ref, gen = base * [4, 3, 2, 1], base * [1, 3, 2, 0]
    scale = 2 / 7  # Σ = diag(2 a² / (8 − 1))
    assert spectral_distance(ref, gen) == pytest.approx(np.linalg.norm([16 - 9, 9 - 4, 4 - 1, 1]) * scale)
    ours = np.log10(np.array([16, 9, 4, 1]) * scale + 1e-10) - np.log10(np.array([9, 4, 1, 0]) * scale + 1e-10)
    assert log_spectral_distance(ref, gen) == pytest.approx(np.linalg.norm(ours))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(-1e3, 1e3))
def test_spectral_distances_leave_rotation_and_translation_alone_where_the_frechet_distance_does_not(seed, d, shift):
    x = features(seed, 40, d)
    moved = x @ rotation(seed + 1, d) + shift
    size = np.var(x, 0).sum()
    assert spectral_distance(x, moved) < 1e-9 * size
    assert log_spectral_distance(x, moved) < 1e-6
    # Rotated about the origin: the means differ by at least what the shift is longer than both.
    assert frechet_distance(x, moved) >= max(0, abs(shift) * d**0.5 - 2 * np.linalg.norm(x.mean(0))) ** 2 * (1 - 1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(8, 60), st.integers(1, 40), st.sampled_from([0.0, 1e4]))
def test_identical_sets_are_at_distance_zero_and_cover_one_another(seed, n, d, offset):
    x = features(seed, n, d, offset)
    assert spectral_distance(x, x) == log_spectral_distance(x, x) == spectral_profile(x, x).distance == 0
    assert frechet_distance(x, x) <= 1e-10 * np.var(x, 0).sum()
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    # An open ball that reaches the 5th nearest other row holds its own row and four others.
    assert neighbour_scores(x, x) == (1, 1, 1, 1)


def test_log_spectral_distance_of_two_samples_of_one_distribution_is_small():
    # Unsorted eigenvalues of a nonsymmetric solver give several times as much.
    rng = np.random.default_rng(8)
    scale = np.geomspace(1, 1e-2, 64)
    a, b = rng.normal(size=(2, 2000, 64)) * scale
    assert log_spectral_distance(a, b) < 0.25
    assert log_spectral_distance(a, 0.5 * b) == pytest.approx(8 * np.log10(4), rel=0.05)


DEPEND_ON_N = [spectral_distance, log_spectral_distance, spectral_profile, frechet_distance, precision_recall]
DEPEND_ON_N += [density_coverage, neighbour_scores, cmmd]


@pytest.mark.parametrize("measure", DEPEND_ON_N)
def test_unequal_n_is_refused_with_the_reason_unless_allowed(measure):
    ref, gen = features(0, 60, 4), features(1, 50, 4)
    with pytest.raises(ValueError, match=r"n = 60 and gen n = 50.*depends on n.*allow_unequal_n=True"):
        measure(ref, gen)
    measure(ref, gen, allow_unequal_n=True)


def test_spectral_distance_takes_moments_arrays_and_tensors_alike(ref, gen):
    expected = spectral_distance(ref, gen)
    assert spectral_distance(Moments.of(ref), torch.from_numpy(gen)) == pytest.approx(expected, rel=1e-12)


def test_within_prompt_covariance_is_the_pooled_one_of_the_groups():
    rng = np.random.default_rng(9)
    groups = rng.permutation(np.repeat(["a", "b", "c", "single"], [5, 8, 3, 1]))
    x = rng.normal(size=(17, 3)) + np.array([ord(group[0]) for group in groups])[:, None]
    scatter = sum((len(part) - 1) * np.cov(part, rowvar=False) for part in (x[groups == g] for g in "abc"))
    moments = within_prompt_moments(x, groups)
    np.testing.assert_allclose(moments.covariance(), scatter / (17 - 4), rtol=1e-10)
    np.testing.assert_allclose(moments.mean, x.mean(0))


def test_within_prompt_spectrum_sees_a_collapse_that_the_pooled_one_hides():
    rng = np.random.default_rng(10)
    prompts = np.repeat(np.arange(40), 8)
    centres = 10 * rng.normal(size=(40, 6))[prompts]
    ref, gen = centres + rng.normal(size=(320, 6)), centres + 0.1 * rng.normal(size=(320, 6))
    within = spectral_profile(
        within_prompt_moments(ref, prompts), within_prompt_moments(gen, torch.from_numpy(prompts))
    )
    assert within.mean_log_ratio == pytest.approx(-20, abs=0.5)
    assert abs(spectral_profile(ref, gen).mean_log_ratio) < 0.5


def test_copies_within_each_prompt_are_a_collapse_of_a_hundred_decibels():
    rng, prompts = np.random.default_rng(24), np.repeat(np.arange(10), 4)
    ref, gen = rng.normal(size=(40, 3)), rng.integers(-9, 9, (10, 3)).astype(float)[prompts]
    profile = spectral_profile(within_prompt_moments(ref, prompts), within_prompt_moments(gen, prompts))
    assert profile.mean_log_ratio < -95


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_halves_of_seeds_are_disjoint_and_hold_equally_many_of_each_prompt(groups):
    labels = np.array(groups)
    if np.bincount(labels).max() < 2:
        with pytest.raises(ValueError, match="no two seeds to halve"):
            seed_halves(labels)
        return
    first, second = seed_halves(groups)
    assert not set(first) & set(second)
    counts = [np.bincount(labels[half], minlength=7) for half in (first, second)]
    np.testing.assert_array_equal(*counts)
    np.testing.assert_array_equal(counts[0], np.bincount(labels, minlength=7) // 2)


def test_noise_floor_lies_at_the_distance_that_sampling_alone_makes():
    rng, prompts = np.random.default_rng(25), np.repeat(np.arange(100), 20)
    scale = np.geomspace(1, 0.1, 24)
    draw = lambda: 3 * centres[prompts] + rng.normal(size=(2000, 24)) * scale  # noqa: E731
    centres = rng.normal(size=(100, 24)) * scale
    ref, same, collapsed = draw(), draw(), draw() * 0.5
    for name, profile in spectral_profiles(ref, same, prompts).items():
        assert profile.noise_floor is not None
        assert 0.5 < profile.noise_floor / profile.distance < 3, name
    for profile in spectral_profiles(ref, collapsed, prompts, prompts).values():
        assert profile.distance > 10 * profile.noise_floor
        assert profile.mean_log_ratio == pytest.approx(-6, abs=0.5)


def test_profiles_are_those_of_the_pooled_and_within_prompt_moments():
    ref, gen, prompts = features(26, 40, 5), features(27, 40, 5), np.tile(np.arange(8), 5)
    profiles = spectral_profiles(ref, gen, prompts)
    first, second = seed_halves(prompts)
    assert profiles["pooled"].distance == spectral_profile(ref, gen).distance
    assert profiles["pooled"].noise_floor == spectral_profile(ref[first], ref[second]).distance
    within = [within_prompt_moments(x, prompts) for x in (ref, gen)]
    assert profiles["within"].distance == spectral_profile(*within).distance
    assert spectral_profile(ref, gen).noise_floor is None


def test_within_prompt_moments_refuse_one_image_a_prompt():
    with pytest.raises(ValueError, match=r"4 groups for 4 rows.*more seeds per prompt"):
        within_prompt_moments(np.eye(4), [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"groups has shape \(3,\) for 4 rows"):
        within_prompt_moments(np.eye(4), [1, 2, 3])


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 10), st.floats(0.5, 1), st.integers(0, 100))
def test_spectral_profile_of_a_scaled_copy_is_that_many_decibels_everywhere(factor, energy, seed):
    x = features(seed, 20, 30)
    profile = spectral_profile(x, factor * x, energy=energy)
    decibels = 20 * np.log10(factor)
    assert profile.mean_log_ratio == pytest.approx(decibels, abs=1e-5)
    assert profile.distance == pytest.approx(abs(decibels), abs=1e-5)
    assert profile.k <= 19


def test_spectral_profile_keeps_the_fewest_eigenvalues_that_hold_the_energy():
    base = np.vstack([np.eye(4), -np.eye(4)]) * np.sqrt([90, 8, 1.5, 0.5])
    assert [spectral_profile(base, base, energy=e).k for e in (0.5, 0.9 + 1e-6, 0.99, 1.0)] == [1, 2, 3, 4]


def test_spectral_profile_counts_a_lost_direction_as_at_least_a_hundred_decibels_under_the_top():
    base = np.vstack([np.eye(2), -np.eye(2)])
    profile = spectral_profile(base, base * [1, 0])
    np.testing.assert_allclose(profile.gen - profile.ref, [0, -100], atol=1e-9)


def test_spectral_profile_of_a_constant_reference_is_refused():
    with pytest.raises(ValueError, match="ref is constant"):
        spectral_profile(Moments.of(np.ones((5, 3))), features(0, 5, 3))
    with pytest.raises(ValueError, match=r"energy is 1\.5"):
        spectral_profile(features(0, 5, 3), features(0, 5, 3), energy=1.5)


# Fréchet distance


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_frechet_distance_equals_torchmetrics_and_scipy(ref, gen, offset):
    ref, gen = ref + offset, gen + offset
    arguments = [value for x in (ref, gen) for value in (x.mean(0), np.cov(x, rowvar=False))]
    ours = frechet_distance(ref, gen)
    assert ours == pytest.approx(float(_compute_fid(*map(torch.from_numpy, arguments))), rel=1e-6)
    root = linalg.sqrtm(arguments[1] @ arguments[3])
    delta = arguments[0] - arguments[2]
    closed = delta @ delta + np.trace(arguments[1] + arguments[3] - 2 * np.real(root))
    assert ours == pytest.approx(closed, rel=1e-6)


def test_frechet_distance_of_fewer_rows_than_dimensions_equals_the_nuclear_norm_form():
    ref, gen = features(11, 30, 100), features(12, 30, 100) + 0.3
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (ref, gen))
    delta = ref.mean(0) - gen.mean(0)
    nuclear = np.linalg.norm(a @ b.T, "nuc")
    expected = delta @ delta + (a**2).sum() + (b**2).sum() - 2 * nuclear
    assert frechet_distance(ref, gen) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_is_zero_for_a_set_and_itself_and_symmetric(ref, gen):
    assert frechet_distance(ref, ref) < 1e-12 * np.trace(np.cov(ref, rowvar=False))
    assert frechet_distance(ref, gen) == pytest.approx(frechet_distance(gen, ref), rel=1e-10)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12), st.floats(0.01, 3))
def test_difference_of_root_spectra_never_exceeds_the_frechet_distance(seed, n, d, factor):
    ref, gen = features(seed, n, d), factor * features(seed + 1, n, d)
    roots = [np.sqrt(np.linalg.eigvalsh(Moments.of(x).covariance()).clip(0)) for x in (ref, gen)]
    tolerance = 1e-7 * (np.var(ref, 0).sum() + np.var(gen, 0).sum())
    assert ((roots[0] - roots[1]) ** 2).sum() <= frechet_distance(ref, gen) + tolerance


# Kernel distance


def test_kernel_distance_equals_torch_fidelity(ref, gen):
    kernel = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    expected = kernel_mmd(ref, gen, kid_kernel="poly", **kernel)
    assert kernel_distance(ref, gen, block=100) == pytest.approx(expected, abs=1e-9)


def test_kernel_distance_takes_sets_of_unequal_size():
    ref, gen = features(0, 9, 3), features(1, 7, 3)
    within = [((x @ x.T / 3 + 1) ** 3)[~np.eye(len(x), dtype=bool)].mean() for x in (ref, gen)]
    expected = sum(within) - 2 * ((ref @ gen.T / 3 + 1) ** 3).mean()
    assert kernel_distance(ref, gen) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased_between_samples_of_one_distribution():
    rng = np.random.default_rng(13)
    values = np.array([kernel_distance(*rng.normal(size=(2, 20, 4))) for _ in range(300)])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert (values < 0).any()


# Neighbours


def neighbours_by_brute_force(ref: np.ndarray, gen: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """From differences, in the sets' own numbers: rows of int64 give exact squared distances."""

    def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((x[:, None] - y) ** 2).sum(2) if x.dtype == np.int64 else cdist(x, y)

    radius_ref, radius_gen = (np.sort(squared(x, x), 1)[:, k] for x in (ref, gen))
    distance = squared(ref, gen)
    inside = distance < radius_ref[:, None]
    recalled = (distance < radius_gen).any(1)
    return inside.any(0).mean(), recalled.mean(), inside.sum() / (k * len(gen)), inside.any(1).mean()


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("block", [67, 1000])
def test_neighbours_equal_prdc_whatever_the_block(ref, gen, k, block):
    ref, gen = ref[:200], gen[:150]
    expected = prdc.compute_prdc(ref, gen, k)
    assert precision_recall(ref, gen, k, block=block, allow_unequal_n=True) == (
        expected["precision"],
        expected["recall"],
    )
    density, coverage = density_coverage(ref, gen, k, block=block, allow_unequal_n=True)
    assert (density, coverage) == (pytest.approx(expected["density"], rel=1e-12), expected["coverage"])


DEGENERATE = {
    "plain": lambda x: (x[:256], x[256:]),
    "offset": lambda x: (x[:256] + 1e4, x[256:] + 1e4),
    "duplicates": lambda x: (np.repeat(x[:40], 4, 0), np.repeat(x[20:60], 4, 0)),
    "duplicates and offset": lambda x: (np.repeat(x[:40], 4, 0) + 1e4, np.repeat(x[20:60], 4, 0) + 1e4),
    "nearly one": lambda x: (x[:256], np.vstack([np.repeat(x[:1], 255, 0), x[1:2]])),
    "shared": lambda x: (x[:256], np.vstack([x[155:0:-1], x[300:401]])),
    "equal": lambda x: (x[:256], x[:256]),
    "outliers": lambda x: (np.vstack([x[:256], 1e5 * x[:1]]), np.vstack([x[:256], -1e6 * x[1:2]])),
    "n below d": lambda x: (x[:30], x[30:60]),
    "dropped mode": lambda x: (np.vstack([x[:128], x[128:256] + 3]), x[256:]),
    "tiny": lambda x: (1e-25 * x[:256], 1e-25 * x[256:]),
    "huge": lambda x: (1e25 * x[:256], 1e25 * x[256:]),
}


@pytest.mark.parametrize("block", [64, 1024])
@pytest.mark.parametrize("case", DEGENERATE)
def test_neighbours_equal_brute_force_on_degenerate_sets(ref, case, block):
    a, b = DEGENERATE[case](ref)
    scores = neighbour_scores(a, b, 5, block=block)
    assert scores == pytest.approx(neighbours_by_brute_force(a, b, 5), rel=1e-12)
    assert precision_recall(a, b, block=block) == (scores.precision, scores.recall)
    assert density_coverage(a, b, block=block) == (scores.density, scores.coverage)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(6, 60), st.integers(1, 40), st.integers(1, 5), st.integers(5, 70))
def test_neighbours_equal_integer_arithmetic_where_many_distances_are_tied(seed, n, d, k, block):
    ref, gen = np.random.default_rng(seed).integers(0, 3, (2, n, d))
    ref[0, 0], ref[1, 0], gen[0, 0], gen[1, 0] = 0, 1, 0, 1  # not constant
    expected = neighbours_by_brute_force(ref, gen, k)
    # A scale of 0.1 has no finite binary form, so that distances which are tied round apart.
    for scale in (1, 0.1):
        assert neighbour_scores(scale * ref, scale * gen, k, block=block) == pytest.approx(expected, rel=1e-12)


def test_neighbours_tell_distances_apart_that_single_precision_does_not():
    rng = np.random.default_rng(19)
    ref = rng.normal(size=(300, 32))
    radius = np.sort(cdist(ref, ref), 1)[:, 5]
    step = rng.normal(size=(300, 32))
    step *= (radius / np.linalg.norm(step, axis=1))[:, None]
    gen = ref + step * np.where(np.arange(300) % 2, 1 - 1e-9, 1 + 1e-9)[:, None]
    assert neighbour_scores(ref, gen) == pytest.approx(neighbours_by_brute_force(ref, gen, 5), rel=1e-12)
    assert neighbours_by_brute_force(ref.astype(np.float32), gen.astype(np.float32), 5) != pytest.approx(
        neighbours_by_brute_force(ref, gen, 5), rel=1e-12
    )


def test_neighbours_are_the_same_where_a_setting_makes_float32_products_rough(ref, gen):
    expected = neighbour_scores(ref, gen)
    torch.set_float32_matmul_precision("medium")
    try:
        assert _distances.blocks(torch.from_numpy(ref))[0].centred.dtype == torch.float64
        assert neighbour_scores(ref, gen) == expected
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tiles_of_unequal_sizes_in_any_order_add_up_to_the_whole(ref, gen):
    ref, gen = ref.astype(np.float32), gen[:400].astype(np.float32)
    cuts = {"ref": [0, 200, 203, 512], "gen": [0, 3, 150, 400]}
    parts = {name: [x[a:b] for a, b in pairwise(cuts[name])] for name, x in (("ref", ref), ("gen", gen))}
    radii = {}
    for name, tiles in parts.items():
        nearest = [[radii_tile(part, None, 5)[0]] for part in tiles]
        for i, j in [(1, 2), (0, 2), (0, 1)]:
            of_i, of_j = radii_tile(tiles[i], tiles[j], 5)
            nearest[i].append(of_i)
            nearest[j].append(of_j)
        radii[name] = [merge_radii(*of_part)[:, -1] for of_part in nearest]
    total = Hits.none(512, 400)
    for i, j in reversed(list(np.ndindex(3, 3))):
        tile = hits_tile(parts["ref"][i], parts["gen"][j], radii["ref"][i], radii["gen"][j])
        total.add(tile, cuts["ref"][i], cuts["gen"][j])
    assert total.scores(5) == neighbour_scores(ref, gen, allow_unequal_n=True)


def test_a_tile_of_radii_holds_the_nearest_distances_of_both_blocks():
    x, y = features(20, 9, 3), features(21, 4, 3)
    squared = cdist(x, y) ** 2
    of_x, of_y = radii_tile(x, y, 6)
    np.testing.assert_allclose(of_x, np.hstack([np.sort(squared, 1), np.full((9, 2), np.inf)]))
    np.testing.assert_allclose(of_y, np.sort(squared.T, 1)[:, :6])
    of_itself = radii_tile(y, None, 6)[0]
    np.testing.assert_allclose(of_itself[:, :3], np.sort(cdist(y, y) ** 2, 1)[:, 1:])
    assert torch.isinf(of_itself[:, 3:]).all()


def test_tiles_name_what_is_wrong_with_their_rows():
    with pytest.raises(ValueError, match="x has d = 3 and y d = 4"):
        radii_tile(features(0, 5, 3), features(0, 5, 4), 2)
    with pytest.raises(ValueError, match="gen holds values that are not finite"):
        hits_tile(features(0, 5, 3), np.full((5, 3), np.nan), torch.ones(5), torch.ones(5))
    with pytest.raises(ValueError, match=r"radii_gen has shape \(4,\) for 5 rows"):
        hits_tile(features(0, 5, 3), features(1, 5, 3), np.ones(5), np.ones(4))


def test_precision_and_recall_tell_a_dropped_mode_from_an_invented_one():
    rng = np.random.default_rng(14)
    near, far = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 100
    both = np.vstack([near[:100], far[:100]])
    precision, recall = precision_recall(both, near)
    assert precision > 0.7 and recall <= 0.5
    precision, recall = precision_recall(near, both)
    assert precision <= 0.6 and recall > 0.7


def test_neighbours_need_more_rows_than_k():
    with pytest.raises(ValueError, match="gen has 5 rows, fewer than the 6 needed"):
        precision_recall(features(0, 9, 3), features(1, 5, 3))
    with pytest.raises(ValueError, match="k is 0"):
        density_coverage(features(0, 9, 3), features(1, 9, 3), k=0)


# Vendi score and pairwise distances


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("q", [0.5, 1, 2, float("inf")])
def test_vendi_score_equals_the_vendi_library_in_primal_and_dual(n, d, q):
    x = features(15, n, d)
    order: Any = "inf" if q == float("inf") else q
    # The library's dual counts the rounding of null eigenvalues where n < d, and its primal where n > d.
    expected = vendi.score_dual(x, order) if n > d else vendi.score_K(x @ x.T, order, normalize=True)
    assert vendi_score(x, q) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("q", [0, 0.1, 0.5, 1, 2, float("inf")])
def test_vendi_score_counts_orthogonal_directions_however_often_they_are_repeated(q):
    assert vendi_score(np.repeat(np.eye(5) * 3, 4, 0), q) == pytest.approx(5)
    assert vendi_score(np.tile(rotation(16, 7)[0], (9, 1)), q) == pytest.approx(1)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_vendi_score_with_a_bandwidth_equals_the_vendi_library(offset):
    x = features(28, 40, 6)
    kernel = np.exp(-(cdist(x, x) ** 2) / (2 * 1.5**2))
    expected = vendi.score_K(kernel)
    assert vendi_score(x + offset, bandwidth=1.5) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        vendi_score(x, bandwidth=0)


def test_vendi_score_reads_rows_in_blocks(monkeypatch):
    x = features(29, 50, 6)
    whole = vendi_score(x)
    monkeypatch.setattr(_inputs, "NUMBERS", 6 * 7)
    assert vendi_score(x) == pytest.approx(whole, rel=1e-12)
    x[45] = 0
    with pytest.raises(ValueError, match="row 45"):
        vendi_score(x)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_cosine_sums_of_a_stream_merge_to_the_mean_distance_of_all_rows(sizes, seed):
    x = features(seed, sum(sizes) + 2, 5, offset=0.5)
    parts = [CosineSums().update(part) for part in np.split(x, np.cumsum(sizes))]
    total = CosineSums()
    for part in reversed(parts):
        total = part.merge(total)
    assert total.n == len(x)
    assert total.mean_distance() == pytest.approx(mean_pairwise_cosine_distance(x), abs=1e-12)


def test_cosine_sums_stay_as_they_were_after_a_refused_batch():
    sums = CosineSums().update(np.eye(3))
    with pytest.raises(ValueError, match="one set of rows has d = 3 and the other d = 4"):
        sums.update(np.eye(4))
    assert sums.mean_distance() == 1
    with pytest.raises(ValueError, match="x has 0 rows"):
        CosineSums().mean_distance()


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_pairwise_means_equal_brute_force(n, d, seed):
    x = features(seed, n, d, offset=0.5)
    assert mean_pairwise_cosine_distance(x) == pytest.approx(pdist(x, "cosine").mean(), abs=1e-12)
    assert mean_pairwise_distance(torch.from_numpy(x)) == pytest.approx(pdist(x).mean(), rel=1e-12)


def test_pairwise_means_of_copies_are_zero():
    x = np.tile(features(17, 1, 9), (6, 1))
    assert 0 <= mean_pairwise_cosine_distance(x) < 1e-15
    assert mean_pairwise_distance(x) == 0


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_per_prompt_gives_each_group_of_rows_its_value_in_sorted_order(kind):
    x = features(18, 12, 4)
    groups = np.array(["b", "a", "c"] * 4)
    values = per_prompt(mean_pairwise_distance, kind(x), groups)
    np.testing.assert_allclose(values, [pdist(x[groups == g]).mean() for g in "abc"])


def test_per_prompt_names_the_group_that_has_too_few_rows():
    with pytest.raises(ValueError, match="group b: x has 1 rows, fewer than the 2 needed"):
        per_prompt(mean_pairwise_cosine_distance, features(0, 3, 2), ["a", "a", "b"])


@pytest.mark.parametrize("measure", [vendi_score, mean_pairwise_cosine_distance])
def test_cosine_measures_refuse_a_row_without_direction(measure):
    with pytest.raises(ValueError, match=r"row of zeros.*row 2"):
        measure(np.eye(3) * [1, 1, 0])


# Inputs of all

pairs = [spectral_distance, log_spectral_distance, spectral_profile, frechet_distance, kernel_distance]
pairs += [precision_recall, density_coverage, neighbour_scores, cmmd, partial(kernel_distance_subsets, size=2)]
singles = [vendi_score, mean_pairwise_cosine_distance, mean_pairwise_distance]


@pytest.mark.parametrize("measure", pairs)
def test_pair_measures_name_the_set_that_is_wrong(measure):
    good, bad = features(0, 9, 3), features(1, 9, 3)
    bad[4, 1] = np.inf
    with pytest.raises(ValueError, match="gen holds values that are not finite in 1 of 9 rows, first in row 4"):
        measure(good, bad)
    with pytest.raises(ValueError, match="ref holds values"):
        measure(bad, good)
    with pytest.raises(ValueError, match="ref has d = 3 and gen d = 4"):
        measure(good, features(1, 9, 4))
    with pytest.raises(ValueError, match="gen has 1 rows"):
        measure(good, good[:1])
    with pytest.raises(ValueError, match=r"ref has shape \(9, 3, 1\): give features as \(n, d\)"):
        measure(good[..., None], good)


@pytest.mark.parametrize("measure", pairs)
def test_pair_measures_refuse_a_constant_set_whatever_its_offset(measure):
    good, constant = features(0, 9, 3), np.tile(features(1, 1, 3) + 1e4 / 3, (9, 1))
    with pytest.raises(ValueError, match=r"gen is constant, its 9 rows are all alike.*mark its arm as broken"):
        measure(good, constant)
    with pytest.raises(ValueError, match="ref is constant"):
        measure(constant, good)


@pytest.mark.parametrize("measure", singles)
def test_single_measures_refuse_bad_rows(measure):
    with pytest.raises(ValueError, match="x holds values that are not finite"):
        measure(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="x has 1 rows, fewer than the 2 needed"):
        measure(np.ones((1, 2)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("measure", pairs + singles)
def test_measures_take_read_only_float32_arrays_and_tensors_with_gradients_and_leave_them_alone(measure):
    x = features(0, 9, 3).astype(np.float32)
    x.flags.writeable = False
    tensor = torch.tensor(x, requires_grad=True)
    arguments = 2 if measure in pairs else 1
    one, other = measure(*[x] * arguments), measure(*[tensor] * arguments)
    if measure is spectral_profile:
        one, other = one.distance, other.distance
    assert one == other
    assert isinstance(one, float | tuple)
    np.testing.assert_array_equal(tensor.detach().numpy(), x)
