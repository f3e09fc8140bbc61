"""Where schedules act, and weights beyond 1, through the application: costs, refusals, images, results."""

from __future__ import annotations

import csv
import json

import pytest
from evaluations import arguments, by_hand, save_lora
from measured_runs import TUNED, build, measured, settings
from models import tiny_with
from pipeline_toys import overrides

from aig import adapters, models
from aig.sampler import Sampling, sample_arms
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import overview
from pipelines.front import front
from pipelines.front.loading import read_front
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve

BOTH = "evaluate.spaces=[prediction, weight]"
SIX = ("evaluate.lora_scales=[]", "evaluate.early_stops=[]", "model.steps=25")
FORMS = (
    "evaluate.schedules=['power:2', 'ramp:0.5,3', 'constant:2', 'coin:linear']", "evaluate.lora_scales=[2]", BOTH,
)  # fmt: skip
NAMES = (
    "+power:2", "+power:2@weight", "+ramp:0.5,3", "+ramp:0.5,3@weight", "+constant:2", "+coin:linear", "x2",
)  # fmt: skip


@pytest.mark.parametrize(("spaces", "predictions"), [("prediction", 199), ("weight", 132)])
def test_the_published_arms_cost_199_predictions_of_300_and_in_weight_space_132(spaces, predictions, tmp_path):
    published = "evaluate.schedules=[linear, 'power:2', 'power:4', 'step:0.6']"
    study = resolve(settings(tmp_path, *SIX, published, f"evaluate.spaces=[{spaces}]"))
    arms, paper = [arm.arm for arm in study.arms], Sampling(steps=25, guidance=1.0, block=1)
    cost = sample_arms(tiny_with(TUNED), ["a red star"], [0], arms, sampling=paper).cost
    assert (len(arms), cost.predictions, cost.published) == (6, predictions, 300)


def test_full_fine_tuning_in_weight_space_is_refused_with_the_reason_and_the_fix(capsys):
    assert main(["check", "--preset", "smoke", "train.method=full", BOTH]) == 2
    assert capsys.readouterr().err == (
        "error: evaluate.spaces is ['prediction', 'weight'], and train.method is full: weight space changes a LoRA's "
        "scale from step to step, and there is none; give evaluate.spaces=[prediction]\n"
    )


def test_a_full_copy_from_elsewhere_in_weight_space_is_refused_too(model, tmp_path, capsys):
    denoiser = models.load(str(model)).denoiser
    adapters.full(denoiser, "x")
    folder = adapters.save(denoiser, "x", tmp_path / "whole", {})
    given = ["evaluate", "--adapter", f"mine={folder}", "--preset", "smoke", *overrides(model, tmp_path), BOTH]
    assert main(given) == 2
    assert "and the adapter 'mine' is a full copy of the denoiser: weight space" in capsys.readouterr().err


def test_an_adapter_from_elsewhere_is_drawn_in_every_form(tmp_path):
    model = tmp_path / "untrained"
    lora = save_lora(model, tmp_path / "mine.safetensors")
    given = arguments(model, lora, tmp_path, evaluate__prompts=2, evaluate__rewards="['pipeline_toys:bright']")
    found = configuration.load("smoke", None, [*given[2:], *FORMS])
    assert [arm.arm.name for arm in resolve(found).arms] == ["base", "mine", *(f"mine{name}" for name in NAMES)]
    assert len(by_hand(found)) == 2
    assert "0 of 2 units (9 arms" not in overview.report(found.directory)
    assert "2 of 2 units (9 arms" in overview.report(found.directory)


def test_results_say_how_each_arm_sampled_and_those_of_before_are_read_still(tmp_path):
    found = build(settings(tmp_path, *FORMS))
    measured(found)
    files = RunDir.of(found)
    front.write_front(resolve(found))
    arms = read_front(files).studies[0].by_name
    assert arms[f"{TUNED}+power:2@weight"].space == "weight" and arms[f"{TUNED}+power:2"].space == "prediction"
    with files.table.open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert {rows[f"{TUNED}{name}"]["space"] for name in NAMES if name.endswith("weight")} == {"weight"}
    assert (rows["base"]["guidance"], rows["base"]["interval"], rows["base"]["against"]) == ("", "[0.0, 1.0]", "")
    content = json.loads(files.front.read_text())
    for one in content["studies"][0]["arms"]:
        for name in ("space", "guidance", "interval", "against"):
            del one[name]
    files.front.write_text(json.dumps(content))
    assert read_front(files).studies[0].by_name[f"{TUNED}+power:2@weight"].space == "prediction"
