"""Rivals of annealing as arms of a run: their texts, their arms, and their images against arms made by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import measured_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import add_random_adapter
from PIL import Image
from pipeline_toys import overrides

from aig import adapters, models, schedules
from aig.adapters.routing import base_weight, lora_layers
from aig.models import TinyModel
from aig.sampler import Arm, sample_arms, to_uint8
from pipelines import config as configuration
from pipelines.commands import overview
from pipelines.config import ConfigError
from pipelines.config import rivals as texts
from pipelines.evaluate import generate, lengths, scorers
from pipelines.evaluate import images as dataset
from pipelines.measure import measure
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study import arms, rivals
from pipelines.study.resolved import resolve, resolve_images
from pipelines.study.trials import Trials

KEY = "pipeline_toys-red-k1"
TUNED, REGULARIZED = f"{KEY}-kl0-s0", f"{KEY}-kl10-s0"
SOUP = f"{KEY}-kl0=0.75|{KEY}-kl10=0.5"
RIVALS = {
    "evaluate__guidance": "[5, 7@0.2-0.8]", "evaluate__autoguidance": "['2=1.5']",
    "evaluate__soups": f"['{SOUP}']", "evaluate__best_of": "[2, 3]",
}  # fmt: skip


def settings(storage, model="tiny", **more):
    asked = overrides(model, storage, **{"sweep__kl_weights": "[0, 10]", **RIVALS, **more})
    return configuration.load("smoke", None, asked)


def names(found, family):
    return [arm.arm.name for arm in resolve(found).singles[0].arms if arm.family == family]


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run whose adapters are random, and whose images are drawn and scored in this process."""
    found = settings(tmp_path_factory.mktemp("runs"), model)
    identity.claim_directory(found)
    tuned = models.load(str(model))
    for seed, name in enumerate((TUNED, f"{TUNED}@2", REGULARIZED), start=1):
        add_random_adapter(tuned, name, seed=seed)
        adapters.save(tuned.denoiser, name, RunDir.of(found).adapters / name, {})
    study = resolve_images(found, TinyModel.defaults)
    generator, scorer = generate.Generator(study), scorers.Scorer(generate.Evaluation(study))
    for unit in generate.units(study):
        scorer(generator(pa.Table.from_pylist([unit.row()])))
    return found, study, tuned


def drawn(found, name):
    """An arm's images (prompts, seeds, H, W, 3)."""
    tables = [pq.read_table(path, columns=["arm", "image"]) for path in sorted(RunDir.of(found).images.iterdir())]
    images = [row["image"] for table in tables for row in table.to_pylist() if row["arm"] == name]
    return np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images]).astype(int)


def by_hand(found, model, arm, seeds=(0, 1), **sampling):
    """The same, in the order of the units' files."""
    order = [pq.read_table(path, columns=["prompt"])["prompt"][0].as_py() for path in
             sorted(RunDir.of(found).images.iterdir())]  # fmt: skip
    prompts = [prompt for prompt in order for _ in seeds]
    samples = sample_arms(
        model, prompts, [*seeds] * len(order), [arm], 0, replace(TinyModel.defaults, steps=3, **sampling)
    )
    with torch.no_grad():
        return to_uint8(model.decode(samples.latents[arm.name])).numpy().astype(int)


def test_every_rival_is_an_arm_of_a_family_of_its_own(tmp_path):
    found = settings(tmp_path)
    assert names(found, "guidance") == [
        f"{TUNED}+guidance 5", f"{TUNED}+guidance 7@0.2-0.8", "base guidance 5", "base guidance 7@0.2-0.8",
    ]  # fmt: skip
    assert names(found, "autoguidance") == [f"{TUNED}+autoguidance 2=1.5"]
    assert names(found, "soup") == [f"{TUNED}+soup {SOUP}"]
    assert names(found, "best") == [f"best of {n} by pipeline_toys-red" for n in (2, 3)]
    study = resolve(found).singles[0]
    assert study.trainings(a for a, arm in enumerate(study.arms) if arm.family == "soup") == 2
    assert overview.arm_count(Trials.of(found)) == len(resolve(found).arms)


