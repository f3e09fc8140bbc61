"""Best-of-n, chosen after drawing from the images' rows."""

import numpy as np
import pytest
from measured_runs import BRIGHT, RED, TUNED, build, columns, measured, settings

from aig.metrics import vendi_score
from pipelines.config import ConfigError
from pipelines.config.values import slug
from pipelines.study.resolved import resolve

PROXY = slug(RED)
CANDIDATES = ["base", "base draw 2", "base draw 3", "base draw 4"]


def shuffle(name, made):
    """Give each draw of the base scores and features of its own."""
    if name in CANDIDATES:
        noise = np.random.default_rng([CANDIDATES.index(name), *np.abs(made["features"][:, 0] * 1e6).astype(int)])
        made[PROXY] = noise.normal(size=len(made[PROXY]))
        made[slug(BRIGHT)] = noise.normal(size=len(made[PROXY]))
        made["features"] = noise.normal(size=made["features"].shape)


def rows_of(found, name):
    """An arm's rows by prompt and seed, as the run was built: PROXY, BRIGHT and features."""
    arm = next(arm for arm in resolve(found).arms if arm.arm.name == name)
    by_prompt = []
    for prompt in range(6):
        units = [columns(arm, prompt, seeds, 1.0) for seeds in ((0, 1), (2, 3))]
        for made in units:
            shuffle(name, made)
        by_prompt.append({key: np.concatenate([made[key] for made in units]) for key in units[0]})
    return by_prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    found = build(settings(tmp_path_factory.mktemp("runs"), "evaluate.best_of=[2, 4]"), shuffle)
    return found, measured(found)


@pytest.mark.parametrize("n", [2, 4])
def test_the_rows_of_best_of_n_are_the_winners_of_an_independent_loop(run, n):
    found, table = run
    drawn = [rows_of(found, name) for name in CANDIDATES[:n]]
    arm = f"best of {n} by {PROXY}"
    for prompt in range(6):
        kept = [max((one[prompt] for one in drawn), key=lambda made: made[PROXY][seed]) for seed in range(4)]
        for name in (PROXY, slug(BRIGHT)):
            mean = np.mean([made[name][seed] for seed, made in enumerate(kept)])
            assert table.rows([arm])[name][0, prompt] == pytest.approx(mean, rel=1e-5)
        features = np.stack([made["features"][seed] for seed, made in enumerate(kept)]).astype(np.float32)
        assert table.rows([arm])["vendi"][0, prompt] == pytest.approx(vendi_score(features), rel=1e-5)


def test_the_draws_that_it_chooses_among_are_no_arms_of_the_results(run):
    found, table = run
    study = resolve(found)
    assert [arm.arm.name for arm in study.arms][-3:] == CANDIDATES[1:]
    assert [arm.arm.seed_offset for arm in study.arms][-3:] == [4, 8, 12]
    assert table.arms[-2:] == [f"best of {n} by {PROXY}" for n in (2, 4)]
    assert not set(table.arms) & set(CANDIDATES[1:])
    assert not table.broken and len(table.arms) == len(study.judged)


def test_arms_beside_it_are_measured_as_without_it(run, tmp_path):
    other = measured(build(settings(tmp_path), shuffle))
    arms = ["base", TUNED, f"{TUNED}+linear"]
    for metric, values in run[1].rows(arms).items():
        np.testing.assert_array_equal(values, other.rows(arms)[metric])


def test_a_score_that_is_not_finite_never_wins(tmp_path):
    def spoil(name, made):
        shuffle(name, made)
        if name == "base draw 2":
            made[PROXY][:] = np.nan

    found = build(settings(tmp_path, "evaluate.best_of=[2]"), spoil)
    table = measured(found)
    np.testing.assert_array_equal(*table.rows(["base", f"best of 2 by {PROXY}"])[PROXY])
    assert not table.broken


@pytest.mark.parametrize(
    ("text", "reason"),
    [("evaluate.best_of=[1]", "at least 2"), ("evaluate.best_of=[2, 2]", "each value once"),
     ("evaluate.best_of=[400000]", "reach those that validate")],
)  # fmt: skip
def test_numbers_that_make_no_choice_are_refused(tmp_path, text, reason):
    with pytest.raises(ConfigError, match=reason):
        settings(tmp_path, text)
