"""A Ray head of a test's own, which ends with the test."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException
from waiting import wait_for

RAY = Path(sys.executable).parent / "ray"


@contextmanager
def ray_head(ready, **variables):
    """A head on free ports, once `ready` says so of its dashboard's URL: its address, that URL, its environment."""
    port, dashboard, client, agent = (free_port() for _ in range(4))
    temporary = Path(tempfile.mkdtemp(prefix="aig-"))  # pytest's own folders are too deep for Ray's sockets
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1",
        "RAY_raylet_start_wait_time_s": "180",  # a busy machine takes longer than Ray's half minute
        **variables,
    }  # fmt: skip
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=4",
        "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--object-store-memory=300000000",
        f"--ray-client-server-port={client}", f"--temp-dir={temporary}",
        f"--dashboard-agent-listen-port={agent}",  # the default one is another Ray's where this host has one
    ]  # fmt: skip
    log = (temporary / "head.log").open("w+")
    process = subprocess.Popen([str(part) for part in command], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(lambda: ready(url), process, log)
        yield SimpleNamespace(address=f"127.0.0.1:{port}", dashboard=url, environment=environment)
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def alive(dashboard):
    """Names of living actors and placement groups of a cluster; None if its dashboard does not answer.

    Ray's own actors do not count: they hold nothing. Train's cleaner is one; it asks the dashboard whether its training
    is over, and stays if several clusters on the host keep it from an answer.
    """
    try:
        actors = list_actors(address=dashboard, filters=[("state", "!=", "DEAD")], limit=1000)
        groups = list_placement_groups(address=dashboard, filters=[("state", "!=", "REMOVED")], limit=1000)
    except (RayStateApiException, ConnectionError):
        return None
    kept = ("TrainStateActor", "_AutoscalingCoordinatorActor", "PlacementGroupCleaner")
    return [a.class_name for a in actors if a.class_name not in kept] + [g.placement_group_id for g in groups]