def test_rivals_of_the_base_are_drawn_once_for_all_studies_and_the_others_are_averaged_over_seeds(tmp_path):
    found = settings(tmp_path, sweep__train_seeds="[0, 1]")
    study, one = resolve(found), resolve(settings(tmp_path))
    of_base = sum(arm.arm.adapter is None for arm in one.arms)
    assert of_base == 1 + 2 + 2  # the base, two of guidance, two draws
    assert len(study.arms) == of_base + 2 * (len(one.arms) - of_base) == overview.arm_count(Trials.of(found))
    (mean,) = study.means
    (soup,) = (arm for arm in mean.arms if arm.family == "soup")
    assert soup.members == tuple(f"{KEY}-kl0-s{seed}+soup {SOUP}" for seed in (0, 1))
    assert [study.arms[[arm.arm.name for arm in study.arms].index(name)].arm.adapter for name in soup.members] == [
        f"{KEY}-kl0-s{seed}=0.75|{KEY}-kl10-s{seed}=0.5" for seed in (0, 1)
    ]
    of_base = [arm for arm in mean.arms if arm.arm.adapter is None]
    assert [arm.family for arm in of_base] == ["base", "guidance", "guidance", "best", "best"]
    assert not any(arm.members for arm in of_base)


@pytest.mark.parametrize("who", ["base", TUNED])
def test_other_guidance_scales_are_those_of_another_sampling(run, who):
    found, _, tuned = run
    arm = Arm("arm", None if who == "base" else who, schedule="base" if who == "base" else "tuned")
    expected = by_hand(found, tuned, arm, guidance=5.0)
    name = "base guidance 5" if who == "base" else f"{TUNED}+guidance 5"
    assert np.abs(drawn(found, name) - expected).max() <= 1
    assert np.abs(drawn(found, who) - expected).max() > 1


def test_a_guidance_interval_guides_the_steps_in_it_alone(run):
    """Of the steps at u = 0, 1/3 and 2/3, the last two."""
    found, _, tuned = run
    arm = Arm("arm", schedule="base", guidance=7.0, interval=(0.2, 0.8))
    images = drawn(found, "base guidance 7@0.2-0.8")
    assert np.abs(images - by_hand(found, tuned, arm)).max() <= 1
    assert np.abs(images - by_hand(found, tuned, Arm("arm", schedule="base"), guidance=7.0)).max() > 1


def test_autoguidance_takes_the_snapshot_in_the_bases_place(run):
    found, _, tuned = run
    arm = Arm("arm", TUNED, schedule="constant:1.5", against=f"{TUNED}@2")
    assert np.abs(drawn(found, f"{TUNED}+autoguidance 2=1.5") - by_hand(found, tuned, arm)).max() <= 1


def test_a_soups_images_are_those_of_a_model_with_the_weighted_sum_in_its_weights(run):
    found, _, tuned = run
    own = {id(layer): base_weight(layer).data for layer in lora_layers(tuned.denoiser)}
    try:
        for layer in lora_layers(tuned.denoiser):
            sum_ = sum(w * layer.get_delta_weight(name) for name, w in ((TUNED, 0.75), (REGULARIZED, 0.5)))
            base_weight(layer).data = own[id(layer)] + sum_.detach()
        expected = by_hand(found, tuned, Arm("arm", schedule="base"))
    finally:
        for layer in lora_layers(tuned.denoiser):
            base_weight(layer).data = own[id(layer)]
    assert np.abs(drawn(found, f"{TUNED}+soup {SOUP}") - expected).max() <= 1
    assert np.abs(drawn(found, TUNED) - expected).max() > 1


def test_the_draws_of_best_of_n_are_the_bases_later_seeds(run):
    found, _, tuned = run
    expected = by_hand(found, tuned, Arm("arm", schedule="base"), seeds=(2, 3))
    assert np.abs(drawn(found, "base draw 2") - expected).max() <= 1


