"""The status of a run, read from folders that are written here by hand."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import overview
from pipelines.runs import directory, identity
from pipelines.runs.directory import RunDir
from pipelines.runs.files import write_json
from pipelines.study import trainings
from pipelines.study.resolved import resolve
from pipelines.study.trials import Record, Trials

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run that has only begun: trainings fragile-k1-kl0-s0 and fragile-k1-kl10-s0 of 4 steps, a snapshot at 2."""
    made = configuration.load("smoke", None, [f"run.storage={tmp_path}"])
    identity.claim_directory(made)
    return made


def train(run, weight):
    """Leave what a finished training leaves."""
    single = replace(run, train=replace(run.train, kl_weight=weight))
    files = RunDir.of(run)
    for name, step in trainings.adapter_folders(single):
        write_json(files.adapters / name / "adapter.json", {"format": directory.RECORD_FORMAT, "step": step})
    write_json(files.curves / f"{trainings.adapter_key(single.train)}.jsonl", {})


def draw(run, count):
    for i in range(count):
        path = RunDir.of(run).images / f"part-{i}.parquet"
        path.parent.mkdir(exist_ok=True)
        about = {"format": str(directory.IMAGES_FORMAT)}
        pq.write_table(pa.table({"arm": ["base"]}).replace_schema_metadata(about), path)


