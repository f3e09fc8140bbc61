"""Adapters that somebody else made: named, refused where they do not fit, copied, and placed on the plane."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import measured_runs
import pytest
from pipeline_toys import overrides
from safetensors.torch import load_file, save_file

from aig import adapters, models
from aig.models import TinyModel
from aig.world.tiny import build_pipeline
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import overview
from pipelines.commands.options import parse
from pipelines.config import ConfigError
from pipelines.evaluate import external, generate
from pipelines.front import compare, front
from pipelines.front.loading import read_front
from pipelines.front.names import metric_name
from pipelines.report.reading import read_run
from pipelines.rewards import names
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study import arms
from pipelines.study import models as study_models
from pipelines.study.resolved import resolve, resolve_images
from pipelines.study.trials import Trials


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    """A LoRA file of nobody's run, for `model`."""
    denoiser = models.load(str(model)).denoiser
    adapters.attach(denoiser, "x", 2, 2.0, "attention")
    folder = adapters.save(denoiser, "x", tmp_path_factory.mktemp("loras") / "saved", {})
    path = folder.parent / "their lora.safetensors"
    shutil.copyfile(folder / adapters.WEIGHTS, path)
    return path


def only(storage, *texts, **more):
    """A run of external adapters alone, on no model in particular."""
    return measured_runs.settings(storage, "sweep.rewards=[]", f"evaluate.adapters={json.dumps(texts)}", *(
        f"{key.replace('__', '.')}={value}" for key, value in more.items()
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mine=lora.safetensors", "mine={here}/lora.safetensors"),
        ("/data/their lora.safetensors", "their-lora=/data/their lora.safetensors"),
        ("/data/run=7/lora.safetensors", "lora=/data/run=7/lora.safetensors"),
        ("/data/v1.5/pytorch_lora_weights.safetensors", "v1.5=/data/v1.5/pytorch_lora_weights.safetensors"),
        ("/data/v1.5", "v1.5=/data/v1.5"),
        ("~/x.safetensors", "x={home}/x.safetensors"),
    ],
)
def test_an_adapters_path_becomes_absolute_and_gives_it_a_name(given, expected):
    (found,) = configuration.load(None, None, [f"evaluate.adapters={json.dumps([given])}"]).evaluate.adapters
    assert found == expected.format(here=Path.cwd(), home=Path.home())


@pytest.mark.parametrize(
    ("adapters_", "expected"),
    [
        ("[base=/a]", "'base=/a' is not NAME=PATH with a plain name other than 'base'"),
        ("['mine=']", "'mine=' is not NAME=PATH"),
        ("['a b=/a']", "is not NAME=PATH"),
        ("[x=/a, x=/b]", "two adapters are called 'x'"),
    ],
)
def test_what_is_no_named_adapter_is_refused(adapters_, expected):
    with pytest.raises(ConfigError, match=expected):
        configuration.load(None, None, [f"evaluate.adapters={adapters_}"])


def test_the_option_leaves_the_sweep_out_and_the_key_stands_beside_it():
    from pipelines.commands.evaluate import resolve as configure

    alone = configure(parse(["evaluate", "--adapter", "mine=/a", "--adapter", "/b/theirs"]))
    assert (alone.sweep.rewards, alone.evaluate.adapters) == ((), ("mine=/a", "theirs=/b/theirs"))
    beside = configure(parse(["evaluate", "evaluate.adapters=[mine=/a]"]))
    assert [(one.name, one.k) for one in resolve(beside).singles] == [("fragile-k1-s0", 1), ("mine", None)]


def test_an_external_adapters_study_has_the_base_its_schedules_and_its_scales(tmp_path):
    (single,) = resolve(only(tmp_path, "mine=/a")).singles
    assert [(arm.arm.name, arm.family) for arm in single.arms] == [
        ("base", "base"), ("mine", "tuned"), ("mine+linear", "aig"), ("minex0.5", "lora"),
    ]  # fmt: skip
    assert (single.reward, single.k, single.train_seeds) == ("pipeline_toys:red", None, ())
    assert resolve(only(tmp_path, "mine=/a", "theirs=/b")).means == ()


