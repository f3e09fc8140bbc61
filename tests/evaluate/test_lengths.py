"""Path lengths of adapters: measured once, kept, and what auto weights and warnings make of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from evaluations import arguments, save_lora
from measured_runs import TUNED, refuse_ray, settings
from pipeline_toys import HERE
from safetensors.torch import load_file, save_file

from aig import adapters, models, schedules
from aig.models import TinyModel
from aig.sampler import tuned_length
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import overview
from pipelines.config import VALIDATION_SEEDS, ConfigError
from pipelines.evaluate import external, lengths
from pipelines.front.loading import read_front
from pipelines.runs.directory import RunDir
from pipelines.study import models as study_models
from pipelines.study.arms import check_arms
from pipelines.study.lengths import file
from pipelines.study.resolved import resolve, resolve_images

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

AUTO = "ramp:0.5,auto"


def keep(found, adapter, length):
    """An adapter's length as if it had been measured."""
    file(found, adapter).parent.mkdir(parents=True, exist_ok=True)
    file(found, adapter).write_text(json.dumps({"length": length, "key": "k"}))


def auto_arms(found):
    return [arm for arm in resolve(found).arms if arm.auto]


def test_an_auto_arm_keeps_its_name_and_has_its_adapters_own_weight_once_measured(tmp_path):
    found = settings(
        tmp_path, f"evaluate.schedules=['{AUTO}', 'mine={AUTO}@time']", "sweep.train_seeds=[0, 1]",
        "evaluate.spaces=[prediction, weight]",
    )  # fmt: skip
    names = [arm.arm.name for arm in auto_arms(found)]
    assert names[:4] == [f"{TUNED}+{name}" for name in (AUTO, f"{AUTO}@weight", "mine", "mine@weight")]
    assert {arm.family for arm in auto_arms(found)} == {"beyond", "beyondw"}
    assert {arm.arm.schedule for arm in auto_arms(found)} == {AUTO, f"{AUTO}@time"}
    keep(found, TUNED, 0.068)
    keep(found, TUNED.replace("-s0", "-s1"), 0.5)  # a weight under 1 changes no family
    assert [arm.arm.name for arm in auto_arms(found)] == names
    assert [arm.arm.schedule for arm in auto_arms(found)[::2]] == [
        "ramp:0.5,3.68", "ramp:0.5,3.68@time", "ramp:0.5,0.5", "ramp:0.5,0.5@time",
    ]  # fmt: skip
    assert {arm.family for arm in auto_arms(found)} == {"beyond", "beyondw"}
    (mean,) = resolve(found).means
    averaged = [arm for arm in mean.arms if arm.auto]
    assert averaged[0].members == (names[0], names[4]) and averaged[0].arm.schedule == averaged[0].auto == AUTO


def test_images_wait_for_the_weight_and_all_that_only_looks_does_not(tmp_path, monkeypatch):
    found = settings(tmp_path, f"evaluate.schedules=['{AUTO}']")
    monkeypatch.setattr(study_models, "adapter_digest", lambda config, name: "d" + name)
    check_arms(resolve(found).singles)
    with pytest.raises(ConfigError, match=r"auto has no weight yet, since the path length of .* is not measured: run"):
        resolve_images(found, TinyModel.defaults)


def test_a_run_without_weights_beyond_1_measures_nothing(tmp_path):
    lengths.ensure(settings(tmp_path, "evaluate.schedules=['power:2']"), TinyModel.defaults, refuse_ray)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return folder / "untrained", save_lora(folder / "untrained", folder / "mine.safetensors")


def given(inputs, storage, *forms, **more):
    few = {"evaluate__prompts": 4, "evaluate__rewards": "['pipeline_toys:bright']", "evaluate__lora_scales": "[]"}
    return arguments(*inputs, storage, evaluate__schedules=json.dumps(forms), **few, **more)


