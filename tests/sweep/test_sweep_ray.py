"""The sweep through Ray Tune: trials that fail, drivers that are killed, schedulers that stop; nothing is left."""

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
from ray_head import alive, ray_head
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from waiting import wait_for

from aig import adapters
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import overview
from pipelines.config.values import slug
from pipelines.runs.directory import RunDir
from pipelines.study import trainings, trials
from pipelines.study.trainings import adapter_key
from pipelines.study.trials import Trials

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
ROOT = HERE.parents[1]
RED = "pipeline_toys-red-k1-kl0-s0"


def weights(run, key):
    return load_file(RunDir.of(run).adapters / key / adapters.WEIGHTS)


def assert_same(run, other):
    """The adapters of two runs, to 1e-5."""
    for train in trainings.trainings(run):
        ours, theirs = (weights(each, adapter_key(train)) for each in (run, other))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


@pytest.mark.kills
@pytest.mark.timeout(280)
def test_a_trial_that_fails_stops_no_other_and_is_run_again_on_request_alone(ray_cluster, model, tmp_path, capsys):
    fixed = Path(tempfile.mkdtemp()) / "ok"
    broken = f"pipeline_toys:until_{str(fixed).encode().hex()}"
    asked = {"sweep__rewards": f"['{broken}', 'pipeline_toys:red']", "sweep__max_concurrent": 2}
    arguments = ["--preset", "smoke", *overrides(model, tmp_path, **asked, model__eta=0.5, train__max_failures=0)]
    run = configuration.load("smoke", None, arguments[2:])
    files, key = RunDir.of(run), f"{slug(broken)}-k1-kl0-s0"
    command = ["sweep", "--train-only"]

    assert main([*command, *arguments]) == 1
    said = capsys.readouterr()
    assert f"failed: {key}: RuntimeError: ok is not there yet" in said.out and RED in said.out
    assert "1 of 2 trainings failed" in said.err and "--retry-errored" in said.err
    assert (files.adapters / RED / adapters.WEIGHTS).exists() and not (files.adapters / key).exists()
    assert "errored" in overview.report(run.directory)

    begun = list(files.ray.rglob("*"))
    assert main([*command, *arguments]) == 1  # tells of it again, and runs nothing
    assert "1 of 2 adapters are there already" in capsys.readouterr().out
    assert list(files.ray.rglob("*")) == begun

    fixed.touch()
    made = (files.adapters / RED / adapters.WEIGHTS).stat().st_mtime_ns
    assert main([*command, "--retry-errored", *arguments]) == 0
    assert "1 trainings that failed before are run again" in capsys.readouterr().out
    assert (files.adapters / RED / adapters.WEIGHTS).stat().st_mtime_ns == made
    assert trials.read(run).errored == {} and "2 done" in overview.report(run.directory)
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


KILLED = {
    "sweep__kl_weights": "[0, 10]", "sweep__max_concurrent": 1, "train__steps": 12, "train__snapshot_every": 6,
    "train__validate_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(ray_cluster, model, tmp_path_factory):
    """The sweep of those that are killed, undisturbed."""
    given = overrides(model, tmp_path_factory.mktemp("whole"), **KILLED)
    assert main(["sweep", "--train-only", "--preset", "smoke", *given]) == 0
    return configuration.load("smoke", None, given)


def kill_in_mid_sweep(run, command, environment, log):
    """Start a sweep of our own, and kill its driver while its second trial is half way."""
    files, second = RunDir.of(run), adapter_key(trainings.trainings(run)[1])
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command], cwd=ROOT, env=environment, stdout=log, stderr=log
    )

    def in_the_middle():
        path = files.progress / f"{second}.json"
        checkpoints = list((files.ray / "train" / second).glob("checkpoint*"))
        return path.exists() and checkpoints and 5 <= json.loads(path.read_text())["step"] < 12

    try:
        wait_for(in_the_middle, driver, log)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()


