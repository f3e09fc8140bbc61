"""Whose error it is: bad input ends with exit code 2, what nobody has foreseen with 1 and a hint at its traceback."""

from __future__ import annotations

import json

import pytest
from evaluations import arguments, save_lora
from measured_runs import build, given, settings
from PIL import Image
from pipeline_toys import overrides

from aig import adapters
from pipelines import config as configuration
from pipelines.__main__ import explain, main
from pipelines.config import ConfigError, RunError
from pipelines.evaluate import external
from pipelines.front import planes
from pipelines.measure import measure, per_arm, sets
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.runs.mirror import StorageError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was measured, by its own command."""
    found = build(settings(tmp_path_factory.mktemp("runs")))
    assert main(["measure", str(found.directory)]) == 0
    return found


def broken(kind):
    def function(*arguments, **named):
        raise kind("boom")

    return function


DEEP = [
    ("measure", sets, "frechet_distance"),
    ("measure", per_arm, "measure_broken"),
    ("measure", measure, "bootstrap"),
    ("front", planes, "optimal_mask"),
    ("front", planes, "bootstrap"),
]


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, AssertionError])
@pytest.mark.parametrize(("command", "module", "name"), DEEP)
def test_an_error_of_ours_deep_inside_is_none_of_the_inputs(command, module, name, kind, run, monkeypatch, capsys):
    if name == "measure_broken":
        module, name = per_arm.measure_broken, "of_scores"
    monkeypatch.setattr(module, name, broken(kind))
    if command == "measure":
        typed = ["measure", str(run.directory)]
    else:
        typed = [command, "--preset", "smoke", *given(run.directory.parent)]
    assert main(typed) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == f"internal error: {kind.__name__}: {kind('boom')} (--debug shows the traceback)"
    with pytest.raises(kind, match="boom"):
        main([*typed, "--debug"])


def test_errors_of_a_kind_are_told_in_its_words(capsys):
    told = {
        ConfigError("train.lr is -1: give more"): (2, "error: train.lr is -1: give more\n"),
        StorageError("s3://x: gone"): (1, "failed: s3://x: gone (--debug shows where)\n"),
        RunError("3 of 4 failed"): (1, "failed: 3 of 4 failed (--debug shows where)\n"),
        PermissionError(13, "Permission denied", "x"): (
            1, "failed: [Errno 13] Permission denied: 'x' (--debug shows where)\n",
        ),
        ModuleNotFoundError("No module named 'ray'", name="ray"): (
            1, "failed: the package ray is not installed: pip install 'aig[ray]' brings it\n",
        ),
        ValueError("two\nlines"): (1, "internal error: ValueError: two lines (--debug shows the traceback)\n"),
        RuntimeError("?"): (1, "internal error: RuntimeError: ? (--debug shows the traceback)\n"),
    }  # fmt: skip
    for error, (code, line) in told.items():
        assert explain(error) == code
        assert capsys.readouterr().err == line


SEARCHED = ["search.prompts=[a red star, a blue star]", "search.held_out=[a red heart, a blue heart]"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["evaluate", "evaluate.schedules=[cubic:2]"], "evaluate.schedules: schedule 'cubic:2' is not known"),
        (["evaluate", "evaluate.kl_schedules=['file:nowhere.json']"], "evaluate.kl_schedules: "),
        (["evaluate", "evaluate.rewards=[fragille]"], "evaluate.rewards: reward 'fragille' is not known"),
        (["evaluate", "evaluate.gold=goold"], "evaluate.gold: reward 'goold' is not known"),
        (["evaluate", "evaluate.prompts=[a beige dodecahedron, a red star]"], "evaluate.prompts: "),
        (["evaluate", "model.name=nowhere"], "model.name: "),
        (["evaluate", "model.scheduler=flow"], "model: sampling.scheduler = 'flow' does not fit"),
        (["evaluate", "model.scheduler=euler", "model.eta=0.5"], "model: sampling.eta = 0.5 needs DDIM"),
        (["evaluate", "--adapter", "mine=nowhere.safetensors"], "evaluate.adapters: mine: "),
        (["train", "train.reward=fragille"], "train.reward: reward 'fragille' is not known"),
        (["train", "train.prompts=[a beige dodecahedron, a red star]"], "train.prompts: "),
        (["train", "train.k=99"], "train: draft.k = 99"),
        (["train", "--dry-run", "model.name=nowhere"], "model: model 'nowhere'"),
        (["train", "--dry-run", "model.scheduler=flow"], "model: sampling.scheduler = 'flow' does not fit"),
        (["train", "--dry-run", "train.k=99"], "train: draft.k = 99"),
        (["search", "search.adapter=nowhere", *SEARCHED], "search.adapter: "),
    ],
)
def test_a_wrong_name_in_the_configuration_is_bad_input(wrong, expected, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command, *rest = wrong
    assert main([command, "--preset", "smoke", *overrides(model, tmp_path / "storage"), *rest]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and expected in err and err.count("\n") == 1


@pytest.mark.parametrize("reward", ["fragille", "0.5*fragile + x*robust", "nowhere:callable", "pipeline_toys:nothing"])
def test_a_wrong_reward_to_score_by_is_bad_input(reward, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a red star\n")
    assert main(["score", str(tmp_path), "--reward", reward]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "reward" in err and err.count("\n") == 1


def test_a_reward_that_cannot_score_is_bad_input_where_it_is_tried_out(model, tmp_path, capsys):
    wrong = "evaluate.rewards=['pipeline_toys:misshapen']"
    assert main(["check", "--weights", "--preset", "smoke", *overrides(model, tmp_path), wrong]) == 2
    assert "'pipeline_toys:misshapen' must return a tensor (1,)" in capsys.readouterr().err


def test_adapters_that_cannot_be_read_are_bad_input(tmp_path, capsys):
    lora = save_lora(tmp_path / "model", tmp_path / "mine.safetensors")
    asked = arguments(tmp_path / "model", lora, tmp_path, evaluate__rewards="['pipeline_toys:bright']")
    content = lora.read_bytes()
    lora.write_bytes(content[:100])
    assert main(["evaluate", *asked]) == 2
    assert "evaluate.adapters: mine: " in capsys.readouterr().err
    lora.write_bytes(content)
    found = configuration.load("smoke", None, asked[2:])
    identity.claim_directory(found)
    external.import_adapters(found)
    folder = RunDir.of(found).adapters / "mine"
    (folder / adapters.RECORD).write_text("{")
    assert main(["evaluate", *asked]) == 2
    assert "cannot read the adapter's record" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["metrics.parquet", "per_prompt.parquet"])
@pytest.mark.parametrize("spoilt", [True, False], ids=["spoilt", "missing"])
def test_what_was_not_measured_names_the_command_that_measures(file, spoilt, tmp_path, capsys):
    found = build(settings(tmp_path))
    assert main(["measure", str(found.directory)]) == 0
    path = found.directory / file
    path.write_bytes(b"PAR1") if spoilt else path.unlink()
    capsys.readouterr()
    assert main(["front", "--preset", "smoke", *given(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"{file} {'cannot be read' if spoilt else 'is missing'}" in err and err.count("\n") == 1
    assert f"run `python -m pipelines measure {found.directory}` first" in err
    assert main(["measure", str(found.directory)]) == 0
    assert main(["front", "--preset", "smoke", *given(tmp_path)]) == 0


def test_a_run_without_images_is_told_to_evaluate_and_not_to_measure_or_front(tmp_path, capsys):
    found = settings(tmp_path)
    identity.claim_directory(found)
    assert main(["front", "--preset", "smoke", *given(tmp_path)]) == 2
    assert "per_prompt.parquet is missing: run `python -m pipelines evaluate` with" in capsys.readouterr().err


def test_a_spoilt_file_of_images_is_named_with_what_makes_it(tmp_path, capsys):
    found = build(settings(tmp_path))
    path = next(RunDir.of(found).images.glob("part-*.parquet"))
    path.write_bytes(path.read_bytes()[:50])
    assert main(["measure", str(found.directory)]) == 2
    err = capsys.readouterr().err
    assert f"{path} cannot be read" in err and "delete it, and run `python -m pipelines evaluate`" in err


def test_statistics_that_cannot_be_read_are_named(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ConfigError, match=r"x\.json cannot be read .*: restore it, or delete it"):
        RunDir(path.parent).read_json(path)
