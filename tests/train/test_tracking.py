"""What TensorBoard, Weights & Biases and MLflow are told of a training; the two packages are stand-ins that record."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.runs.directory import RunDir
from pipelines.study import trainings
from pipelines.train import tracking
from pipelines.train.tracking import Tracker

HERE = Path(__file__).parents[1] / "support"
STAND_INS = HERE / "stand_ins"
RECORD = {"step": 0, "train": {"reward": "fragile", "kl_weight": 10.0}, "model": {"name": "tiny"}}
KEY = "fragile-k1-kl0-s0"


@pytest.fixture
def run(tmp_path):
    return configuration.load("smoke", None, [f"run.storage={tmp_path}"])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((8, 16, 3), 200, np.uint8)).save(path)
    return path


def shown(found):
    """Tag -> [(step, value)], as TensorBoard shows it."""
    events = EventAccumulator(str(RunDir.of(found).tensorboard / KEY), {"images": 0, "scalars": 0})
    events.Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    sizes = {tag: [(e.step, (e.width, e.height)) for e in events.Images(tag)] for tag in events.Tags()["images"]}
    return points | sizes


def track(found, picture, start, *steps, sign=1):
    """Track steps after `start`, a validation at even ones and at 0."""
    tracker = Tracker(found, RECORD, start)
    for step in steps:
        if step > 0:
            tracker.step(step, {"loss": sign * step, "gradient": float("nan") if step == 3 else 1.0})
        if step % 2 == 0:
            tracker.validation(step, {"reward": sign * step, "scores/robust": 0.5}, picture)
    tracker.close()


def test_tensorboard_shows_every_step_and_every_validation_with_its_picture(run, picture):
    track(run, picture, 0, 0, 1, 2, 3, 4)
    assert shown(run) == {
        "training/loss": [(1, 1), (2, 2), (3, 3), (4, 4)],
        "training/gradient": [(1, 1), (2, 1), (4, 1)],
        "validation/reward": [(0, 0), (2, 2), (4, 4)],
        "scores/robust": [(0, 0.5), (2, 0.5), (4, 0.5)],
        "validation/images": [(0, (16, 8)), (2, (16, 8)), (4, (16, 8))],
    }


def test_a_resumed_training_shows_no_point_twice(run, picture):
    track(run, picture, 0, 0, 1, 2, 3, 4, 5)
    track(run, picture, 2, 3, 4, 5, 6, sign=-1)
    points = shown(run)
    assert points["training/loss"] == [(1, 1), (2, 2), (3, -3), (4, -4), (5, -5), (6, -6)]
    assert points["validation/reward"] == [(0, 0), (2, 2), (4, -4), (6, -6)]


def test_a_training_that_begins_anew_shows_nothing_of_the_one_before(run, picture):
    track(run, picture, 0, 0, 1, 2, 3, 4)
    track(run, picture, 0, 0, 1, sign=-1)
    assert shown(run)["training/loss"] == [(1, -1)] and shown(run)["validation/reward"] == [(0, 0)]


def test_nothing_is_written_where_tensorboard_is_off(run, picture):
    off = replace(run, run=replace(run.run, tensorboard=False))
    tracker = Tracker(off, RECORD, 0)
    tracker.step(1, {"loss": 1.0})
    tracker.validation(2, {"reward": 1.0}, picture)
    tracker.close()
    assert not off.directory.exists()


def test_settings_are_told_by_flat_names_and_short_texts():
    assert tracking.flat({"train": {"lr": 0.1, "prompts": ["x" * 300]}, "model": {"variant": None}}) == {
        "train.lr": 0.1, "train.prompts": ("['" + "x" * 300)[: tracking.TEXT], "model.variant": "None",
    }  # fmt: skip


SCRIPT = """
import json, os, sys
from pathlib import Path
from pipelines import config
from pipelines.train.tracking import Tracker
from recording import record as note
overrides, picture, sessions = json.loads(sys.argv[1])
for session in sessions:
    note("session")
    os.environ["STAND_IN_DOWN"] = session.get("down", "")
    tracker = Tracker(config.load("smoke", None, overrides), session["record"], session["start"])
    for step in session["steps"]:
        tracker.validation(step, {"reward": float(step)}, Path(picture))
    tracker.close()
