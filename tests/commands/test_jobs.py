"""`ray job submit` against a head of our own: exit codes, stopping, resubmitting."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
from pipeline_toys import HERE, overrides
from ray_head import RAY, ray_head
from waiting import wait_for

from aig.world.tiny import build_pipeline

pytestmark = pytest.mark.kills

ROOT = HERE.parents[1]
TOKEN = "a-token-of-this-test-alone-0123456789"
WAIT = 240  # seconds until a job that hangs is given up


@pytest.fixture(scope="module")
def head():
    """A Ray head on ports of its own, which asks for a token, and a client of its job server."""
    from ray.job_submission import JobSubmissionClient

    variables = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_enable_autoscaler_v2": "0", "PYTHONPATH": str(HERE),
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),  # jobs say `python`
    }  # fmt: skip
    connect = partial(answering, JobSubmissionClient)
    with ray_head(connect, **variables) as started:
        started.client = connect(started.dashboard)
        yield started


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
    line = [RAY, "job", "submit", "--address", head.dashboard, "--no-wait", "--working-dir", ROOT, "--"]

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