def test_a_run_knows_its_adapters_by_name_wherever_they_lie(tmp_path):
    identity.claim_directory(only(tmp_path, "mine=/a/x"))
    identity.check_directory(only(tmp_path, "mine=/b/x"))
    with pytest.raises(ConfigError, match=r"evaluate.adapters = \['mine'\], not \['theirs'\]"):
        identity.check_directory(only(tmp_path, "theirs=/a/x"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"evaluate__schedules": "[power:2, power:2.0]"}, r"two arms are called 'mine\+power:2'"),
        ({"evaluate__schedules": "[power:2, curve=power:2]"}, r"'mine\+power:2' and 'mine\+curve' would be the same"),
        ({"evaluate__lora_scales": "[1]"}, "'mine' and 'minex1' would be the same images"),
        ({"evaluate__adapters": "[mine=/a, minex0.5=/b]"}, "two arms are called 'minex0.5'"),
        ({"evaluate__adapters": "[]"}, r"sweep.rewards and evaluate.adapters are both \[\]"),
    ],
)
def test_arms_that_would_be_one_are_refused(tmp_path, more, expected):
    with pytest.raises(ConfigError, match=expected):
        arms.check_arms(arms.studies(Trials.of(only(tmp_path, "mine=/a", **more))))


@pytest.mark.parametrize("preset", configuration.presets())
def test_the_arms_of_every_preset_are_distinct(preset):
    arms.check_arms(arms.studies(Trials.of(configuration.load(preset))))


def test_the_names_of_a_run_without_external_adapters_are_what_they_were(monkeypatch):
    """Runs that were begun before go on: what changes these draws every run's images anew."""
    monkeypatch.setattr(study_models, "fingerprint", lambda *named: "f")
    monkeypatch.setattr(study_models, "adapter_digest", lambda config, name: "d" + name)
    monkeypatch.setattr(names, "scoring_digests", lambda config, columns: "s")
    asked = configuration.load("smoke", None, ["evaluate.prompts=[a red circle, an orange square]"])
    found = generate.units(resolve_images(asked, TinyModel.defaults))
    assert [found[0].name, found[-1].name] == SMOKE_NAMES


SMOKE_NAMES = ["010b1e1ca473d018", "34cbecea2785108a"]


def evaluate(model, storage, *arguments, capsys, **more):
    """Exit code and errors of an evaluation that is to be refused before anything is written."""
    code = main(["evaluate", *arguments, "--preset", "smoke", *overrides(model, storage, **more), "sweep.rewards=[]"])
    assert not (storage / "smoke").exists()
    return code, capsys.readouterr().err


def test_an_adapter_that_is_not_there_is_named(model, tmp_path, capsys):
    code, err = evaluate(model, tmp_path, "--adapter", "mine=/nowhere/lora.safetensors", capsys=capsys)
    assert code == 2 and err.startswith("error: evaluate.adapters: mine: /nowhere/lora.safetensors does not exist")


def test_an_adapter_whose_tensors_do_not_match_is_refused(model, lora, tmp_path, capsys):
    tensors = {key: tensor[..., :1].contiguous() for key, tensor in load_file(lora).items()}
    save_file(tensors, tmp_path / "odd.safetensors")
    code, err = evaluate(model, tmp_path / "runs", "--adapter", str(tmp_path / "odd.safetensors"), capsys=capsys)
    assert code == 2 and "evaluate.adapters: odd: " in err and "does not fit" in err and err.count("\n") == 1


def test_an_adapter_of_another_kind_of_model_is_refused(model, lora, tmp_path, capsys):
    tensors = {key.replace("unet", "transformer"): tensor for key, tensor in load_file(lora).items()}
    save_file(tensors, tmp_path / "flux.safetensors")
    code, err = evaluate(model, tmp_path / "runs", "--adapter", str(tmp_path / "flux.safetensors"), capsys=capsys)
    assert code == 2 and "evaluate.adapters: flux: " in err and err.count("\n") == 1


