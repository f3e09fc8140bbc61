"""The metrics against independent libraries on fixed arrays, and against exact forms where these lose digits."""

from typing import Any

import numpy as np
import prdc
import pytest
import torch
from scipy.spatial.distance import cdist
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd, kernel_rbf, kid_features_to_metric, mmd2
from torchmetrics.image.fid import _compute_fid
from vendi_score import vendi

from aig.metrics import (
    cmmd,
    frechet_distance,
    kernel_distance,
    kernel_distance_subsets,
    neighbour_scores,
    vendi_score,
)

N, D = 512, 64


def correlated(seed: int, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)) * np.geomspace(2, 0.1, D) @ rng.normal(size=(D, D)) / D**0.5


def plain() -> tuple[np.ndarray, np.ndarray]:
    return correlated(0), 0.8 * correlated(1) + 0.1


def fewer_rows_than_dimensions() -> tuple[np.ndarray, np.ndarray]:
    return correlated(0, 48), 0.8 * correlated(1, 48) + 0.1


def duplicated_rows() -> tuple[np.ndarray, np.ndarray]:
    ref, gen = plain()
    return np.repeat(ref[: N // 4], 4, 0), np.repeat(gen[: N // 4], 4, 0)


def common_offset() -> tuple[np.ndarray, np.ndarray]:
    ref, gen = plain()
    return ref + 1e4, gen + 1e4


def dropped_mode() -> tuple[np.ndarray, np.ndarray]:
    ref, gen = plain()
    return ref + 6 * (np.arange(N) < N // 2)[:, None], gen


CASES = [plain, fewer_rows_than_dimensions, duplicated_rows, common_offset, dropped_mode]
cases = pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
without_offset = pytest.mark.parametrize(
    "case", [case for case in CASES if case is not common_offset], ids=lambda case: case.__name__
)


@cases
def test_frechet_distance_equals_torchmetrics_and_torch_fidelity_to_1e_6(case):
    ref, gen = case()
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (ref, gen)]
    tensors = [torch.from_numpy(value) for pair in statistics for value in pair.values()]
    ours = frechet_distance(ref, gen)
    # Both take roots of eigenvalues of a product: rounding of 1e-16 in its null ones becomes 1e-8, still under 1e-6.
    assert ours == pytest.approx(float(_compute_fid(*tensors)), rel=1e-6)
    fidelity = fid_statistics_to_metric(*statistics, verbose=False)
    assert ours == pytest.approx(fidelity["frechet_inception_distance"], rel=1e-6)


@cases
def test_frechet_distance_equals_its_nuclear_norm_form_to_1e_9(case):
    ref, gen = case()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (ref, gen))
    delta = ref.mean(0) - gen.mean(0)
    exact = delta @ delta + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    assert frechet_distance(ref, gen) == pytest.approx(exact, rel=1e-9)


POLYNOMIAL = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


@without_offset
def test_kernel_distance_equals_torch_fidelity_to_1e_9(case):
    ref, gen = case()
    expected = kernel_mmd(ref, gen, kid_kernel="poly", **POLYNOMIAL)
    assert kernel_distance(ref, gen, block=100) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("offset", [0, 10_000])
def test_kernel_distance_equals_rational_arithmetic_to_1e_9_also_at_an_offset_where_kernels_lose_all_digits(offset):
    # Steps of 2^-10 make rows integers, and the kernel's values whole multiples of (2^20 d)^-3.
    rows = [np.round(x[:60] * 2**10).astype(np.int64) + offset * 2**10 for x in plain()]
    unit = 2**20 * D
    x, y = (part.astype(object) for part in rows)
    xx, yy, xy = ((a @ b.T + unit) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n = len(x)
    within = sum(int(kernel.sum()) - int(kernel.diagonal().sum()) for kernel in (xx, yy)) * n
    exact = (within - 2 * int(xy.sum()) * (n - 1)) / (n * n * (n - 1) * unit**3)
    ref, gen = (part / 2**10 for part in rows)
    assert kernel_distance(ref, gen) == pytest.approx(exact, rel=1e-9)
    if offset:
        assert abs(kernel_mmd(ref, gen, kid_kernel="poly", **POLYNOMIAL) / exact - 1) > 1e-9


@without_offset
def test_kernel_distance_of_subsets_equals_torch_fidelity_to_1e_9(case):
    ref, gen = case()
    drawn: dict[str, Any] = {"kid_subsets": 7, "kid_subset_size": 40, "rng_seed": 2020, "verbose": False}
    tensors = [torch.from_numpy(x) for x in (ref, gen)]
    expected = kid_features_to_metric(*tensors, kid_kernel="poly", **POLYNOMIAL, **drawn)
    ours = kernel_distance_subsets(ref, gen, subsets=7, size=40)
    assert list(ours) == pytest.approx(list(expected.values()), rel=1e-9)
    assert kernel_distance_subsets(ref, gen, subsets=7, size=40, seed=1) != ours


@pytest.mark.parametrize("unbiased", [False, True])
@without_offset
def test_clip_mmd_equals_torch_fidelitys_gaussian_kernel_to_1e_9(case, unbiased):
    ref, gen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in case())
    kernels = [kernel_rbf(a, b, kid_kernel_rbf_sigma=0.5) for a, b in ((ref, ref), (ref, gen), (gen, gen))]
    expected = 1000 * mmd2(*kernels, mmd_est="unbiased" if unbiased else "biased")
    assert cmmd(*case(), sigma=0.5, unbiased=unbiased, block=100) == pytest.approx(expected, rel=1e-9)


def test_clip_mmd_keeps_its_digits_where_all_directions_are_nearly_one():
    # The library's kernels are 1 to 1e-9 here, which leaves its difference 5 digits; differences of rows keep all.
    ref, gen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in common_offset())
    means = [np.expm1(-(cdist(a, b) ** 2) / (2 * 0.5**2)).mean() for a, b in ((ref, ref), (gen, gen), (ref, gen))]
    exact = 1000 * (means[0] + means[1] - 2 * means[2])
    assert cmmd(*common_offset(), sigma=0.5) == pytest.approx(exact, rel=1e-9)


def test_clip_mmd_has_the_bandwidth_and_scale_of_the_paper():
    ref, gen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in plain())
    means = [np.exp(-(cdist(a, b) ** 2) / 200).mean() for a, b in ((ref, ref), (gen, gen), (ref, gen))]
    assert cmmd(3 * ref, gen) == pytest.approx(1000 * (means[0] + means[1] - 2 * means[2]), rel=1e-9)
    with pytest.raises(ValueError, match="sigma is 0"):
        cmmd(ref, gen, sigma=0)


@cases
def test_neighbours_equal_prdc(case):
    ref, gen = case()
    expected = prdc.compute_prdc(ref, gen, 5)
    assert list(neighbour_scores(ref, gen)) == pytest.approx(list(expected.values()), rel=1e-12)


@cases
def test_vendi_score_equals_the_vendi_library_to_1e_9(case):
    x = case()[1]
    expected = vendi.score_dual(x) if len(x) > D else vendi.score_K(x @ x.T, normalize=True)
    assert vendi_score(x) == pytest.approx(expected, rel=1e-9)
