"""The map: which options there are, what each is compared with, and that differences and their mean are right."""

from __future__ import annotations

import json

import numpy as np
import pytest
from measured_runs import build, measured, settings

from pipelines.__main__ import main
from pipelines.config import ConfigError
from pipelines.front import map as front_map
from pipelines.front.map import ALL, compute
from pipelines.front.options import Option, joined, options
from pipelines.measure.table import Table
from pipelines.study.resolved import resolve

SWEPT = (
    "sweep.kl_weights=[0, 1, 10]", "evaluate.schedules=[linear, 'power:2']", "evaluate.kl_schedules=[linear]",
    "evaluate.lora_scales=[0.5]", "sweep.ks=[1, 2]", "sweep.train_seeds=[0, 1, 2]",
)  # fmt: skip
FEW = ("front.bootstrap=60",)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return resolve(settings(tmp_path_factory.mktemp("map"), *SWEPT, *FEW))


def table_of(study, place):
    """A table with the arms where `place(name)` puts them, (reward, gold, vendi), plus an effect of each prompt."""
    names = [arm.arm.name for arm in (*study.arms, *study.mean_arms)]
    prompts = [f"prompt {i}" for i in range(12)]
    effect = np.linspace(-0.1, 0.1, 12)
    points = np.array([place(name) for name in names])
    reward = study.config.evaluate.rewards[0].replace(":", "-")
    values = {metric: points[:, [i]] + effect for i, metric in enumerate((reward, "gold", "vendi"))}
    return Table(names, prompts, 4, values)


def by_key(found, **wanted):
    return [c for c in found.contests if all(getattr(c, key) == value for key, value in wanted.items())]


def test_an_option_is_a_way_on_one_training_on_the_unregularized_one_and_another_or_on_all(study):
    names = {option.name: option.budget for option in options(study.means[0])}
    assert names["KL 0"] == names["AIG on KL 10"] == names["LoRA scaling on KL 0"] == 1
    assert names["KL 0 and 10"] == names["AIG on KL 0 and 1"] == 2
    assert names["KL 0, 1 and 10"] == names["AIG on KL 0, 1 and 10"] == 3
    assert "KL 1 and 10" not in names and "LoRA scaling on KL 1" not in names


def test_an_option_has_the_plain_adapters_of_its_trainings_and_what_the_way_makes_of_them(study):
    single = study.means[0]
    labels = {option.name: [single.arms[a].label for a in arms] for option, arms in options(single).items()}
    assert labels["AIG on KL 0"] == ["tuned", "AIG linear", "AIG power:2"]
    assert labels["AIG on KL 10"] == ["KL 10", "KL 10 + AIG linear"]
    assert labels["KL 0, 1 and 10"] == ["tuned", "KL 1", "KL 10"]
    assert joined(("KL 0", "KL 10 (early)")) == "KL 0 and 10 (early)"


def test_rivals_take_no_training_or_all_that_they_average(tmp_path):
    key = "pipeline_toys-red-k1-kl"
    soups = f"evaluate.soups=['{key}0=0.5|{key}10=0.5', '{key}1=0.5|{key}10=0.5', '{key}10=0.5|mine=0.5']"
    more = ("evaluate.best_of=[2]", "evaluate.guidance=[5]", "evaluate.autoguidance=['2=2']", soups)
    single = resolve(settings(tmp_path, *SWEPT, "evaluate.adapters=[mine=/a]", *more)).means[0]
    found = {option.name: [single.arms[a].label for a in arms] for option, arms in options(single).items()}
    assert found["best-of-n of the base"] == ["best of 2 (base)"]
    assert found["other guidance scales"] == ["guidance 5 (base)"]
    assert found["other guidance scales on KL 0"] == ["tuned", "guidance 5 (tuned)"]
    assert found["autoguidance on KL 0"] == ["tuned", "autoguidance 2 against 2"]
    soup = "averaged adapters (rewarded soups) on"
    assert found[f"{soup} KL 0 and 10"] == ["tuned", "KL 10", f"soup 0.5 {key}0 + 0.5 {key}10"]
    assert found[f"{soup} KL 1 and 10"][:2] == ["KL 1", "KL 10"] and found[f"{soup} KL 10 and mine"][0] == "KL 10"
    assert sum(name.startswith(soup) for name in found) == 3
    (option,) = (option for option in options(single) if option.name == f"{soup} KL 0 and 10")
    assert option.budget == 2 and not option.is_pair  # no training has the soup by itself


def corner(name):
    """KL 10 with AIG is best by 1 in both axes; all others are where the base is, with the tuned model far right."""
    if "kl10" in name and "linear" in name:
        return 1.0, 1.0, 1.0
    return (2.0, 0.0, 0.0) if name.endswith(("kl0-s0", "kl0-s1", "kl0-s2", "kl0-mean")) else (0.0, 0.0, 0.0)


