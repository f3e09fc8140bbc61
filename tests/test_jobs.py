"""`ray job submit` against a head of our own: exit codes, stopping, resubmitting."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline_toys import HERE, overrides
from waiting import wait_for

from aig.world.tiny import build_pipeline

pytestmark = pytest.mark.kills

ROOT = HERE.parent
RAY = Path(sys.executable).parent / "ray"
TOKEN = "a-token-of-this-test-alone-0123456789"
WAIT = 240  # seconds until a job that hangs is given up


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """A Ray head on ports of its own, which asks for a token, and a client of its job server."""
    from ray.job_submission import JobSubmissionClient

    port, dashboard = free_port(), free_port()
    temporary = Path(tempfile.mkdtemp(prefix="aig-"))  # pytest's own folders are too deep for Ray's sockets
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_enable_autoscaler_v2": "0",
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),  # jobs say `python`
        "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1",
        "RAY_raylet_start_wait_time_s": "180",  # a busy machine takes longer than Ray's half minute
    }  # fmt: skip
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=4",
        "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--object-store-memory=300000000",
        f"--ray-client-server-port={free_port()}", f"--temp-dir={temporary}",
        f"--dashboard-agent-listen-port={free_port()}",  # the default one is another Ray's where this host has one
    ]  # fmt: skip
    log = (temporary / "head.log").open("w+")
    process = subprocess.Popen([str(part) for part in command], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        client = wait_for(lambda: answering(JobSubmissionClient, address), process, log)
        yield SimpleNamespace(client=client, address=address, environment=environment)
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def answering(kind, address):
    try:
        # In this process tokens are off for good, so it shows its own.
        client = kind(address, headers={"Authorization": f"Bearer {TOKEN}"})
        client.list_jobs()
        return client
    except (RuntimeError, ConnectionError):
        return None


def submit(head, *command):
    """As a user does, by the command line; returns the job's name."""
    line = [RAY, "job", "submit", "--address", head.address, "--no-wait", "--working-dir", ROOT, "--"]

    def accepted():
        found = subprocess.run(
            [str(part) for part in [*line, "python", "-m", "pipelines", *command]],
            env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=WAIT,
        )  # fmt: skip
        # The job server answers before the agent that starts jobs does.
        assert found.returncode == 0 or "No available agent" in found.stderr, found.stderr
        return found if found.returncode == 0 else None

    found = wait_for(accepted)
    return next(word.strip("'") for word in found.stdout.split() if word.startswith("'raysubmit_"))


def ended(head, job):
    info = wait_for(lambda: (i := head.client.get_job_info(job)).status.is_terminal() and i)
    return info, head.client.get_job_logs(job)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A smoke run with enough groups of images to be stopped among them."""
    model = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline(0).save_pretrained(model)
    storage = tmp_path_factory.mktemp("runs")
    return ["--preset", "smoke", *overrides(model, storage, evaluate__prompts=16, evaluate__groups_at_once=1)]


@pytest.mark.timeout(600)
def test_a_job_with_bad_input_ends_with_the_exit_code_of_bad_input(head, arguments):
    info, log = ended(head, submit(head, "evaluate", *arguments, "evaluate.sedes=3"))
    assert info.driver_exit_code == 2
    assert "evaluate.seeds" in log


@pytest.mark.timeout(900)
def test_a_stopped_job_leaves_a_run_that_a_resubmitted_one_finishes(head, arguments):
    folder = Path(next(text for text in arguments if text.startswith("run.storage")).partition("=")[2]) / "smoke"
    first = submit(head, "demo", *arguments)
    wait_for(
        lambda: (
            len(list(folder.glob("images/part-*.parquet"))) >= 2 or head.client.get_job_info(first).status.is_terminal()
        )
    )
    assert not head.client.get_job_info(first).status.is_terminal(), head.client.get_job_logs(first)
    head.client.stop_job(first)
    info, _ = ended(head, first)
    assert info.status == "STOPPED"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("images/part-*.parquet")}
    adapters = {path: path.stat().st_mtime_ns for path in folder.glob("adapters/*/*.safetensors")}
    assert 2 <= len(made) < 16

    info, log = ended(head, submit(head, "demo", *arguments))
    assert (info.status, info.driver_exit_code) == ("SUCCEEDED", 0), log
    assert "groups of images are there already" in log
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert {path: path.stat().st_mtime_ns for path in adapters} == adapters
    check = json.loads((folder / "arms.json").read_text())["check"]
    assert check["found"] == check["expected"] and check["missing"] == check["duplicate"] == 0
