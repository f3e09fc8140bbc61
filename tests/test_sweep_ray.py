"""The sweep through Ray Tune: trials that fail or are stopped, drivers that are killed; nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from pipeline_toys import HERE, overrides
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from waiting import wait_for

from aig import adapters
from aig.world.tiny import build_pipeline
from pipelines import config, layout, status, trials
from pipelines.__main__ import main
from pipelines.layout import RunFiles, adapter_key

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
ROOT = HERE.parent
RED = "pipeline_toys-red-k1-kl0-s0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model's folder."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline(0).save_pretrained(folder)
    return folder


def weights(run, key):
    return load_file(RunFiles(run.directory).adapters / key / adapters.WEIGHTS)


def assert_same(run, other):
    """The adapters of two runs, to 1e-5."""
    for train in layout.trainings(run):
        ours, theirs = (weights(each, adapter_key(train)) for each in (run, other))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


@pytest.mark.timeout(280)
def test_a_trial_that_fails_stops_no_other_and_is_run_again_on_request_alone(ray_cluster, model, tmp_path, capsys):
    fixed = Path(tempfile.mkdtemp()) / "ok"
    broken = f"pipeline_toys:until_{str(fixed).encode().hex()}"
    asked = {"sweep__rewards": f"['{broken}', 'pipeline_toys:red']", "sweep__max_concurrent": 2}
    arguments = ["--preset", "smoke", *overrides(model, tmp_path, **asked, model__eta=0.5, train__max_failures=0)]
    run = config.load("smoke", None, arguments[2:])
    files, key = RunFiles(run.directory), f"{layout.slug(broken)}-k1-kl0-s0"

    assert main(["sweep", *arguments]) == 1
    said = capsys.readouterr()
    assert f"failed: {key}: RuntimeError: ok is not there yet" in said.out and RED in said.out
    assert "1 of 2 trainings failed" in said.err and "--retry-errored" in said.err
    assert (files.adapters / RED / adapters.WEIGHTS).exists() and not (files.adapters / key).exists()
    assert "errored" in status.report(run.directory)

    begun = list(files.ray.rglob("*"))
    assert main(["sweep", *arguments]) == 1  # tells of it again, and runs nothing
    assert "1 of 2 adapters are there already" in capsys.readouterr().out
    assert list(files.ray.rglob("*")) == begun

    fixed.touch()
    made = (files.adapters / RED / adapters.WEIGHTS).stat().st_mtime_ns
    assert main(["sweep", "--retry-errored", *arguments]) == 0
    assert "1 trainings that failed before are run again" in capsys.readouterr().out
    assert (files.adapters / RED / adapters.WEIGHTS).stat().st_mtime_ns == made
    assert trials.read(run).errored == {} and "2 done" in status.report(run.directory)
    # The two rewards are the same but for their names, and so are the adapters.
    ours, theirs = weights(run, key), weights(run, RED)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    # TensorBoard has a folder a trial, with what Tune was told by names that say what it is.
    events = EventAccumulator(str(files.ray / "tune" / RED)).Reload()
    curve = [json.loads(line) for line in (files.curves / f"{RED}.jsonl").read_text().splitlines()]
    for tag, name in (("reward", "reward"), ("diversity", "diversity"), ("kl", "kl_to_base")):
        points = [(event.step, event.value) for event in events.Scalars(f"ray/tune/{tag}")]
        assert points == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in curve[1:]]
    shutil.rmtree(fixed.parent)


def marked(mark):
    """Processes, however they came about, with this mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_in_mid_sweep_leaves_no_process_and_the_same_command_ends_as_if_it_had_not_been(
    ray_cluster, model, tmp_path
):
    more = {"sweep__kl_weights": "[0, 10, 20]", "sweep__max_concurrent": 1, "train__steps": 12}
    more |= {"train__snapshot_every": 6, "train__validate_every": 2, "ray__address": "local"}
    run, whole = (config.load("smoke", None, overrides(model, tmp_path / name, **more)) for name in ("killed", "whole"))
    assert main(["sweep", "--preset", "smoke", *overrides(model, tmp_path / "whole", **more)]) == 0

    command = ["sweep", "--preset", "smoke", *overrides(model, tmp_path / "killed", **more)]
    mark = f"AIG_MARK={os.getpid()}-{tmp_path.name}"
    environment = {**os.environ, "AIG_MARK": mark.partition("=")[2], "OMP_NUM_THREADS": "1"}
    files, (first, second, third) = RunFiles(run.directory), [adapter_key(train) for train in layout.trainings(run)]
    with (tmp_path / "log").open("w+") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *command], cwd=ROOT, env=environment, stdout=log, stderr=log
        )

        def in_the_middle():
            path = files.progress / f"{second}.json"
            checkpoints = list((files.ray / "train" / second).glob("checkpoint*"))
            return path.exists() and checkpoints and 5 <= json.loads(path.read_text())["step"] < 12

        wait_for(in_the_middle, driver, log)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for(lambda: not marked(mark.encode()), seconds=60)
    said = status.report(run.directory)
    assert "1 done, 1 interrupted, 1 waiting" in said and "a process is working" not in said
    made = {path: path.stat().st_mtime_ns for path in (files.adapters / first).iterdir()}
    before = {row["step"]: row["seconds"] for row in map(json.loads, curve_lines(files, second))}

    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert_same(run, whole)
    after = {row["step"]: row["seconds"] for row in map(json.loads, curve_lines(files, second))}
    assert list(after) == [0, 2, 4, 6, 8, 10, 12]
    assert after[2] == before[2]  # it went on from a checkpoint: what was before that was not measured again
    tried = [path.name for path in (files.ray / "tune").iterdir() if path.is_dir()]
    assert sorted(tried) == sorted([first, second, third])
    assert sorted(path.name for path in files.adapters.iterdir()) == sorted(
        name for key in tried for name in (key, f"{key}@6")
    )


def curve_lines(files, key):
    return (files.curves / f"{key}.jsonl").read_text().splitlines()
