import dataclasses
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from aig.pareto import (
    Bootstrap,
    Subsample,
    attainment,
    bootstrap,
    hypervolume,
    mean_hypervolume,
    optimal_mask,
    subsample,
)
from aig.pareto.intervals import SHARED, wilson

# Few distinct values, so that ties and duplicates are common.
values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf])


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return all(i >= j for i, j in zip(a, b, strict=True)) and any(i > j for i, j in zip(a, b, strict=True))


@settings(deadline=None, max_examples=200)
@given(arrays(float, st.tuples(st.integers(0, 8), st.integers(1, 3)), elements=values))
def test_optimal_points_are_those_that_no_finite_point_dominates(points):
    finite = [p for p in points if np.isfinite(p).all()]
    expected = [bool(np.isfinite(p).all()) and not any(dominates(q, p) for q in finite) for p in points]
    assert optimal_mask(points).tolist() == expected


def test_weakly_dominated_points_are_not_optimal_and_duplicates_of_optimal_ones_are():
    points = np.array([[1, 3], [1, 2], [3, 1], [2, 1], [1, 3], [0, 0], [np.nan, 9]])
    assert optimal_mask(points).tolist() == [True, False, True, False, True, False, False]


def test_optimal_mask_takes_many_sets_at_once():
    points = np.random.default_rng(0).integers(0, 4, size=(5, 6, 7, 2)).astype(float)
    mask = optimal_mask(points)
    assert mask.shape == (5, 6, 7)
    for i in np.ndindex(5, 6):
        np.testing.assert_array_equal(mask[i], optimal_mask(points[i]))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        optimal_mask(np.zeros(2))


def test_hypervolume_of_a_staircase_is_the_area_under_it():
    staircase = np.array([[1, 3], [2, 2], [3, 1]])
    assert hypervolume(staircase, (0, 0)) == 6
    assert hypervolume(np.vstack([staircase, [1, 1], [3, 1]]), (0, 0)) == 6
    assert hypervolume(staircase, (1, 1)) == 1


def test_points_that_are_not_above_the_reference_or_not_finite_add_no_hypervolume():
    points = np.array([[2, 2], [-1, 9], [9, 0], [np.nan, 9], [np.inf, 9]])
    assert hypervolume(points, (0, 0)) == 4
    assert hypervolume(points[1:], (0, 0)) == 0
    assert hypervolume(np.empty((0, 2)), (0, 0)) == 0


def exact_volume(points: np.ndarray) -> Fraction:
    """By inclusion and exclusion of the boxes between the origin and each point, in exact arithmetic."""
    boxes = [[Fraction(float(value)) for value in point] for point in points if (point > 0).all()]
    total = Fraction(0)
    for size in range(1, len(boxes) + 1):
        for chosen in combinations(boxes, size):
            product = Fraction(1)
            for sides in zip(*chosen, strict=True):
                product *= min(sides)
            total += product if size % 2 else -product
    return total


@settings(deadline=None, max_examples=40)
@given(arrays(float, st.tuples(st.integers(1, 7), st.integers(2, 4)), elements=st.floats(-0.25, 1, width=32)))
def test_hypervolume_equals_that_of_inclusion_and_exclusion(points):
    expected = exact_volume(points)
    assert hypervolume(points, np.zeros(points.shape[1])) == pytest.approx(float(expected), rel=1e-12, abs=1e-300)


def test_hypervolume_of_many_points_equals_a_sweep_over_the_first_axis():
    points = np.random.default_rng(0).normal(size=(500, 2))
    strips, top = [], -1.0
    for x, y in sorted(points[(points > -1).all(1)].tolist(), reverse=True):
        strips.append((x + 1) * max(0.0, y - top))
        top = max(top, y)
    assert hypervolume(points, (-1, -1)) == pytest.approx(sum(strips), rel=1e-12)


def test_hypervolume_refuses_a_reference_that_does_not_fit():
    with pytest.raises(ValueError, match=r"reference \(3,\)"):
        hypervolume(np.zeros((4, 2)), (0, 0, 0))
    with pytest.raises(ValueError, match="give finite values"):
        hypervolume(np.zeros((4, 2)), (0, np.nan))