def test_a_rerun_draws_nothing_and_all_rivals_are_measured(run):
    found, study, _ = run
    assert generate.generate(study, measured_runs.refuse_ray) == 0
    images = dataset.read(study, without=measure.UNNEEDED)
    assert (images.found, images.missing, images.others) == (images.expected, 0, 0)
    table = measure.measure(study, images, "a command", measured_runs.refuse_ray)
    assert table.arms == [arm.arm.name for arm in study.judged] and not table.broken
    proxy = table.rows(["base", *names(found, "best")])["pipeline_toys-red"]
    assert (np.diff(proxy, axis=0) >= 0).all() and proxy[-1].sum() > proxy[0].sum()


def test_images_of_a_soup_and_of_autoguidance_are_made_anew_when_any_of_their_adapters_changes(run, monkeypatch):
    found, study, _ = run
    from pipelines.study import models as study_models

    digest = study_models.adapter_digest
    for changed, others in ((REGULARIZED, {f"{TUNED}+soup {SOUP}"}), (f"{TUNED}@2", {f"{TUNED}+autoguidance 2=1.5"})):
        monkeypatch.setattr(
            study_models, "adapter_digest", lambda config, name, c=changed: digest(config, name) + "x" * (name == c)
        )
        anew = resolve_images(found, TinyModel.defaults).origins
        assert {name for name in anew if anew[name] != study.origins[name]} == {changed, *others} & anew.keys()


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("guidance", "strong", "'strong' is no scale from 1 on"),
        ("guidance", "0.5", "'0.5' is no scale"),
        ("guidance", "7@0.8-0.2", "0 <= BEGIN < END"),
        ("guidance", "7@0.2", "write 5 or 7@0.2-0.8"),
        ("guidance", "5', '5.0", "'5' and '5.0' are the same"),
        ("guidance", "nan", "is no scale"),
        ("autoguidance", "2", "'2' is not STEP=WEIGHT"),
        ("autoguidance", "2=1", "a weight above 1"),
        ("autoguidance", "2=nan", "write 40=2"),
        ("soups", "a=1", "two or more different adapters"),
        ("soups", "a=1|a=1", "two or more different adapters"),
        ("soups", "a=0.5|b", "is not ADAPTER=WEIGHT"),
        ("soups", "a=0.5|b=0", "weights above 0"),
    ],
)
def test_a_text_of_another_form_is_refused_with_one_that_works(tmp_path, key, text, expected):
    with pytest.raises(ConfigError, match=rf"evaluate\.{key}: .*{expected}"):
        settings(tmp_path, **{f"evaluate__{key}": f"['{text}']"})


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"evaluate__autoguidance": "['3=2']"}, r"no snapshot of step 3: choose among \[2\]"),
        ({"evaluate__soups": f"['{KEY}-kl0=0.5|{KEY}-kl1=0.5']"}, f"called '{KEY}-kl1': did you mean '{KEY}-kl10'"),
        ({"evaluate__soups": f"['mine=0.5|{KEY}-kl0=0.5']", "evaluate__adapters": "[mine=/a]"}, "put one of those"),
        ({"train__method": "full"}, "is a full copy"),
    ],
)  # fmt: skip
def test_what_the_run_does_not_have_is_refused_with_the_fix(tmp_path, more, expected):
    trials = Trials.of(settings(tmp_path, **more))
    with pytest.raises(ConfigError, match=expected):
        arms.check_arms(arms.studies(trials))
        rivals.check_soups(trials)


def test_autoguidance_needs_no_path_length_since_its_weight_is_not_against_the_base(tmp_path):
    lengths.ensure(settings(tmp_path), TinyModel.defaults, measured_runs.refuse_ray)


def test_rivals_allow_the_weights_that_schedules_allow():
    assert texts.MOST == schedules.MOST


def test_the_models_own_guidance_scale_is_no_rival(tmp_path):
    with pytest.raises(ConfigError, match="'3' is the model's own scale"):
        rivals.check_guidance(settings(tmp_path, evaluate__guidance="['3']"), TinyModel.defaults)
    rivals.check_guidance(settings(tmp_path, evaluate__guidance="['3@0.1-1', 4]"), TinyModel.defaults)
