import dataclasses

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from aig.pareto import Bootstrap, bootstrap, hypervolume, optimal_mask

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


@settings(deadline=None, max_examples=50)
@given(arrays(float, st.tuples(st.integers(1, 12), st.integers(2, 4)), elements=st.floats(-1, 1)))
def test_hypervolume_equals_moocore(points):
    expected = moocore.hypervolume(-points, ref=np.zeros(points.shape[1]))
    assert hypervolume(points, np.zeros(points.shape[1])) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_hypervolume_refuses_a_reference_that_does_not_fit():
    with pytest.raises(ValueError, match=r"reference \(3,\)"):
        hypervolume(np.zeros((4, 2)), (0, 0, 0))
    with pytest.raises(ValueError, match="give finite values"):
        hypervolume(np.zeros((4, 2)), (0, np.nan))


# Bootstrap


def paired_table(seed: int, prompts: int = 40, shift: float = 0.2) -> dict[str, np.ndarray]:
    """Three arms on prompts that differ far more than the arms do."""
    rng = np.random.default_rng(seed)
    hardness = 3 * rng.normal(size=(2, 1, prompts))
    noise = 0.3 * rng.normal(size=(2, 3, prompts))
    reward, diversity = hardness + noise
    step = shift * np.array([[0], [1], [2]])
    return {"reward": reward + step, "diversity": diversity - step}


@pytest.mark.parametrize("prompts", [8, 40])
def test_intervals_of_a_mean_and_of_a_paired_difference_cover_the_truth_about_as_often_as_they_say(prompts):
    covered = np.zeros(2)
    repeats = 400
    for i in range(repeats):
        result = bootstrap(paired_table(i, prompts), n=1000)
        low, high = result.interval["reward"][1]
        _, difference_low, difference_high = result.difference("reward", 2, 0)
        covered += [low <= 0.2 <= high, difference_low <= 0.4 <= difference_high]
    assert np.all(np.abs(covered / repeats - 0.95) < 0.025)


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
    assert one.hypervolume_difference("a", "b") == two.hypervolume_difference("a", "b")
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
    estimate, low, high = result.hypervolume_difference("high", "low")
    unit = (means - means.min(0)) / np.ptp(means, axis=0)
    assert estimate == pytest.approx(hypervolume(unit[[1, 2]], (0, 0)) - hypervolume(unit[[0, 1]], (0, 0)))
    points = np.stack([result.replicates["reward"], result.replicates["diversity"]], -1)
    points = (points - result.reference) / result.scale
    differences = [hypervolume(p[[1, 2]], (0, 0)) - hypervolume(p[[0, 1]], (0, 0)) for p in points]
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 39) * (40 / 39) ** 0.5)
    np.testing.assert_allclose((low, high), np.quantile(differences, [tail, 1 - tail]), atol=1e-4)

    given = bootstrap(table, families=families, reference=(-9, -9), scale=(1, 2))
    assert given.reference.tolist() == [-9, -9] and given.scale.tolist() == [1, 2]
    assert given.hypervolume("low")[0] == pytest.approx(hypervolume((means[:2] + 9) / [1, 2], (0, 0)))


def test_a_family_less_itself_is_nothing():
    result = bootstrap(paired_table(6), families={"a": [0, 1], "same": [1, 0]})
    assert result.hypervolume_difference("a", "same") == pytest.approx((0, 0, 0), abs=1e-12)


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


def test_seeds_widen_the_interval_and_leave_the_estimate_where_their_average_has_it():
    rng = np.random.default_rng(8)
    seeds = {name: rng.normal(size=(2, 30, 4)) for name in ("reward", "diversity")}
    nested, averaged = bootstrap(seeds), bootstrap({name: array.mean(2) for name, array in seeds.items()})
    np.testing.assert_allclose(nested.mean["reward"], averaged.mean["reward"])
    ratio = np.diff(nested.interval["reward"]) / np.diff(averaged.interval["reward"])
    # All the noise is of seeds here: its variance is counted 2 − 1/S times.
    np.testing.assert_allclose(ratio, (2 - 1 / 4) ** 0.5, rtol=0.12)


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
        ({"table": {"reward": np.zeros((2, 5))}}, "give at least the two"),
        ({"table": {"reward": np.zeros((2, 5)), "diversity": np.zeros((2, 6))}}, "same arms, prompts and seeds"),
        ({"table": {"reward": np.zeros((2, 5, 3)), "diversity": np.zeros((2, 5, 4))}}, "same arms, prompts and seeds"),
        ({"table": {"reward": np.zeros(5), "diversity": np.zeros(5)}}, r"'reward' has shape \(5,\)"),
        ({"table": {"reward": np.zeros((2, 1)), "diversity": np.zeros((2, 1))}}, "1 prompts"),
        ({"x": "rewrad"}, "x is 'rewrad'.*out of .'reward', 'diversity'."),
        ({"x": "diversity"}, "two different metrics"),
        ({"families": {"kl": [0, 3]}}, r"family 'kl' is \[0, 3\].*from 0 to 2"),
        ({"families": {"kl": []}}, "at least one arm"),
        ({"n": 0}, "n is 0"),
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