@settings(deadline=None, max_examples=60)
@given(
    arrays(float, st.tuples(st.integers(1, 6), st.just(2)), elements=values),
    arrays(float, st.tuples(st.integers(0, 3), st.just(2)), elements=values),
    st.data(),
)
def test_a_mean_hypervolume_is_that_of_every_subset_with_the_ends(points, ends, data):
    size = data.draw(st.integers(1, len(points)))
    every = [
        hypervolume(np.vstack([points[list(chosen)], ends]), (0, 0))
        for chosen in combinations(range(len(points)), size)
    ]
    assert mean_hypervolume(points, size, ends) == pytest.approx(np.mean(every), rel=1e-12)


def test_mean_hypervolumes_of_many_sets_are_those_of_each_and_a_size_out_of_range_is_refused():
    rng = np.random.default_rng(0)
    points, ends = rng.normal(size=(5, 4, 6, 2)), rng.normal(size=(5, 4, 2, 2))
    found = mean_hypervolume(points, 3, ends)
    for i in np.ndindex(5, 4):
        assert found[i] == pytest.approx(float(mean_hypervolume(points[i], 3, ends[i])), rel=1e-12)
    for size in (0, 7):
        with pytest.raises(ValueError, match=f"size is {size} of 6 points"):
            mean_hypervolume(points, size, ends)


# Attainment


@settings(deadline=None, max_examples=40)
@given(
    st.lists(arrays(float, st.tuples(st.integers(0, 4), st.just(2)), elements=values), min_size=1, max_size=6),
    st.sampled_from([0.01, 0.3, 0.5, 2 / 3, 1.0]),
)
def test_an_attained_surface_is_the_best_of_all_places_that_enough_sets_attain(sets, share):
    finite = [points[np.isfinite(points).all(1)] for points in sets]
    corners = np.unique(np.concatenate(finite), axis=0)
    places = np.array([(x, y) for x in corners[:, 0] for y in corners[:, 1]]).reshape(-1, 2)
    attained = np.array([np.mean([(points >= place).all(1).any() for points in finite]) for place in places])
    enough = np.unique(places[attained >= share - 1e-9], axis=0)
    expected = enough[optimal_mask(enough)]
    found = attainment(sets, share)
    np.testing.assert_array_equal(found[np.lexsort(found.T[::-1])], expected)


def test_attainment_refuses_what_has_no_surface():
    with pytest.raises(ValueError, match=r"give \(n, 2\) or \(n, 3\) each"):
        attainment([np.zeros((3, 4))], 0.5)
    with pytest.raises(ValueError, match="share is 50"):
        attainment([np.zeros((3, 2))], 50)


# Bootstrap


def paired_table(seed: int, prompts: int = 40, shift: float = 0.2) -> dict[str, np.ndarray]:
    """Three arms on prompts that differ far more than the arms do."""
    rng = np.random.default_rng(seed)
    hardness = 3 * rng.normal(size=(2, 1, prompts))
    noise = 0.3 * rng.normal(size=(2, 3, prompts))
    reward, diversity = hardness + noise
    step = shift * np.array([[0], [1], [2]])
    return {"reward": reward + step, "diversity": diversity - step}