def assert_resumes(run, whole, command):
    """The same command goes on where the killed one was, and ends as the undisturbed one did."""
    files, (first, second) = RunDir.of(run), [adapter_key(train) for train in trainings.trainings(run)]
    said = overview.report(run.directory)
    assert "1 done, 1 interrupted" in said and "a process is working" not in said
    made = {path: path.stat().st_mtime_ns for path in (files.adapters / first).iterdir()}
    before = {row["step"]: row["seconds"] for row in map(json.loads, curve_lines(files, second))}

    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert_same(run, whole)
    after = {row["step"]: row["seconds"] for row in map(json.loads, curve_lines(files, second))}
    assert list(after) == [0, 2, 4, 6, 8, 10, 12]
    assert after[2] == before[2]  # it went on from a checkpoint: what was before that was not measured again
    tried = [path.name for path in (files.ray / "tune").iterdir() if path.is_dir()]
    assert sorted(tried) == sorted([first, second])
    assert sorted(path.name for path in files.adapters.iterdir()) == sorted(
        name for key in tried for name in (key, f"{key}@6")
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_killed_in_mid_sweep_leaves_no_process_and_the_same_command_ends_as_if_it_had_not_been(
    model, whole, tmp_path
):
    given = overrides(model, tmp_path, **KILLED, ray__address="local")
    mark = f"{os.getpid()}-{tmp_path.name}"
    run, command = configuration.load("smoke", None, given), ["sweep", "--train-only", "--preset", "smoke", *given]
    with (tmp_path / "log").open("w+") as log:
        kill_in_mid_sweep(run, command, {**os.environ, "AIG_MARK": mark, "OMP_NUM_THREADS": "1"}, log)
    wait_for(lambda: not marked(f"AIG_MARK={mark}".encode()), seconds=180)
    assert_resumes(run, whole, command)


@pytest.fixture(scope="module")
def head():
    """A Ray head of our own, with a dashboard: (address, the dashboard's address)."""
    with ray_head(lambda url: alive(url) is not None) as started:
        yield started.address, started.dashboard


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_killed_on_a_running_cluster_leaves_no_actor_and_no_placement_group_there(
    head, model, whole, tmp_path
):
    address, dashboard = head
    given = overrides(model, tmp_path, **KILLED)
    run, command = configuration.load("smoke", None, given), ["sweep", "--train-only", "--preset", "smoke", *given]
    with (tmp_path / "log").open("w+") as log:
        kill_in_mid_sweep(run, command, {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}, log)
    wait_for(lambda: alive(dashboard) == [], seconds=120)
    assert_resumes(run, whole, command)


STOPPED = """
import json, sys, time
from ray_head import alive
from pipelines import config
from pipelines.cluster.connect import connected
from pipelines.runs import identity
from pipelines.study.trials import Trials
from tune.sweep.run import sweep
found = config.load("smoke", None, json.loads(sys.argv[1]))
identity.claim_directory(found)
with connected(found.ray) as connection:
    stopped = sweep(found, lambda: connection).record.stopped
    deadline = time.monotonic() + 120
    while (left := alive(connection.dashboard)) != [] and time.monotonic() < deadline:
        time.sleep(1)
print(json.dumps({"stopped": stopped, "left": left}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_asha_stops_is_no_arm_and_leaves_no_worker_in_the_way_of_the_next(model, tmp_path):
    """There is room for one training alone: a worker left behind would keep the next one from ever starting."""
    more = {"sweep__kl_weights": "[0, 1.0e+5, 1.0e+6]", "sweep__scheduler": "asha", "sweep__proxy": "reward"}
    more |= {"train__steps": 24, "train__snapshot_every": 24, "train__validate_every": 6, "train__lr": 0.01}
    given = overrides(model, tmp_path, **more, ray__num_cpus=2, ray__dashboard="true", ray__address="local")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, json.dumps(given)], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    run = configuration.load("smoke", None, given)
    first, *others = [adapter_key(train) for train in trainings.trainings(run)]
    assert list(told["stopped"]) == others and told["left"] == []
    assert all(reason.startswith("ASHA stopped it at step 6: reward") for reason in told["stopped"].values())
    assert [group.tuned for group in Trials.of(run).groups()] == trainings.trainings(run)[:1]
    assert Trials.of(run).groups()[0].others == ()
    assert "1 done, 2 stopped" in overview.report(run.directory)
    assert [path.name for path in (RunDir.of(run).adapters).iterdir()] == [first]


def curve_lines(files, key):
    return (files.curves / f"{key}.jsonl").read_text().splitlines()
