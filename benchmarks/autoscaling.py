"""An evaluation on a cluster that scales itself, watched: when each node came and went, and how fast images were made.

The cluster is Ray's fake one: a real head with Ray's real autoscaler, whose nodes are processes on this host. It starts
with no worker node. The evaluation's actors bring nodes up; one is killed in the middle and replaced; idle ones go.

    python -m benchmarks.autoscaling docs/autoscaling.png
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from aig import models
from aig.world.scenes import all_prompts
from benchmarks.pipeline import run_configuration
from pipelines import config as configuration
from pipelines.evaluate.generate import units
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve, resolve_images

ROOT = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).parent / "ray"
NODE_CPUS = 2
MOST_NODES = 3
IDLE_SECONDS = 12
POLL_SECONDS = 0.5
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A head that asks its fake provider for nodes."""

    address: str
    environment: dict[str, str]
    head: subprocess.Popen[bytes]
    log: Path

    def nodes(self) -> list[tuple[str, float, float | None]]:
        """Worker nodes as (name, came, went), in seconds since the epoch; None while a node is there."""
        found = []
        for info in GcsClient(address=self.address).get_all_node_info().values():
            if "CPU" in dict(info.resources_total):
                gone = info.end_time_ms / 1000 if info.end_time_ms else None
                found.append((info.node_id.hex(), info.start_time_ms / 1000, gone))
        return sorted(found, key=lambda node: node[1])

    def kill(self, node: str) -> None:
        """SIGKILL to a node's raylet, as if the machine were gone: its actors and objects go with it."""
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "raylet" and _of_node(process) == node:
                process.kill()
                return
        raise RuntimeError(f"no raylet of node {node} runs on this host")


def _of_node(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING")
    except psutil.Error:  # it ended meanwhile, or is another user's
        return None


@contextmanager
def fake_cluster() -> Iterator[Cluster]:
    """A head without CPUs on ports of its own, that may have `MOST_NODES` nodes; stopped with its nodes at the end."""
    port = _free_port()
    folder = Path(tempfile.mkdtemp(prefix="aig-"))  # short: Ray's sockets lie in it
    environment = {
        **os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0",
        "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "180",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    (folder / "fake.json").write_text(json.dumps(_autoscaling(f"127.0.0.1:{port}")))
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--node-ip-address=127.0.0.1",
        f"--autoscaling-config={folder / 'fake.json'}", f"--temp-dir={folder}", "--object-store-memory=200000000",
        f"--dashboard-port={_free_port()}", f"--dashboard-agent-listen-port={_free_port()}",
        f"--ray-client-server-port={_free_port()}", "--include-dashboard=false",
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("wb") as file:
        head = subprocess.Popen([str(part) for part in command], env=environment, stdout=file, stderr=file)
    try:
        wait_for(lambda: _answers(port), 240, head, log)
        yield Cluster(f"127.0.0.1:{port}", environment, head, log)
    finally:
        _stop(head)
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaling(address: str) -> dict[str, Any]:
    """What `ray up` would make of a cluster.yaml, for the fake provider."""
    lists = (
        "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
        "worker_start_ray_commands", "initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
    )  # fmt: skip
    worker = {"CPU": NODE_CPUS, "spot": 1, "object_store_memory": 200_000_000}
    return {
        "cluster_name": "aig",
        "provider": {
            "type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True,
            "use_node_id_as_ip": True,  # all nodes have this host's address, by which the autoscaler tells them apart
        },
        "max_workers": MOST_NODES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "evaluate": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
        },
        "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }  # fmt: skip


@dataclass
class Recording:
    """An evaluation on the cluster; times in seconds since its start."""

    nodes: list[tuple[float, float]] = field(default_factory=list)
    """When each worker node came and went."""
    units: list[float] = field(default_factory=list)
    """When each group of images was written."""
    images: int = 0
    """Images of one group."""
    killed: float = 0.0
    """When a node was killed."""
    ended: float = 0.0
    """When the command returned."""


def record(cluster: Cluster, found: configuration.Config) -> Recording:
    """Evaluate on the cluster; kill a node once a quarter of the groups is there; wait until the head is alone again.

    Raises RuntimeError with the command's output where it fails, or where something takes minutes too long.
    """
    begun = time.time()
    folder, total = RunDir.of(found).images, len(units(resolve_images(found, models.load(found.model.name).defaults)))
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "pipelines", "evaluate", "--config", _as_file(found)]
        process = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=said, stderr=subprocess.STDOUT)

        def written() -> list[float]:
            return sorted(path.stat().st_mtime for path in folder.glob("part-*.parquet"))

        def alive() -> list[str]:
            return [name for name, _, gone in cluster.nodes() if gone is None]

        try:
            wait_for(lambda: len(written()) >= total // 4 and len(alive()) > 1, 600, process)
            victim = alive()[-1]
            cluster.kill(victim)
            killed = time.time()
            wait_for(lambda: process.poll() is not None, 600)
        except RuntimeError as error:
            process.kill()
            said.seek(0)
            raise RuntimeError(f"{error}; nodes: {cluster.nodes()}\n{said.read()}") from None
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"evaluate ended with exit code {process.returncode}:\n{said.read()}")
    ended = time.time()
    wait_for(lambda: not alive(), 240)
    nodes = [(came - begun, (gone or ended) - begun) for _, came, gone in cluster.nodes()]
    images = len(resolve(found).arms) * found.evaluate.group
    return Recording(nodes, [at - begun for at in written()], images, killed - begun, ended - begun)