@pytest.mark.parametrize("prompts", [8, 16, 40])
@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_intervals_at_95_percent_cover_the_true_mean_in_93_to_97_of_100_samples(prompts, kind):
    """4000 samples, each as an arm, in calls with replicates of their own: a standard error is 0.35 %."""
    covered = []
    for call in range(16):
        draws = getattr(np.random.default_rng([call, prompts]), kind)(size=(250, prompts))
        low, high = bootstrap({"r": draws}, seed=call).interval["r"].T
        truth = 1.0 if kind == "exponential" else 0.0
        covered.append((low <= truth) & (truth <= high))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_shares_that_are_mostly_1_are_finite_and_cover_their_truth():
    """In a third of the replicates of 8 prompts no value differs from another."""
    covered = []
    for call in range(8):
        rng = np.random.default_rng(call)
        interval = bootstrap({"accuracy": rng.binomial(8, rng.beta(9, 1, size=(250, 8))) / 8}, seed=call).interval
        low, high = interval["accuracy"].T
        assert np.isfinite(interval["accuracy"]).all()
        covered.append((low <= 0.9 + 1e-12) & (high >= 0.9 - 1e-12))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_percentiles_can_be_asked_for_and_are_symmetric_where_studentized_intervals_follow_the_skew():
    table = {"r": np.random.default_rng(0).exponential(size=(1, 40))}
    (studentized,), (percentile,) = (bootstrap(table, method=m).interval["r"] for m in ("studentized", "percentile"))
    mean, replicates = table["r"].mean(), bootstrap(table).replicates["r"][:, 0]
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 39) * (40 / 39) ** 0.5)
    np.testing.assert_allclose(percentile, np.quantile(replicates, [tail, 1 - tail]), atol=1e-4)
    above, below = studentized[1] - mean, mean - studentized[0]
    assert above > 1.3 * below and above > 1.1 * (percentile[1] - mean)


def test_a_studentized_interval_is_that_of_a_plain_loop_over_the_drawn_prompts():
    values = np.random.default_rng(3).exponential(size=30)
    result = bootstrap({"r": values[None]}, n=400)
    t = []
    for counts in result.counts:
        drawn = np.repeat(values, counts)
        assert drawn.mean() == pytest.approx(result.replicates["r"][len(t), 0])
        variance = drawn.var() + SHARED / 30 * (values.var() - drawn.var())
        t.append((drawn.mean() - values.mean()) / (variance / 29) ** 0.5)
    expected = values.mean() - np.quantile(t, [0.975, 0.025]) * stats.sem(values)
    np.testing.assert_allclose(result.interval["r"][0], expected, rtol=1e-10)


def test_studentized_intervals_agree_with_scipys_bca_where_percentiles_do_not():
    """Both are right to the second order: of 300 skewed values their ends differ by a fraction of what skew shifts."""
    values = np.random.default_rng(5).exponential(size=300)
    bca = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0))
    expected = np.array(bca.confidence_interval)
    studentized, symmetric = (
        bootstrap({"r": values[None]}, n=20_000, method=m).interval["r"][0] for m in ("studentized", "percentile")
    )
    assert abs(studentized - expected).max() < 0.4 * abs(symmetric - expected).max()