"""


def session(start, *steps, record=RECORD, **more):
    return {"start": start, "steps": steps, "record": record, **more}


def elsewhere(found, service, picture, *sessions):
    """Track validations in another process, where the stand-ins are installed; what they recorded, a list a session."""
    place = {"wandb": "project", "mlflow": str(found.directory.parent / "server")}[service]
    overrides = [f"run.storage={found.run.storage}", "run.tensorboard=false", f"run.{service}={place}"]
    calls = found.directory.parent / "calls"
    places = {"PYTHONPATH": os.pathsep.join([str(STAND_INS), str(HERE.parents[1])]), "STAND_IN_CALLS": str(calls)}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([overrides, str(picture), sessions])],
        env={**os.environ, **places}, check=True, timeout=120, cwd=HERE.parents[1],
    )  # fmt: skip
    recorded: list[list[dict]] = []
    for line in calls.read_text().splitlines():
        call = json.loads(line)
        if call["call"] == "session":
            recorded.append([])
        else:
            recorded[-1].append(call)
    return recorded


def steps_of(calls, name):
    return [call["step"] for call in calls if call["call"] == name]


def test_wandb_has_a_run_a_training_that_a_resumed_one_goes_on_in(run, picture):
    other = {**RECORD, "train": {"reward": "robust"}}
    sessions = session(0, 0, 2, 4), session(2, 4, 6), session(0, 0, record=other)
    first, second, third = elsewhere(run, "wandb", picture, *sessions)
    assert [call["call"] for call in first] == ["init", "log", "log", "log", "finish"]
    init = first[0]
    expected = {"project": "project", "group": "smoke", "name": f"smoke {KEY}", "resume": "allow"}
    assert expected.items() <= init.items()
    assert init["config"]["train.kl_weight"] == 10.0
    assert first[1] == {"call": "log", "step": 0, "values": {"reward": 0.0, "images": str(picture)}}
    assert second[0]["id"] == init["id"] and steps_of(second, "log") == [6]
    assert third[0]["id"] != init["id"] and steps_of(third, "log") == [0]


def test_mlflow_has_a_run_a_training_that_a_resumed_one_goes_on_in(run, picture, tmp_path):
    """A server that is down does not cost the training; it gets what a resumed one validates again."""
    sessions = session(0, 0, 2), session(0, 0, 2, 4), session(4, 6, down="1"), session(4, 6, 8)
    first, second, down, third = elsewhere(run, "mlflow", picture, *sessions)
    found = {call["call"]: call for call in first}
    assert found["set_tracking_uri"]["uri"] == str(tmp_path / "server")
    assert found["create_experiment"]["name"] == "smoke"
    assert (found["start_run"]["name"], found["start_run"]["experiment"]) == (KEY, "7")
    assert {"call": "log_param", "key": "train.kl_weight", "value": 10.0} in first
    logged = [(call["step"], call["values"]) for call in first if call["call"] == "log_metrics"]
    assert logged == [(0, {"reward": 0.0}), (2, {"reward": 2.0})]
    assert found["log_artifact"] == {"call": "log_artifact", "path": str(picture), "folder": "validation"}
    assert first[-1]["call"] == "end_run"
    begun = next(call for call in second if call["call"] == "start_run")
    assert begun["known"] == begun["id"] == found["start_run"]["id"]
    assert "log_param" not in {call["call"] for call in second}
    assert steps_of(second, "log_metrics") == [4]
    assert steps_of(down, "log_metrics") == [] and down[-1]["call"] == "end_run"
    assert steps_of(third, "log_metrics") == [6, 8]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named_before_anything_starts(package, tmp_path, capsys):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    arguments = ["train", "--preset", "smoke", f"run.storage={tmp_path / 'runs'}", f"run.{package}=there"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert f"run.{package} is 'there', and the package {package} is not installed: run `pip install {package}`" in err
    assert err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_sweep_tells_all_of_its_trainings(tmp_path):
    calls = tmp_path / "calls"
    place = [str(STAND_INS), str(HERE), str(HERE.parents[1])]
    arguments = [f"run.storage={tmp_path}", "run.wandb=project", "ray.address=local", "sweep.kl_weights=[0, 1]"]
    subprocess.run(
        [sys.executable, "-m", "pipelines", "sweep", "--train-only", "--preset", "smoke", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(place), "STAND_IN_CALLS": str(calls)},
        check=True, timeout=240, cwd=HERE.parents[1],
    )  # fmt: skip
    found = [json.loads(line) for line in calls.read_text().splitlines()]
    keys = [trainings.adapter_key(train) for train in trainings.trainings(configuration.load("smoke", None, arguments))]
    assert {call["name"] for call in found if call["call"] == "init"} == {f"smoke {key}" for key in keys}
    assert sorted(call["step"] for call in found if call["call"] == "log") == [0, 0, 2, 2, 4, 4]
    assert all({"reward", "diversity", "path", "scores/fragile"} <= c["values"].keys() for c in found if "values" in c)