def test_an_adapter_that_was_made_on_other_weights_of_the_same_kind_is_refused(model, lora, tmp_path, capsys):
    build_pipeline(1).save_pretrained(tmp_path / "other")
    code, err = evaluate(tmp_path / "other", tmp_path / "runs", "--adapter", f"{lora.parent}/saved", capsys=capsys)
    assert code == 2 and "evaluate.adapters: saved: " in err
    assert "the adapter was made on a UNet2DConditionModel of other weights than this one: set model.name" in err


def test_a_name_that_the_sweep_gives_itself_is_refused(model, lora, tmp_path):
    found = configuration.load("smoke", None, overrides(
        model, tmp_path, evaluate__adapters=f"['fragile-k1-kl0-s0={lora}']", sweep__rewards="[fragile]"
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="the sweep trains an adapter 'fragile-k1-kl0-s0' itself"):
        external.check(found, models.load(str(model)).denoiser)


def test_the_run_keeps_a_copy_which_is_what_counts_when_the_file_is_gone(model, lora, tmp_path, capsys):
    source = tmp_path / "mine.safetensors"
    shutil.copyfile(lora, source)
    found = configuration.load("smoke", None, overrides(model, tmp_path, evaluate__adapters=f"['{source}']"))
    external.import_adapters(found)
    copy = RunDir.of(found).adapters / "mine"
    assert (copy / adapters.WEIGHTS).read_bytes() == lora.read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == ["mine"] and str(copy) in capsys.readouterr().out
    source.unlink()
    external.import_adapters(found)
    external.check(found, models.load(str(model)).denoiser)
    assert study_models.adapter_digest(found, "mine") == adapters.digest(lora)

    tensors = load_file(lora)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, source)
    with pytest.raises(ConfigError, match=f"{copy} holds another adapter than {source}: give this one another name"):
        external.check(found, models.load(str(model)).denoiser)
    assert (copy / adapters.WEIGHTS).read_bytes() == lora.read_bytes()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two external adapters and no training, measured."""
    found = measured_runs.build(
        only(tmp_path_factory.mktemp("runs"), "mine=/a/x.safetensors", "theirs=/b/x.safetensors")
    )
    measured_runs.measured(found)
    return found


def test_each_external_adapter_has_a_front_of_its_own_and_claims_nothing_about_its_training(measured):
    front.write_front(resolve(measured))
    studies = read_front(RunDir.of(measured)).studies
    assert [(one.name, one.k, one.train_seeds) for one in studies] == [("mine", None, ()), ("theirs", None, ())]
    assert set(studies[0].plane.hypervolume) == {"aig", "lora", "all"}
    claims = [studies[0].statement(claim) for claim in studies[0].claims]
    assert claims[0] == "pipeline toys-red rises (tuned − base)"
    assert not any("training" in claim or "proxy" in claim for claim in claims)
    assert "mine: reward pipeline_toys-red, an adapter from elsewhere" in front.summary(RunDir.of(measured).front)


def test_a_report_reads_a_study_of_an_external_adapter(measured):
    front.write_front(resolve(measured))
    found = read_run(measured.directory).studies[0]
    assert (found.k, found.train_seeds) == (None, ())
    assert found.title == "mine, an adapter from elsewhere, by pipeline_toys-red reward"
    assert found.role_of(found.reward) == metric_name("pipeline_toys-red") != "proxy"


def test_the_status_of_a_run_without_training_counts_its_images(measured):
    told = overview.report(measured.directory)
    assert "trainings  none" in told and "7 arms" in told and "besides" not in told


def test_two_runs_of_external_adapters_are_compared(measured, tmp_path):
    again = measured_runs.build(replace(measured, run=replace(measured.run, storage=str(tmp_path))), gain=0.5)
    measured_runs.measured(again)
    found = compare.compare(resolve(measured), resolve(again))
    assert found.path.exists()