def test_intervals_of_paired_differences_cover_the_truth_in_93_to_97_of_100_samples():
    covered, pairs = [], 1500
    rng = np.random.default_rng(0)
    hardness, noise = 3 * rng.normal(size=(pairs, 1, 16)), 0.3 * rng.normal(size=(pairs, 2, 16))
    arms = hardness + noise + np.array([[0.0], [0.4]])
    result = bootstrap({"reward": arms.reshape(2 * pairs, 16)}, n=1000)
    for pair in range(pairs):
        _, low, high = result.difference("reward", 2 * pair + 1, 2 * pair)
        covered.append(low <= 0.4 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.slow
def test_intervals_of_hypervolume_differences_cover_the_truth_about_as_often_as_they_say():
    angles, reference = np.linspace(0.2, 1.3, 3), (-0.5, -0.5)
    families = [radius * np.stack([np.cos(angles), np.sin(angles)], -1) for radius in (1.3, 1.0)]
    truth = hypervolume(families[0], reference) - hypervolume(families[1], reference)
    covered = []
    for i in range(400):
        rng = np.random.default_rng(i)
        noise = 0.3 * rng.normal(size=(2, 1, 40)) + 0.5 * rng.normal(size=(2, 6, 40))
        x, y = np.concatenate(families).T[..., None] + noise
        split = {"a": range(3), "b": range(3, 6)}
        result = bootstrap({"x": x, "y": y}, n=300, families=split, reference=reference, scale=(1, 1))
        found = result.hypervolume_difference(("a", "b"))
        covered.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.98  # a standard error is 1.1 %


def test_a_paired_difference_is_narrower_than_the_arms_own_intervals_allow():
    result = bootstrap(paired_table(0))
    estimate, low, high = result.difference("reward", 2, 0)
    table = paired_table(0)["reward"]
    assert estimate == pytest.approx(table[2].mean() - table[0].mean())
    assert low < estimate < high
    widths = np.diff(result.interval["reward"], axis=1)[[2, 0], 0]
    assert high - low < 0.3 * np.linalg.norm(widths)


def test_arms_in_any_order_get_the_same_resampled_prompts():
    table = paired_table(1)
    flipped = bootstrap({name: array[::-1] for name, array in table.items()})
    np.testing.assert_allclose(flipped.replicates["reward"][:, ::-1], bootstrap(table).replicates["reward"], rtol=1e-12)


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    families = {"a": [0, 1], "b": [2]}
    one, two, other = (bootstrap(paired_table(2), n=200, seed=s, families=families) for s in (5, 5, 6))
    for field in ("front_probability", "reference", "scale"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    np.testing.assert_array_equal(one.replicates["reward"], two.replicates["reward"])
    assert one.hypervolume_difference(("a", "b")) == two.hypervolume_difference(("a", "b"))
    assert one.difference("reward", 0, 1) != other.difference("reward", 0, 1)


def test_a_constant_metric_has_an_interval_of_no_width():
    table = {"reward": np.ones((2, 5)), "diversity": np.arange(10.0).reshape(2, 5)}
    np.testing.assert_allclose(bootstrap(table).interval["reward"], 1, rtol=1e-12)


def test_more_metrics_than_the_axes_get_intervals_and_the_axes_can_be_named():
    table = paired_table(3) | {"gold": np.random.default_rng(0).normal(size=(3, 40))}
    result = bootstrap(table, x="gold", y="reward")
    assert set(result.interval) == {"reward", "diversity", "gold"}
    points = np.stack([result.mean["gold"], result.mean["reward"]], -1)
    np.testing.assert_array_equal(result.front, optimal_mask(points))
    replicates = np.stack([result.replicates["gold"], result.replicates["reward"]], -1)
    np.testing.assert_array_equal(result.front_probability, np.mean([optimal_mask(p) for p in replicates], 0))
    share = np.mean([dominates(p[1], p[2]) for p in replicates])
    assert result.dominates(1, 2) == share


def test_a_plainly_better_arm_dominates_and_is_alone_on_the_front():
    table = paired_table(4)
    table = {name: np.vstack([array, array[:1] + 5]) for name, array in table.items()}
    result = bootstrap(table)
    assert result.front.tolist() == [False, False, False, True]
    assert result.front_probability.tolist() == [0, 0, 0, 1]
    assert result.dominates(3, 0) == 1 and result.dominates(0, 3) == 0


@pytest.mark.parametrize("arms", [2, 7, 33])
def test_equal_arms_tie_in_every_replicate(arms):
    rng = np.random.default_rng(arms)
    table = {name: np.repeat(rng.normal(size=(1, 37)), arms, 0) for name in ("reward", "diversity")}
    result = bootstrap(table)
    assert result.front_probability.tolist() == [1] * arms
    assert result.dominates(0, arms - 1) == result.dominates(arms - 1, 0) == 0


def test_hypervolumes_use_one_fixed_reference_and_scale_and_store_them():
    families = {"low": [0, 1], "high": [1, 2]}
    table = paired_table(5)
    result = bootstrap(table, families=families)
    means = np.stack([table["reward"].mean(1), table["diversity"].mean(1)], -1)
    np.testing.assert_allclose(result.reference, means.min(0))
    np.testing.assert_allclose(result.scale, np.ptp(means, axis=0))
    found = result.hypervolume_difference(("high", "low"))
    unit = (means - means.min(0)) / np.ptp(means, axis=0)
    assert found.value == pytest.approx(hypervolume(unit[[1, 2]], (0, 0)) - hypervolume(unit[[0, 1]], (0, 0)))
    points = np.stack([result.replicates["reward"], result.replicates["diversity"]], -1)
    points = (points - result.reference) / result.scale
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 39) * (40 / 39) ** 0.5)
    drawn = np.quantile([hypervolume(p[[1, 2]], (0, 0)) for p in points], [tail, 1 - tail])
    np.testing.assert_allclose(result.hypervolume("high")[1:], drawn, atol=1e-4)

    half = bootstrap(table, families=families, reference=(-9, None), scale=(None, 2))
    np.testing.assert_allclose(half.reference, [-9, means[:, 1].min()])
    np.testing.assert_allclose(half.scale, [np.ptp(means[:, 0]), 2])
    given = bootstrap(table, families=families, reference=(-9, -9), scale=(1, 2))
    assert given.reference.tolist() == [-9, -9] and given.scale.tolist() == [1, 2]
    assert given.hypervolume("low")[0] == pytest.approx(hypervolume((means[:2] + 9) / [1, 2], (0, 0)))