def _as_file(found: configuration.Config) -> str:
    path = Path(found.run.storage) / "evaluation.yaml"
    path.write_text(configuration.to_yaml(found))
    return str(path)


def evaluation(storage: Path, address: str | None, overrides: Sequence[str] = ()) -> configuration.Config:
    """96 groups of eight images of five arms, for three generators and a scorer on nodes with `spot`."""
    return run_configuration(
        storage, 3,
        [
            f"evaluate.prompts={json.dumps(all_prompts())}", "evaluate.seeds=16", "evaluate.group=8",
            "evaluate.groups_at_once=1",
            "evaluate.schedules=[linear, 'power:2']", "evaluate.lora_scales=[0.5]", "evaluate.early_stops=[]",
            "evaluate.node=spot", f"ray.address={address or 'local'}",
            f"ray.grows_to={{CPU: {MOST_NODES * NODE_CPUS}, spot: {MOST_NODES}}}", *overrides,
        ],
    )  # fmt: skip


def draw(recording: Recording, path: Path) -> None:
    """Nodes that are there, and images a second, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, height_ratios=(1, 1.3))
    for row, (came, went) in enumerate(recording.nodes):
        above.barh(row + 1, went - came, left=came, height=0.6, color="#4477aa")
    above.set_yticks(range(1, len(recording.nodes) + 1), [f"node {i + 1}" for i in range(len(recording.nodes))])
    above.invert_yaxis()
    bins = [5.0 * i for i in range(int(max(went for _, went in recording.nodes) // 5) + 2)]
    below.hist(
        recording.units, bins=bins, weights=[recording.images / 5.0] * len(recording.units), color="#88aacc",
        edgecolor="white",
    )  # fmt: skip
    below.set_ylabel("images/s")
    below.set_xlabel("seconds since the command was typed")
    for axes in (above, below):
        axes.axvline(recording.killed, color="#cc3311", lw=1.2)
        axes.axvline(recording.ended, color="#555555", lw=1.2, ls="--")
        axes.spines[["top", "right"]].set_visible(False)
    top = above.get_ylim()[1]
    above.annotate(" a node is killed", (recording.killed, top), color="#cc3311", va="bottom")
    above.annotate(" the command has ended", (recording.ended, top), color="#555555", va="bottom")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def wait_for(
    happened: Callable[[], T], seconds: float, process: subprocess.Popen[Any] | None = None, log: Path | None = None
) -> T:
    """What `happened` returns once that is true; RuntimeError where time is over or the process ends before."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = f":\n{log.read_text()}" if log else ""
            raise RuntimeError(("the process ended too early" if ended else f"{seconds:g} s were not enough") + said)
        time.sleep(POLL_SECONDS)
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _answers(port: int) -> bool:
    try:
        return bool(GcsClient(address=f"127.0.0.1:{port}").get_all_node_info())
    except Exception:  # Ray's own kinds, while it starts
        return False


def _stop(head: subprocess.Popen[bytes]) -> None:
    """End the head, and then what is left of its nodes, which are children of its autoscaler."""
    family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        head.kill()
    for process in psutil.wait_procs(family, timeout=10)[1]:
        process.kill()


def main(argv: list[str] | None = None) -> None:
    what = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscaling", description=what)
    parser.add_argument("picture", type=Path, nargs="?", default=Path("docs/autoscaling.png"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the evaluation")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as storage, fake_cluster() as cluster:
        recording = record(cluster, evaluation(Path(storage), cluster.address, arguments.overrides))
    draw(recording, arguments.picture)
    for number, (came, went) in enumerate(recording.nodes, 1):
        print(f"node {number}: {came:.0f} s to {went:.0f} s")
    print(f"{len(recording.units)} groups of {recording.images} images, the first at {recording.units[0]:.0f} s")
    print(f"a node killed at {recording.killed:.0f} s, the command ended at {recording.ended:.0f} s")


if __name__ == "__main__":
    main()