def test_an_auto_weight_of_somebodys_lora_is_measured_told_drawn_and_read_again(
    inputs, tmp_path, ray_cluster, capsys, monkeypatch
):
    texts = given(inputs, tmp_path, "linear", AUTO, "ramp:0.5,64", evaluate__spaces="[prediction, weight]")
    assert main(["evaluate", *texts]) == 0
    told = capsys.readouterr()
    found = configuration.load("smoke", None, texts[2:])
    model = models.load(str(inputs[0]))
    adapters.load(model.denoiser, inputs[1], "mine")
    sampling, prompts = study_models.evaluation_sampling(found, model.defaults), list(resolve(found).prompts[:3])
    seeds = [VALIDATION_SEEDS + index for index in range(8)]
    length = tuned_length(model, "mine", prompts, seeds, found.run.seed, sampling)
    record = json.loads(file(found, "mine").read_text())
    assert record["length"] == pytest.approx(length, rel=1e-5) and record["prompts"] == prompts
    fitted = schedules.fitted(AUTO, record["length"]).name
    line = f"mine: path length {length:.3g}, so {AUTO} is {fitted}"
    assert "Measuring the path length of mine on the first 3 prompts of evaluate.prompts, since" in told.out
    assert line in told.out.splitlines()
    warned = [text for text in told.err.splitlines() if text.startswith("warning: mine+")]
    assert [text.partition(": weight")[0] for text in warned] == [
        "warning: mine+ramp:0.5,64", "warning: mine+ramp:0.5,64@weight",
    ]  # fmt: skip
    assert (
        f"weight 64 times path length {length:.3g} is {64 * length:.2g}, beyond what was seen to hold (0.3)"
        in (warned[0])
    )
    arms = read_front(RunDir.of(found)).studies[0].by_name
    assert (arms[f"mine+{AUTO}"].schedule, arms[f"mine+{AUTO}"].auto) == (fitted, AUTO)
    assert "(8 arms" in overview.report(found.directory)

    monkeypatch.setattr("pipelines.commands.session.Session.connect", lambda *_, **__: refuse_ray())
    assert main(["evaluate", *texts]) == 0
    again = capsys.readouterr()
    assert line in again.out.splitlines() and "Measuring" not in again.out and "warning: mine+" in again.err
    for command in ("status", "measure", "front", "report"):
        at = [str(found.directory)] if command in ("status", "measure") else texts
        assert main([command, *at]) == 0, command


@pytest.fixture
def imported(inputs, tmp_path, monkeypatch):
    """A run with the LoRA in it, whose lengths `measured` gives, and the names that were asked for."""
    found = configuration.load("smoke", None, given(inputs, tmp_path, AUTO)[2:])
    RunDir.of(found).root.mkdir(parents=True)
    external.import_adapters(found)
    asked = []

    def measured(value):
        def fake(config, names, *rest):
            asked.extend(names)
            return dict.fromkeys(names, value)

        monkeypatch.setattr(lengths, "_measured", fake)
        return asked

    return found, measured


def test_other_weights_are_measured_again_and_the_same_are_not(imported):
    found, measured = imported
    asked = measured(0.1)
    for _ in range(2):
        lengths.ensure(found, TinyModel.defaults, lambda: None)
    assert asked == ["mine"] and auto_arms(found)[0].arm.schedule == "ramp:0.5,2.5"
    weights = RunDir.of(found).adapters / "mine" / adapters.WEIGHTS
    save_file({key: 2 * tensor for key, tensor in load_file(weights).items()}, weights)
    lengths.ensure(found, TinyModel.defaults, lambda: None)
    assert asked == ["mine", "mine"]


@pytest.mark.parametrize("length", [0.0, float("nan")])
def test_an_adapter_that_goes_nowhere_has_no_weight_and_is_refused_with_the_fix(imported, length):
    found, measured = imported
    measured(length)
    with pytest.raises(ConfigError, match=rf"adapter 'mine' has path length {length:g} to the base, by which .* leave"):
        lengths.ensure(found, TinyModel.defaults, lambda: None)


def test_an_auto_weight_that_a_fixed_schedule_has_too_draws_images_of_its_own(imported):
    found, measured = imported
    measured(0.1)
    both = replace(found, evaluate=replace(found.evaluate, schedules=(AUTO, "ramp:0.5,2.5")))
    lengths.ensure(both, TinyModel.defaults, lambda: None)
    study = resolve_images(both, TinyModel.defaults)
    assert [arm.arm.schedule for arm in study.arms[2:]] == ["ramp:0.5,2.5"] * 2
    check_arms(study.singles)
    assert len(set(study.origins.values())) == len(study.arms) == 4