def test_a_family_less_itself_is_nothing():
    result = bootstrap(paired_table(6), families={"a": [0, 1], "same": [1, 0]})
    assert result.hypervolume_difference(("a", "same")) == (0, 0, 0, 1, (0,))


def test_an_arm_with_a_broken_prompt_is_marked_and_never_on_the_front():
    table = paired_table(7)
    whole = bootstrap(table, families={"all": [0, 1, 2]})
    table = {name: np.vstack([array, array[:1] + 99]) for name, array in table.items()}
    table["diversity"][3, 2] = np.inf
    result = bootstrap(table, families={"all": [0, 1, 2, 3], "broken": [3]})
    assert np.isnan(result.mean["diversity"][3]) and np.isnan(result.interval["diversity"][3]).all()
    assert not result.front[3] and result.front_probability[3] == 0 and result.dominates(3, 0) == 0
    np.testing.assert_allclose(result.interval["diversity"][:3], whole.interval["diversity"], rtol=1e-12)
    np.testing.assert_array_equal(result.reference, whole.reference)
    assert result.hypervolume("all") == pytest.approx(whole.hypervolume("all"))
    assert result.hypervolume("broken") == (0, 0, 0)


def test_an_arm_that_is_marked_as_broken_keeps_its_intervals_and_has_no_part_in_the_front():
    table = paired_table(7)
    whole = bootstrap(table, families={"all": [0, 1, 2]})
    table = {name: np.vstack([array, array[:1] + 99]) for name, array in table.items()}
    result = bootstrap(table, families={"all": [0, 1, 2, 3], "broken": [3]}, broken=[3])
    assert result.mean["reward"][3] == pytest.approx(table["reward"][3].mean())
    assert np.isfinite(result.interval["reward"][3]).all()
    assert not result.front[3] and result.front_probability[3] == 0 and result.dominates(3, 0) == 0
    np.testing.assert_array_equal(result.front[:3], whole.front)
    np.testing.assert_array_equal(result.scale, whole.scale)
    assert result.hypervolume("all") == pytest.approx(whole.hypervolume("all"))
    assert result.hypervolume("broken") == (0, 0, 0) and len(result.attainment("broken")) == 0


def test_a_single_metric_has_intervals_and_its_best_arm_on_the_front():
    table = paired_table(3)
    alone, both = bootstrap({"reward": table["reward"]}, n=200), bootstrap(table, n=200)
    np.testing.assert_array_equal(alone.interval["reward"], both.interval["reward"])
    assert alone.front.tolist() == [False, False, True]


def test_what_half_of_the_replicates_attain_is_a_median_front():
    result = bootstrap(paired_table(4), n=300, families={"all": [0, 1, 2]})
    points = np.stack([result.replicates["reward"], result.replicates["diversity"]], -1)
    for corner in result.attainment("all"):
        assert np.mean([(p >= corner - 1e-12).all(1).any() for p in points]) == pytest.approx(0.5, abs=1 / 300)


