"""Which family an arm is of, which arms a comparison counts to one, and what each pays for."""

from __future__ import annotations

import re

import numpy as np
import pytest
from measured_runs import TUNED, build, measured, settings

from aig import schedules
from pipelines import config as configuration
from pipelines.config import ConfigError
from pipelines.front import families, front, planes
from pipelines.front.loading import read_front
from pipelines.report import style
from pipelines.runs.directory import RunDir
from pipelines.study.arms import check_arms
from pipelines.study.resolved import resolve

SWEPT = ("sweep.kl_weights=[0, 1, 10]", "evaluate.kl_schedules=[linear, 'power:2', 'constant:0.5']")


def guided(tmp_path, *more):
    return [arm for arm in resolve(settings(tmp_path, *more)).arms if "+" in arm.arm.name]


def family_of(schedule, tmp_path, *more):
    return guided(tmp_path, f"evaluate.schedules=['{schedule}']", *more)[0]


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


@pytest.mark.parametrize(
    ("schedule", "family", "label"),
    [
        ("constant:1", "fixed", "fixed mix 1"),
        ("constant:1.5", "rlg", "RLG 1.5"),
        ("mine=ramp:0,2", "beyond", "annealed mine"),
        ("ramp:0.5,3", "beyond", "annealed ramp:0.5,3"),
        ("ramp:0.5,1", "aig", "AIG ramp:0.5,1"),
        ("3*power:2", "beyond", "annealed 3*power:2"),
        ("1.2*linear", "aig", "AIG 1.2*linear"),  # 0.8 at the last of three steps
        ("1.2*linear@time", "beyond", "annealed 1.2*linear@time"),
        ("piecewise:0=0|0.6=1.5|1=1", "beyond", "annealed piecewise:0=0|0.6=1.5|1=1"),
        ("coin:power:2", "coin", "coin power:2"),
        ("coin:constant:0.5", "coin", "coin constant:0.5"),
        ("mine=coin:linear", "coin", "coin mine"),
    ],
)
def test_a_weight_above_1_at_the_runs_steps_is_extrapolation_and_a_coin_is_neither(schedule, family, label, tmp_path):
    arm = family_of(schedule, tmp_path)
    assert (arm.family, arm.label) == (family, label)


def test_extrapolation_on_kl_regularized_adapters_alone_is_not_called_on_every_kl_weight():
    name = families.family_name
    assert name("kl-beyond", ["aig", "kl-beyond"]) == "annealed extrapolation on KL > 0"
    assert name("kl-beyond", ["beyond", "kl-beyond"]) == "annealed extrapolation on every KL weight"
    assert name("beyond", ["beyond", "kl-beyond"]) == "annealed extrapolation on KL 0"


def test_a_grid_that_the_model_sets_itself_is_taken_as_fine(tmp_path):
    assert [family_of("1.2*linear", tmp_path, f"model.steps={steps}").family for steps in (3, "null")] == [
        "aig", "beyond",
    ]  # fmt: skip


def test_each_space_has_an_arm_of_every_schedule_that_varies_and_is_no_coin(tmp_path):
    swept = ("sweep.kl_weights=[0, 10]", "evaluate.kl_schedules=['ramp:0,2', 'constant:2']")
    forms = "evaluate.schedules=['power:2', 'constant:0.5', 'coin:linear']"
    both = guided(tmp_path, *swept, forms, "evaluate.spaces=[prediction, weight]")
    kl = TUNED.replace("kl0", "kl10")
    assert [(arm.arm.name, arm.arm.space, arm.family) for arm in both] == [
        (f"{TUNED}+power:2", "prediction", "aig"), (f"{TUNED}+power:2@weight", "weight", "aigw"),
        (f"{TUNED}+constant:0.5", "prediction", "fixed"), (f"{TUNED}+coin:linear", "prediction", "coin"),
        (f"{kl}+ramp:0,2", "prediction", "kl-beyond"), (f"{kl}+ramp:0,2@weight", "weight", "kl-beyondw"),
        (f"{kl}+constant:2", "prediction", "kl-rlg"),
    ]  # fmt: skip
    assert both[1].label == "AIG power:2 (weight space)" and both[1].id != both[0].id
    alone = guided(tmp_path, *swept, forms, "evaluate.spaces=[weight]")
    assert [arm.family for arm in alone] == ["aigw", "fixed", "coin", "kl-beyondw", "kl-rlg"]


def test_a_label_that_says_weight_does_not_clash_with_weight_space(tmp_path):
    forms = "evaluate.schedules=['weight=power:3', 'linear.weight=power:2', linear]"
    check_arms(resolve(settings(tmp_path, forms, "evaluate.spaces=[prediction, weight]")).singles)


def test_lora_scales_above_1_are_lora_scaling_and_end_at_64(tmp_path):
    arms = resolve(settings(tmp_path, "evaluate.lora_scales=[2, 64]")).arms
    assert [(arm.arm.lora_scale, arm.family) for arm in arms if "×" in arm.label] == [(2.0, "lora"), (64.0, "lora")]
    with pytest.raises(ConfigError, match=r"evaluate\.kl_lora_scales is 65.0: give a number .*at most 64"):
        settings(tmp_path, "evaluate.kl_lora_scales=[65]")
    assert configuration.rivals.MOST == schedules.MOST


@pytest.mark.parametrize(("given", "said"), [("[]", "give prediction, weight or both"), ("[pixel]", "give one of")])
def test_other_spaces_are_refused(given, said, tmp_path):
    with pytest.raises(ConfigError, match=rf"evaluate\.spaces is .*{said}"):
        settings(tmp_path, f"evaluate.spaces={given}")


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
    rivals = {ours: {b for a, b in planes.COMPARISONS if a == ours} for ours in families.OURS}
    assert rivals["aig"] >= {"kl", "lora", "fixed", "early", "trial", "coin"}
    assert rivals["kl-aig"] >= {"kl", "lora", "kl-lora", "kl-fixed"}
    assert rivals["kl-beyond"] >= {"aig", "kl", "lora", "rlg", "early", "best", "guidance", "soup"}
    assert (rivals["aigw"], rivals["kl-beyondw"]) == ({"aig"}, {"kl-beyond"})


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
    lines = [re.split("  +", line.strip()) for line in said.splitlines()]
    assert ["AIG, KL 0 (1)", "KL (3)", "1|2 at 1"] in [line[:3] for line in lines]
    assert ["AIG, every KL (3)", "LoRA scaling (1)", "5|1 at 1"] in [line[:3] for line in lines]
    assert ["AIG, every KL", "KL", "5|2 at 2"] in [line[:3] for line in lines]
    assert max(len(line) for line in said.splitlines() if line.startswith("    ")) <= 120


def test_short_names_are_as_distinct_as_long_ones():
    every = families.FAMILIES
    for present in ((), tuple(every), tuple(family for family in every if family not in families.WAYS)):
        shown = [family for family in every if not present or family in present]
        assert len({families.short_name(family, present) for family in shown}) == len(shown)
    assert max(len(families.short_name(family, tuple(every))) for family in every) <= 39
    assert families.short_name("kl-beyondw", ("kl-beyondw",)) == "extrapolation in weights, KL > 0"


@pytest.mark.parametrize("name", ["sd14", "sdxl", "sd3", "flux"])
def test_presets_of_published_models_sweep_aig_for_every_kl_weight(name):
    evaluate = configuration.load(name).evaluate
    assert evaluate.kl_schedules == evaluate.schedules == ("linear", "power:2", "power:4", "step:0.6")