@contextmanager
def held(run):
    """As while a process works in the run."""
    with (run.directory / identity.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def told(run):
    return overview.report(run.directory)


def line(run, start):
    return next(line.split(maxsplit=1)[1] for line in told(run).splitlines() if line.strip().startswith(start))


def next_command(run):
    return told(run).rpartition("next: ")[2]


def test_a_run_that_has_only_begun_is_told_to_sweep(run):
    assert line(run, "trainings") == "2 waiting"
    assert line(run, "arms") == (
        "fragile-k1-s0: 6, 1 with their adapter; missing: fragile-k1-kl0-s0, fragile-k1-kl10-s0"
    )
    assert line(run, "images") == "0 of 2 units (6 arms, 24 images)"
    assert next_command(run) == f"python -m pipelines sweep --config {run.directory}/config.yaml"


def test_the_command_that_it_names_loads_the_runs_own_configuration(run):
    file = next_command(run).split("--config ")[1]
    assert configuration.load(None, file) == run


def test_trainings_are_done_errored_stopped_interrupted_or_running(run):
    files, key = RunDir.of(run), "fragile-k1-kl10-s0"
    train(run, 0)
    assert line(run, "fragile-k1-kl0-s0").split() == ["done", "4/4", "0"]
    write_json(files.progress / f"{key}.json", {"step": 3, "steps": 4, "rate": 1.5, "loss": -2.0})
    assert line(run, key).startswith("interrupted  3/4   10         1.50 s/step  0:02 left")
    with held(run):
        assert line(run, key).startswith("running  3/4   10         1.50 s/step")
        assert "a process is working in it" in told(run)
    Record(stopped={key: "ASHA stopped it at step 2"}).write(run)
    assert line(run, key) == "stopped  3/4   10         ASHA stopped it at step 2"
    assert next_command(run).startswith("python -m pipelines evaluate ")
    Record(errored={key: "ValueError: the reward is NaN"}).write(run)
    assert line(run, key) == "errored  3/4   10         ValueError: the reward is NaN"
    assert line(run, "trainings") == "1 done, 1 errored"
    assert line(run, "arms") == "fragile-k1-s0: 5, all with their adapter"
    first, _, retry = next_command(run).partition("; trainings that failed: ")
    assert first.startswith("python -m pipelines evaluate ")
    assert retry == f"python -m pipelines sweep --retry-errored --config {run.directory}/config.yaml"
    train(run, 10)
    assert line(run, "trainings") == "2 done"


def test_a_training_whose_worker_is_gone_or_silent_is_told_of(run):
    path = RunDir.of(run).progress / "fragile-k1-kl0-s0.json"
    gone = subprocess.Popen(["true"])
    gone.wait()
    status = {"step": 1, "steps": 4, "rate": 0.5, "host": socket.gethostname()}

    def said(**more):
        write_json(path, {**status, **more})
        with held(run):
            return line(run, path.stem)

    assert f"its worker (process {gone.pid}) is gone" in said(pid=gone.pid)
    assert "gone" not in said(pid=gone.pid, host="elsewhere") and "gone" not in said(pid=os.getpid())
    assert "no word" not in said(pid=os.getpid())
    os.utime(path, (time.time() - 600,) * 2)
    with held(run):
        assert "no word for 10:0" in line(run, path.stem)


def test_the_trials_of_a_search_stand_with_their_settings(tmp_path):
    asked = ["sweep.search=optuna", "sweep.lr_range=[0.0001, 0.01]", "sweep.trials=3", "sweep.kl_weights=[1]"]
    run = configuration.load("smoke", None, [f"run.storage={tmp_path}", *asked])
    identity.claim_directory(run)
    settings = {"reward": "fragile", "k": 1, "kl_weight": 1.0, "rank": 2, "seed": 0}
    Record(drawn=[[{**settings, "lr": 0.0004}, {**settings, "lr": 0.002}]]).write(run)
    assert line(run, "drawn") == "optuna: 2 of 3 trials drawn"
    assert line(run, "trial ").split() == ["state", "step", "kl", "weight", "lr"]
    assert line(run, "fragile-k1-kl1-lr0.0004-s0").split() == ["waiting", "0/4", "1", "0.0004"]
    assert line(run, "images").startswith("0 of 2 units (7 arms")  # with base, the reference and three of its own
    Record(drawn=[[{**settings, "lr": 0.0004}]], exhausted=True).write(run)
    assert line(run, "drawn") == "optuna: 1 of 3 trials drawn, and there are no others"


def test_an_adapter_without_its_snapshot_is_not_done(run):
    train(run, 0)
    shutil.rmtree(RunDir.of(run).adapters / "fragile-k1-kl0-s0@2")
    assert line(run, "fragile-k1-kl0-s0").startswith("waiting")


def test_the_next_command_follows_what_is_there(run):
    files = RunDir.of(run)
    train(run, 0)
    train(run, 10)
    assert next_command(run).startswith("python -m pipelines evaluate ")
    draw(run, 2)
    (files.images / "part-1.parquet").write_bytes(b"half")
    assert line(run, "images").startswith("1 of 2 units")
    draw(run, 2)
    assert next_command(run).startswith("python -m pipelines evaluate ")
    for path, then in ((files.metrics, "front"), (files.front, "report")):
        path.touch()
        assert next_command(run).startswith(f"python -m pipelines {then} ")
    write_json(files.root / "report" / "index.html", {})
    assert next_command(run).startswith("nothing is missing; open ")


def test_a_run_that_was_moved_is_found_under_its_new_storage_and_a_renamed_one_is_said_to_be(run, tmp_path):
    moved = tmp_path / "elsewhere" / "smoke"
    shutil.copytree(run.directory, moved)
    assert overview.report(moved).endswith(f"--config {moved}/config.yaml run.storage={moved.parent}")
    assert "name the folder 'smoke' again" in overview.report(moved.rename(moved.with_name("other")))


@pytest.mark.parametrize(
    "asked",
    [
        [],
        ["sweep.kl_weights=[0, 1, 3]", "evaluate.kl_schedules=[linear, 'power:2']", "sweep.train_seeds=[0, 1]"],
        ["evaluate.early_stops=[]", "sweep.rewards=[fragile, robust]", "sweep.ks=[1, 2]", "evaluate.lora_scales=[]"],
        ["train.steps=7", "evaluate.schedules=[linear, 'step:0.5', 'mine=piecewise:0=0|1=1']"],
        [
            "sweep.lrs=[0.1, 0.2]",
            "sweep.ranks=[2, 4]",
            "evaluate.kl_schedules=[linear]",
            "evaluate.kl_lora_scales=[0.5, 0.7]",
        ],
    ],
)
def test_arms_and_units_are_as_many_as_the_evaluation_draws(asked):

    made = configuration.load("smoke", None, ["evaluate.prompts=5", "evaluate.seeds=7", "evaluate.group=3", *asked])
    assert overview.arm_count(Trials.of(made)) == len(resolve(made).arms)
    assert overview.expected_units(made) == 5 * 3


def test_a_search_shows_what_it_came_to(run):
    folder = RunDir.of(run).searches / "mine"
    write_json(folder / "settings.json", {})
    (folder / "evaluations.jsonl").write_text("{}\n{}\n")
    assert line(run, "search") == "mine: under way or interrupted, 2 units drawn"
    write_json(folder / "search.json", {"statement": "It holds."})
    assert line(run, "search") == "mine: done: It holds."


def test_an_unknown_run_is_one_line_that_names_the_nearest(run, capsys):
    assert main(["status", str(run.directory.with_name("smokey"))]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'smoke'?" in err and err.count("\n") == 1
    assert main(["status", str(run.directory), "train.steps=3"]) == 2
    assert "unknown argument train.steps=3 (see python -m pipelines status --help)" in capsys.readouterr().err


def test_the_command_reads_storage_alone_without_torch_and_ray_and_writes_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    probe = (
        "import sys, pipelines.__main__ as m\n"
        f"assert m.main(['status', {str(run.directory)!r}]) == 0\n"
        "assert not {'torch', 'ray'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 waiting" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")} == before