def test_seeds_widen_percentiles_and_leave_the_estimate_where_their_average_has_it():
    rng = np.random.default_rng(8)
    seeds = {name: rng.normal(size=(2, 30, 4)) for name in ("reward", "diversity")}
    averages = {name: array.mean(2) for name, array in seeds.items()}
    nested, averaged = (bootstrap(table, method="percentile") for table in (seeds, averages))
    np.testing.assert_allclose(nested.mean["reward"], averaged.mean["reward"])
    ratio = np.diff(nested.interval["reward"]) / np.diff(averaged.interval["reward"])
    # All the noise is of seeds here: its variance is counted 2 − 1/S times.
    np.testing.assert_allclose(ratio, (2 - 1 / 4) ** 0.5, rtol=0.12)


def test_a_studentized_interval_of_seeds_is_that_of_their_averages():
    seeds = np.random.default_rng(8).exponential(size=(2, 30, 4))
    nested, averaged = bootstrap({"reward": seeds}, n=200), bootstrap({"reward": seeds.mean(2)}, n=200)
    np.testing.assert_allclose(nested.interval["reward"], averaged.interval["reward"], rtol=1e-12)
    assert nested.replicates["reward"].std() > 1.2 * averaged.replicates["reward"].std()


def test_seeds_are_the_same_ones_for_every_arm_and_prompts_the_same_for_every_metric():
    rng = np.random.default_rng(9)
    reward = rng.normal(size=(1, 20, 3)) + np.array([0.0, 1.0])[:, None, None]
    prompt = rng.normal(size=(2, 20))
    result = bootstrap({"reward": reward, "prompt": prompt, "repeated": np.repeat(prompt[..., None], 3, 2)}, n=100)
    np.testing.assert_allclose(result.difference("reward", 1, 0), 1, rtol=1e-12)
    np.testing.assert_allclose(result.replicates["repeated"], result.replicates["prompt"], rtol=0, atol=1e-12)


