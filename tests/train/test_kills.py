"""Trainings that are killed, for real: the same command ends with the adapter of one that nobody disturbed, no step is
lost or doubled, and nothing is left running."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import bare_training
import psutil
import pytest
import torch
from pipeline_toys import HERE, overrides
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.util import placement_group_table
from waiting import wait_for

from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.config import ConfigError
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.train import records
from pipelines.train.launch import EndAtOnce, train

pytestmark = pytest.mark.kills

ROOT = HERE.parents[1]
KEY = "pipeline_toys-unhurried-k1-kl0-s0"

# A report waits until the controller looks, so that at its own two seconds a run of a second would take ten.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))


def arguments(model, storage, **more):
    """A training whose steps take a fraction of a second, of batches that two workers cannot share evenly."""
    common = {"train__reward": "pipeline_toys:unhurried", "train__batch": 5, "train__steps": 12}
    common |= {"train__checkpoint_every": 2, "train__snapshot_every": 6, "train__validate_every": 4}
    return ["train", "--preset", "smoke", *overrides(model, storage, **{**common, **more})]


def configured(given):
    return configuration.load("smoke", None, given[3:])


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    single = configured(arguments(model, tmp_path_factory.mktemp("undisturbed")))
    bare_training.run(single)
    return single


def check_same(single, undisturbed, within=0.0):
    """The same adapters, to the bit or to `within`, the same points of the curve, each once, and no checkpoint left."""
    (weights, curve), (expected, wanted) = bare_training.left(single), bare_training.left(undisturbed)
    assert weights.keys() == expected.keys() == {KEY, f"{KEY}@6"}
    for name, tensors in expected.items():
        for k, tensor in tensors.items():
            torch.testing.assert_close(weights[name][k], tensor, atol=within, rtol=0)
    assert [row["step"] for row in curve] == [0, 4, 8, 12]
    if within == 0:
        assert curve == wanted
    assert not RunDir.of(single).checkpoints(KEY).exists()


def check_nothing_runs():
    """Neither a worker's process nor a placement group of this process' Ray is left."""
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}
    wait_for(
        lambda: not [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()], seconds=30
    )


@pytest.mark.timeout(280)
def test_two_workers_leave_the_adapter_of_one(ray_cluster, undisturbed, model, tmp_path):
    single = configured(arguments(model, tmp_path, train__num_workers=2))
    identity.claim_directory(single)
    assert train(single) == RunDir.of(single).adapters / KEY
    check_same(single, undisturbed, within=1e-5)
    check_nothing_runs()


@pytest.mark.timeout(280)
def test_a_killed_worker_is_replaced_and_leaves_the_adapter_of_an_undisturbed_run(ray_cluster, model, tmp_path):
    more = {"model__eta": 0.5, "train__max_failures": 2}  # noise at every step, which a replay has to draw again
    alone, single = (configured(arguments(model, tmp_path / name, **more)) for name in ("undisturbed", "killed"))
    bare_training.run(alone)
    identity.claim_directory(single)
    status = RunDir.of(single).progress / f"{KEY}.json"
    killed = []

    def kill():
        # Whether the controller knows of a checkpoint yet is a race: from one or from the start, the replay has the
        # same bits.
        while not killed:
            time.sleep(0.02)
            if status.exists() and 2 <= (found := json.loads(status.read_text()))["step"] < single.train.steps:
                os.kill(found["pid"], signal.SIGKILL)
                killed.append(found["pid"])

    threading.Thread(target=kill, daemon=True).start()
    assert train(single) == RunDir.of(single).adapters / KEY
    assert killed, "the training was over before it could be killed"
    assert json.loads(status.read_text())["pid"] != killed[0]
    assert records.is_finished(single) and not any((RunDir.of(single).ray / "train").iterdir())
    check_same(single, alone)
    check_nothing_runs()


@pytest.mark.timeout(280)
def test_what_would_fail_again_in_the_same_way_ends_the_training_at_once_with_its_own_message(
    ray_cluster, model, tmp_path, capsys
):
    tried = tmp_path / "tried"
    reward = f"pipeline_toys:nan_{str(tried).encode().hex()}"
    given = arguments(model, tmp_path, train__reward=reward, train__max_failures=3)
    assert main(given) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("failed: the reward is nan and the KL term 0.0 for the image of ")
    assert len(set(tried.read_text().split())) == 1
    check_nothing_runs()
    with pytest.raises(FloatingPointError) as raised:
        main([*given, "--debug"])
    assert "in _accumulate" in str(raised.value.__cause__)  # where it was raised, in the worker


@pytest.mark.parametrize(
    ("raised", "ends"),
    [
        ([FloatingPointError("NaN")], True), ([ConfigError("a share too low")], True), ([TypeError("no")], True),
        ([RuntimeError("closed by a peer"), FloatingPointError("NaN")], True),
        ([ActorDiedError()], False), ([OSError("disk full")], False), ([RuntimeError("CUDA error")], False),
        ([WorkerHealthCheckFailedError("gone", ActorDiedError()), ValueError("half a message")], False),
    ],
)  # fmt: skip
def test_only_what_would_fail_again_in_the_same_way_is_not_tried_again(raised, ends):
    with pytest.raises(type(raised[-1])) if ends else nullcontext():
        EndAtOnce().after_exception(None, dict(enumerate(raised)))


def spawn(given, log):
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "pipelines", *map(str, given)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def seals(storage):
    return list(RunDir(storage / "smoke").checkpoints(KEY).glob("checkpoint_*/checkpoint.json"))


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory):
    """What a driver leaves that was killed with its Ray under way: its storage with two checkpoints or more, and those
    of its processes that outlive it by more than seconds."""
    storage = tmp_path_factory.mktemp("killed")
    given = arguments(model, storage, ray__address="local", ray__num_cpus=4, ray__object_store_mb=150)
    with (storage.parent / "driver.log").open("w+") as log:
        driver = spawn(given, log)
        try:
            wait_for(lambda: len(seals(storage)) >= 2, driver, log)
            family = psutil.Process(driver.pid).children(recursive=True)
            assert any("raylet" in process.name() for process in family)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    names = {process.pid: process.name() for process in family}
    alive = psutil.wait_procs(family, timeout=20)[1]
    # Two agents of Ray's, which hold no resources, wait a minute for an answer of their cluster that is gone.
    agents = ("DashboardAgent", "RuntimeEnvAgent")
    assert [names[process.pid] for process in alive if not any(a in names[process.pid] for a in agents)] == []
    return SimpleNamespace(storage=storage, alive=alive)


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    "spoiled",
    [pytest.param(True, id="last checkpoint cut off"), pytest.param(False, id="whole", marks=pytest.mark.slow)],
)
def test_the_same_command_finishes_what_a_killed_driver_has_begun(
    killed, spoiled, ray_cluster, undisturbed, model, tmp_path, capsys
):
    shutil.copytree(killed.storage, tmp_path, dirs_exist_ok=True)
    last = max(seals(tmp_path), key=lambda path: json.loads(path.read_text())["step"]).parent
    if spoiled:
        content = (last / "state.pt").read_bytes()
        (last / "state.pt").write_bytes(content[: len(content) // 2])
    given = arguments(model, tmp_path)
    assert main(given) == 0
    said = capsys.readouterr()
    assert not spoiled or f"checkpoint {last} is skipped" in said.err
    single = configured(given)
    assert f"Adapter: {RunDir.of(single).adapters / KEY}" in said.out
    check_same(single, undisturbed)
    check_nothing_runs()
    assert main(given) == 0
    assert f"Finished already: {RunDir.of(single).adapters / KEY}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_processes_of_a_killed_driver_end_by_themselves(killed):
    assert psutil.wait_procs(killed.alive, timeout=150)[1] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("nodes", "then", "workers", "within"),
    [(1, "replaced", "1", 0.0), (2, "not replaced", "[1, 2]", 1e-5)],
    ids=["replaced", "fewer workers"],
)
def test_a_training_survives_the_loss_of_a_node(nodes, then, workers, within, undisturbed, model, tmp_path):
    given = arguments(model, tmp_path, train__node="train", train__num_workers=workers)[3:]
    folder = Path(tempfile.mkdtemp(prefix="aig-"))  # pytest's own folders are too deep for Ray's sockets
    (folder / "ray").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "RAY_TMPDIR": str(folder),
        "RAY_raylet_start_wait_time_s": "180",  # a busy machine takes longer than Ray's half minute
    }
    command = [sys.executable, HERE / "lost_node.py", nodes, then, *given]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert 3 <= told["killed_at"] < 12
    assert set(told["groups"]) <= {"REMOVED"}
    check_same(configured(arguments(model, tmp_path)), undisturbed, within)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_of_one_training_change_no_bit(ray_cluster, model, tmp_path):
    steps, draws = 40, random.Random(0)
    more = {"train__steps": steps, "train__max_failures": -1}
    alone, single = (configured(arguments(model, tmp_path / name, **more)) for name in ("undisturbed", "killed"))
    bare_training.run(alone)
    identity.claim_directory(single)
    status = RunDir.of(single).progress / f"{KEY}.json"
    killed = []

    def kill():
        for step in sorted(draws.sample(range(1, steps - 1), 10)):
            wait_for(lambda step=step: status.exists() and alive(status, killed) >= step, seconds=1500)
            time.sleep(draws.uniform(0, 0.4))
            pid = json.loads(status.read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    train(single)
    assert len(set(killed)) == 10
    (weights, curve), (expected, wanted) = bare_training.left(single), bare_training.left(alone)
    assert curve == wanted and weights.keys() == expected.keys()
    assert all(torch.equal(weights[name][k], tensor) for name in expected for k, tensor in expected[name].items())
    assert not RunDir.of(single).checkpoints(KEY).exists()
    check_nothing_runs()


def alive(status, killed):
    """The step of the worker that lives; -1 while the status is that of one that was killed."""
    found = json.loads(status.read_text())
    return -1 if found["pid"] in killed else found["step"]
