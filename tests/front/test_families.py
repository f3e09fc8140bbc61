"""Which family an arm is of, which arms a comparison counts to one, and what each pays for."""

from __future__ import annotations

import numpy as np
import pytest
from measured_runs import build, measured, settings

from pipelines import config as configuration
from pipelines.front import families, front, planes
from pipelines.front.loading import read_front
from pipelines.report import style
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve

SWEPT = ("sweep.kl_weights=[0, 1, 10]", "evaluate.kl_schedules=[linear, 'power:2', 'constant:0.5']")


def family_of(schedule, tmp_path):
    found = settings(tmp_path, f"evaluate.schedules=['{schedule}']")
    return next(arm for arm in resolve(found).arms if "+" in arm.arm.name)


@pytest.mark.parametrize(
    ("schedule", "label"),
    [
        ("constant:0.5", "fixed mix 0.5"),
        ("piecewise:0=0.25|1=0.25", "fixed mix 0.25"),
        ("join:constant:0.3|0.5|constant:0.3", "fixed mix 0.3"),
        ("constant:0.7@time", "fixed mix 0.7"),
        ("mine=constant:0.7", "fixed mix mine"),
    ],
)
def test_one_weight_at_every_step_is_deradiffs_fixed_mix_however_it_is_written(schedule, label, tmp_path):
    arm = family_of(schedule, tmp_path)
    assert (arm.family, arm.label) == ("fixed", label)


@pytest.mark.parametrize("schedule", ["linear", "power:4", "step:0.6", "piecewise:0=0.5|0.5=0.5|1=0.6"])
def test_a_weight_that_changes_is_aig_and_so_is_the_published_sweeps_combined_generation(schedule, tmp_path):
    arm = family_of(schedule, tmp_path)
    assert (arm.family, arm.label) == ("aig", f"AIG {schedule}")


def test_aig_on_every_kl_weight_has_the_schedules_of_all_adapters_and_none_of_its_rivals_arms(tmp_path):
    (single,) = resolve(settings(tmp_path, *SWEPT, "evaluate.kl_lora_scales=[0.5]")).singles
    found = planes.families(single)
    counted = {family: {single.arms[a].label for a in arms} - {"base", "tuned"} for family, arms in found.items()}
    assert counted == {
        "kl": {"KL 1", "KL 10"},
        "lora": {"LoRA ×0.5"},
        "aig": {"AIG linear"},
        "early": {"stop at 2"},
        "kl-lora": {"LoRA ×0.5", "KL 1 + LoRA ×0.5", "KL 10 + LoRA ×0.5"},
        "kl-fixed": {"KL 1 + fixed mix 0.5", "KL 10 + fixed mix 0.5"},
        "kl-aig": {"AIG linear", *(f"KL {w} + AIG {name}" for w in (1, 10) for name in ("linear", "power:2"))},
        "all": {arm.label for arm in single.arms} - {"base", "tuned"},
    }
    assert all({"base", "tuned"} <= {single.arms[a].label for a in arms} for arms in found.values())
    paid = {family: single.trainings(arms) for family, arms in found.items()}
    one = dict.fromkeys(("lora", "aig", "early"), 1)
    assert paid == {**one, **dict.fromkeys(("kl", "kl-lora", "kl-fixed", "kl-aig", "all"), 3)}


def test_a_mean_over_training_seeds_pays_as_one_of_its_seeds(tmp_path):
    found = settings(tmp_path, *SWEPT, "sweep.train_seeds=[0, 1]")
    (mean,) = resolve(found).means
    assert mean.trainings(range(len(mean.arms))) == 3


def test_no_family_is_compared_with_one_that_it_contains_since_it_could_not_fall_behind_it():
    assert {a for a, _ in planes.COMPARISONS} == set(families.OURS)
    for a, b in planes.COMPARISONS:
        ours, theirs = set(families.members(a)), set(families.members(b))
        assert not ours & theirs and {a, b} <= set(families.FAMILIES)
    for ours in families.OURS:
        assert {b for a, b in planes.COMPARISONS if a == ours} >= {"kl", "lora", "fixed", "early", "trial"}


def test_every_family_has_a_colour_and_a_mark_of_its_own_in_both_schemes():
    tables = (style.MARK, style.TEXT, style.MARKER)
    assert all(set(table) == set(families.FAMILIES) for table in tables)
    drawn = {(style.MARK[family], style.MARKER[family]) for family in families.FAMILIES}
    assert len(drawn) == len(families.FAMILIES)
    assert set(style.MARKER.values()) <= set(style.SHAPES)
    assert {*style.COLOURED} <= set(style.variables("light")) == set(style.variables("dark"))


def test_the_front_states_both_against_each_rival_with_the_trainings_that_they_pay_for(tmp_path):
    """KL + AIG arms that keep the base's spread at the tuned model's reward: only the family that has them is ahead."""

    def shine(name, made):
        if "+" in name and "-kl0-" not in name:
            made["pipeline_toys-red"] += 3
            made["features"] = 3 + 2 * np.random.default_rng(0).normal(size=made["features"].shape)

    found = build(settings(tmp_path, *SWEPT[:1], "evaluate.kl_schedules=[linear, 'power:2']"), shine)
    measured(found)
    path = front.write_front(resolve(found))
    (single,) = read_front(RunDir.of(found)).studies
    rows = {(row.a, row.b): row.estimate for row in single.plane.differences}
    assert set(rows) == {(a, b) for a in ("aig", "kl-aig") for b in ("kl", "lora", "early")}
    assert rows["kl-aig", "kl"].low > 0 > rows["aig", "kl"].value
    assert single.trainings == {"kl": 3, "lora": 1, "aig": 1, "early": 1, "kl-aig": 3, "all": 3}
    said = front.summary(path)
    assert "AIG on KL 0 (1 training) less KL (3 trainings), 1 arm against 2, compared at 1 each: " in said
    assert (
        "AIG on every KL weight (3 trainings) less LoRA scaling (1 training), 5 arms against 1, compared at 1 each: "
        in said
    )


@pytest.mark.parametrize("name", ["sd14", "sdxl", "sd3", "flux"])
def test_presets_of_published_models_sweep_aig_for_every_kl_weight(name):
    evaluate = configuration.load(name).evaluate
    assert evaluate.kl_schedules == evaluate.schedules == ("linear", "power:2", "power:4", "step:0.6")