def test_results_do_not_change_after_the_fact():
    result = bootstrap(paired_table(0), n=10)
    assert isinstance(result, Bootstrap)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.level = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": {}}, "no metrics: give at least one"),
        ({"table": {"reward": np.zeros((2, 5)), "diversity": np.zeros((2, 6))}}, "same arms, prompts and seeds"),
        ({"table": {"reward": np.zeros((2, 5, 3)), "diversity": np.zeros((2, 5, 4))}}, "same arms, prompts and seeds"),
        ({"table": {"reward": np.zeros(5), "diversity": np.zeros(5)}}, r"'reward' has shape \(5,\)"),
        ({"table": {"reward": np.zeros((2, 1)), "diversity": np.zeros((2, 1))}}, "1 prompts"),
        ({"x": "rewrad"}, "x is 'rewrad'.*out of .'reward', 'diversity'."),
        ({"x": "diversity"}, "two different metrics"),
        ({"families": {"kl": [0, 3]}}, r"family 'kl' is \[0, 3\].*from 0 to 2"),
        ({"families": {"kl": []}}, "at least one arm"),
        ({"broken": [3]}, r"broken is \[3\]: give arms from 0 to 2"),
        ({"n": 0}, "n is 0"),
        ({"method": "bca"}, "method is 'bca': give one of studentized, percentile"),
        ({"level": 95}, "level 95"),
        ({"reference": (0, np.nan)}, "two finite values"),
        ({"scale": (1, 0)}, "two positive values"),
    ],
)
def test_bad_input_is_refused_with_its_reason(change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(**({"table": paired_table(0), "n": 10} | change))


def test_an_unknown_family_is_refused_with_the_known_ones():
    result = bootstrap(paired_table(0), n=10, families={"kl": [0], "aig": [1]})
    with pytest.raises(ValueError, match=r"'lora' is unknown.*\['aig', 'kl'\]"):
        result.hypervolume("lora")


# Subsampling


def spread(rows: np.ndarray) -> np.ndarray:
    """Two measures of a set that are no means of prompts: its variance, and the distance of its two nearest rows."""
    return np.array([rows.var(ddof=1), np.diff(np.sort(rows, axis=None)).min()])


def test_subsampling_covers_the_true_log_variance_about_as_often_as_it_says():
    truth, covered = np.log(1 + 1), []
    for i in range(1000):
        rng = np.random.default_rng(i)
        rows = rng.normal(size=(40, 1)) + rng.normal(size=(40, 4))  # (prompts, seeds)
        found = subsample(lambda kept, rows=rows: np.log([rows[kept].var(ddof=1)]), 40, seed=i)
        low, high = found.interval[0]
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.97


def test_no_subset_holds_a_prompt_twice_and_the_estimate_is_that_of_all():
    seen = []

    def note(kept: np.ndarray) -> np.ndarray:
        seen.append(kept)
        return np.array([len(kept)])

    found = subsample(note, 9, 50, size=6)
    assert seen[0].tolist() == list(range(9)) and found.estimate == [9]
    assert len(seen) == 51 and all(len(np.unique(kept)) == 6 for kept in seen[1:])
    assert set(np.concatenate(seen[1:])) == set(range(9))


def test_a_mean_of_prompts_has_by_subsampling_the_width_of_its_t_interval():
    values = np.random.default_rng(0).normal(size=12)
    found = subsample(lambda kept: values[kept].mean(keepdims=True), 12, 4000, size=8)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    np.testing.assert_allclose(found.interval[0], expected, rtol=0.05)


def test_arms_are_subsampled_by_the_same_prompts_and_average_to_the_mean_arm():
    rows = np.random.default_rng(0).normal(size=(2, 10, 3))
    arms = [subsample(lambda kept, arm=arm: spread(arm[kept]), 10, seed=3) for arm in rows]
    both = subsample(lambda kept: (spread(rows[0][kept]) + spread(rows[1][kept])) / 2, 10, seed=3)
    mean = Subsample.mean(arms)
    np.testing.assert_allclose(mean.replicates, both.replicates)
    np.testing.assert_allclose(mean.interval, both.interval)
    with pytest.raises(ValueError, match="other prompts or subsets"):
        Subsample.mean([arms[0], subsample(lambda kept: spread(rows[0][kept]), 10, size=4)])


@pytest.mark.parametrize(("hits", "n"), [(0, 9), (7, 24), (24, 24)])
def test_wilsons_interval_is_scipys(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(np.array(hits / n), n, 0.95), expected, atol=1e-12)


def test_intervals_of_a_share_near_1_cover_it_although_most_subsets_hold_hits_alone():
    covered = {"share": [], "plain": []}
    for i in range(400):
        rng = np.random.default_rng(i)
        hits = rng.random((16, 8)) < rng.beta(199, 1, size=(16, 1))  # (prompts, seeds), images of a prompt alike
        found = subsample(lambda kept, hits=hits: hits[kept].mean(keepdims=True)[0], 16, seed=i)
        low, high = found.share_interval(0, 128)
        plain_low, plain_high = found.interval[0]
        covered["share"].append(low <= 0.995 <= high)
        covered["plain"].append(plain_low <= 0.995 <= plain_high)
    assert np.mean(covered["plain"]) < 0.7 and np.mean(covered["share"]) >= 0.93


def test_a_difference_is_taken_on_the_same_subsets_and_refused_on_others():
    rows = np.random.default_rng(0).normal(size=(2, 10, 3))
    one, two = (subsample(lambda kept, arm=arm: spread(arm[kept]), 10, seed=3) for arm in rows)
    np.testing.assert_allclose(one.less(two).replicates, one.replicates - two.replicates)
    np.testing.assert_allclose(one.less(two).estimate, one.estimate - two.estimate)
    with pytest.raises(ValueError, match="other prompts or subsets"):
        one.less(subsample(lambda kept: spread(rows[0][kept]), 10, size=4))


def test_without_subsets_there_is_an_estimate_and_no_interval():
    found = subsample(lambda kept: np.array([1.0]), 5, 0)
    assert found.estimate == [1] and np.isnan(found.interval).all()


@pytest.mark.parametrize(("change", "message"), [({"size": 5}, "size is 5 of 5"), ({"n": -1}, "n is -1")])
def test_subsets_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        subsample(lambda kept: np.zeros(1), 5, **change)