def test_a_difference_is_that_of_the_hypervolumes_and_all_settings_have_their_mean(study):
    """The box is (0..2, 0..1) by the reward, so the one arm off the axes has half of it, and 1 by gold."""
    found = compute(study, table_of(study, corner))
    for setting in (*found.settings, ALL):
        for plane, expected in (("proxy", 0.5), ("gold", 1.0)):
            key = {"setting": setting, "plane": plane, "ends": "base and KL 0", "option": "AIG on KL 10"}
            (contest,) = by_key(found, **key, against="AIG on KL 0")
            # AIG on KL 10 has two arms without the ends, AIG on KL 0 two: no part of a family is left out.
            assert contest.estimate.value == pytest.approx(expected, abs=1e-9)
            assert contest.by_seed == pytest.approx([expected] * 3, abs=1e-9)
            assert contest.verdict == "ahead"
    assert [c.size for c in by_key(found, setting=ALL)] == [0] * len(by_key(found, setting=ALL))


def test_options_of_the_same_arms_are_level_and_undecided(study):
    found = compute(study, table_of(study, corner))
    for contest in by_key(found, option="KL 1", against="AIG on KL 0", ends="base and KL 0"):
        assert contest.estimate.value == 0 and contest.verdict == "undecided"


def test_what_an_option_attains_by_itself_counts_the_base_and_its_own_arms_alone(study):
    found = compute(study, table_of(study, corner))
    proxy = {v.option: v for v in found.volumes if (v.setting, v.plane) == (found.settings[0], "proxy")}
    assert proxy["AIG on KL 10"].estimate.value == pytest.approx(0.5)
    assert proxy["KL 0, 1 and 10"].estimate.value == 0
    assert (proxy["AIG on KL 10"].trainings, proxy["AIG on KL 0, 1 and 10"].trainings) == (1, 3)
    assert found.best[found.settings[0], "proxy", 1].option == "AIG on KL 10"


def test_verdicts_are_adjusted_over_all_contests_of_the_map(study):
    rng = np.random.default_rng(0)
    places = {}
    found = compute(study, table_of(study, lambda name: places.setdefault(name, rng.normal(size=3))))
    known = [c for c in found.contests if c.verdict is not None]
    smallest = min(known, key=lambda c: c.p)
    assert smallest.p_adjusted == pytest.approx(min(1.0, smallest.p * len(known)))
    assert all(c.p_adjusted >= c.p for c in known)


def test_the_recipe_takes_the_training_whose_path_length_is_nearest_a_tenth_in_each_setting(study, monkeypatch):
    """KL 10 in one setting, KL 1 in the other, by the mean over training seeds."""
    of = {"k1-kl1": 0.3, "k1-kl10": 0.06, "k2-kl1": 0.15, "k2-kl10": 0.02, "k1-kl0": 0.1, "k2-kl0": 0.1}
    monkeypatch.setattr(
        front_map.study_lengths, "read", lambda config, name: next(v for k, v in of.items() if f"{k}-s" in name)
    )
    found = compute(study, table_of(study, corner))
    first, second = found.settings
    assert found.lengths[first] == pytest.approx({"KL 0": 0.1, "KL 1": 0.3, "KL 10": 0.06})
    for setting, chosen in ((first, "KL 10"), (second, "KL 1")):
        same = {"setting": setting, "plane": "proxy", "ends": "base", "against": "AIG on KL 0"}
        (recipe,) = by_key(found, **same, option="AIG on KL by path length")
        (own,) = by_key(found, **same, option=f"AIG on {chosen}")
        assert recipe.estimate == own.estimate
    assert by_key(found, setting=ALL, option="AIG on KL by path length")


def test_one_setting_has_no_mean_over_settings(tmp_path):
    study = resolve(settings(tmp_path, *SWEPT[:4], *FEW))
    found = compute(study, table_of(study, corner))
    assert {c.setting for c in found.contests} == set(found.settings) and len(found.settings) == 1


def test_a_run_without_a_kl_weight_has_no_map(tmp_path):
    study = resolve(settings(tmp_path, *FEW))
    with pytest.raises(ConfigError, match=r"no KL-regularized one: give sweep.kl_weights"):
        compute(study, table_of(study, corner))


def test_the_command_writes_the_map_and_its_figure_and_prints_it(tmp_path, capsys):
    found = build(settings(tmp_path, *SWEPT[:4], *FEW))
    measured(found)
    path = tmp_path / found.run.name
    assert main(["map", "--config", str(path / "config.yaml"), f"run.storage={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((path / front_map.FILE).read_text())
    assert {c["option"] for c in content["contests"]} >= {"AIG on KL 10", "KL 1", "LoRA scaling on KL 0"}
    assert "Hypervolume less that of AIG on KL 0, by proxy" in printed and "Best by itself" in printed
    assert (path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert Option(("KL 1",), "plain").name in printed
