"""Connect to Ray: to a running cluster, or to a local one of this machine's size that is stopped at the end."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.state import state as ray_state
from ray._private.utils import read_ray_address
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipelines import config as configuration

# Where the packages lie: a checkout of the repository, or the environment that they are installed in.
ROOT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
# With 2 logical CPUs a resumed Ray Data job, or a pool beside a driver, hangs silently; these share the real cores.
LEAST_CPUS = 4
# How often a Train controller polls its workers: a report waits for that, and so does a finished run.
POLL_SECONDS = "1"

# For a local cluster only. Nobody preempts this machine, and watching for it costs a process per training. Train and
# Data start more processes at once than there are cores, and Data passes arguments to actors in a way that Ray's core
# calls an error: without these settings the terminal fills with warnings. The environment takes precedence.
LOCAL = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_worker_maximum_startup_concurrency": "16",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

# An actor asks for next to nothing of a node's custom resource, which only says where the actor belongs.
PLACE = 0.001
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """The resources that a part of a run asks of Ray."""

    what: str
    """The part in words: 'a generator'."""
    one: Mapping[str, float]
    """Ray resources of each of its actors, workers or tasks, which must fit on one node: see `needs`."""
    keys: Mapping[str, str]
    """The configuration key behind each resource's amount, and under 'count' the one behind the number."""
    count: int = 1
    """How many must run at once for any to do its work."""
    cpus: float = 0.0
    """Further CPUs, on any node."""

    @property
    def _counted(self) -> tuple[str, ...]:
        return ("count",) * (self.count > 1)

    def by(self, name: str) -> str:
        """The keys behind an amount, in parentheses."""
        keys = [self.keys[key] for key in (name, *self._counted) if key in self.keys]
        return f" ({', '.join(keys)})" if keys else ""

    @property
    def all(self) -> dict[str, float]:
        """Ray resources of all of them."""
        return {name: amount * self.count + self.cpus * (name == "CPU") for name, amount in self.one.items()}

    def fix(self, short: Iterable[str]) -> str:
        """What to do if these resources are short."""
        amounts = [*(name for name in short if self.one[name] != PLACE), *self._counted]
        lower = [self.keys[name] for name in amounts if name in self.keys]
        fixes = [f"lower {', '.join(lower)}"] if lower else []
        nodes = [self.keys[name] for name, amount in self.one.items() if amount == PLACE and name in self.keys]
        fixes += [f"name another {key}" for key in nodes]
        fixes.append("or take larger nodes or more of them (ray.num_cpus of a local cluster)")
        return f"{', '.join(fixes)}; if the cluster scales itself and does not say how far, set ray.grows_to"


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray."""

    resources: dict[str, float]
    """Logical resources of the whole cluster; if it scales itself, those that it may grow to."""
    started: bool
    """Whether this process started it and will stop it."""
    dashboard: str | None
    present: dict[str, float] | None = None
    """The resources that it has now, if they are fewer."""
    nodes: tuple[dict[str, float], ...] = ()
    """Logical resources of each node; empty if the cluster scales itself, and they may change."""

    def room_now(self, need: Need, *beside: Need) -> int:
        """How many of a need fit beside others on the present nodes; possibly 0."""
        have = self.resources if self.present is None else self.present
        taken = {name: sum(other.all.get(name, 0.0) for other in beside) for name in need.one}
        return _times({name: have.get(name, 0.0) - amount for name, amount in taken.items()}, need.one)

    def room(self, need: Need, *beside: Need) -> int:
        """How often a need, all `count` of it, fits on the cluster beside others.

        If it does not fit even once, Ray would wait forever: a ConfigError then names the keys, the shortage and the
        fix. Every node is checked if the nodes are known; for a cluster that scales itself only their sum is.
        """
        self._check_nodes(need)
        together = self._room_in_sum(need, beside)
        if not self.nodes:
            return together
        free = [dict(node) for node in self.nodes]
        for other in beside:
            _place(free, other)
        places = sum(_times(node, need.one) for node in free)
        if places < need.count:
            amounts = ", ".join(_amount(name, amount) for name, amount in need.one.items())
            times = f"{need.count} times {amounts}, each on one node" if need.count > 1 else f"{amounts} on one node"
            raise configuration.ConfigError(
                f"{need.what} needs {times}, and the nodes have room for {places or 'none'}{_beside(beside)}: "
                f"{need.fix(need.one)}"
            )
        return min(together, places // need.count)

    def _check_nodes(self, need: Need) -> None:
        """Raise ConfigError if no single node can hold one of a need, though all of them together might."""
        if not self.nodes or any(_times(node, need.one) for node in self.nodes):
            return
        most = {name: max(node.get(name, 0.0) for node in self.nodes) for name in need.one}
        short = [name for name, amount in need.one.items() if amount > most[name] + 1e-6]
        amounts = ", ".join(f"{_amount(name, need.one[name])}{need.by(name)}" for name in short or need.one)
        has = f"the largest node has {', '.join(_has(name, most[name], need) for name in short)}"
        if not short:
            each = [", ".join(_amount(name, node.get(name, 0.0)) for name in need.one) for node in self.nodes]
            has = f"no node has all of that (they have {'; '.join(dict.fromkeys(each))})"
        raise configuration.ConfigError(
            f"{need.what} needs {amounts} on one node, and {has}: {need.fix(short or need.one)}"
        )

    def _room_in_sum(self, need: Need, beside: Sequence[Need]) -> int:
        """`room` by the sum of the nodes, which is all that is known of a cluster that scales itself."""
        fits = math.inf
        for name, amount in need.all.items():
            have, other = self.resources.get(name, 0.0), sum(need.all.get(name, 0.0) for need in beside)
            if amount > have - other + 1e-6:
                others = f"{_beside(beside)} with {_amount(name, other)}" if other else ""
                raise configuration.ConfigError(
                    f"{need.what} needs {_amount(name, amount)}{need.by(name)}{others}, and the cluster has "
                    f"{_has(name, have, need)}: {need.fix([name])}"
                )
            fits = min(fits, (have - other + 1e-6) / amount)
        return int(fits)


def _has(name: str, amount: float, need: Need) -> str:
    """The amount of a resource that exists, in the words of the need."""
    return f"no {name}" if need.one[name] == PLACE else _amount(name, amount)


def _times(node: Mapping[str, float], one: Mapping[str, float]) -> int:
    """How many fit on a node."""
    return max(0, int(min((node.get(name, 0.0) + 1e-6) / amount for name, amount in one.items())))


def _place(free: list[dict[str, float]], need: Need) -> None:
    """Subtract a need from the nodes' free resources, each of it from the fullest node with room."""
    for _ in range(need.count):
        fitting = [node for node in free if _times(node, need.one)]
        if not fitting:
            return
        node = min(fitting, key=lambda each: _times(each, need.one))
        for name, amount in need.one.items():
            node[name] -= amount


def _beside(others: Sequence[Need]) -> str:
    return f" beside {' and '.join(other.what for other in others)}" if others else ""


def _amount(name: str, amount: float) -> str:
    """An amount of a resource in words: memory in GiB, a node's custom resource by its name alone."""
    if amount == PLACE:
        return f"the resource {name}"
    return f"{amount / GIB:.4g} GiB of memory" if name == "memory" else f"{amount:.4g} {name}"


def needs(cpus: float, gpus: float = 0.0, node: str | None = None, memory: float | None = None) -> dict[str, float]:
    """The nonzero Ray resources of one actor or worker; `node` is the custom resource of its nodes, `memory` in GiB."""
    resources = {"CPU": cpus, "GPU": gpus, **({node: PLACE} if node else {}), "memory": (memory or 0) * GIB}
    return {name: amount for name, amount in resources.items() if amount > 0}


def actor(resources: Mapping[str, float]) -> dict[str, Any]:
    """Ray Data's arguments for an actor with these resources."""
    custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU", "memory")}
    memory = {"memory": resources["memory"]} if "memory" in resources else {}
    return {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU") or None, "resources": custom, **memory}


def remove_orphans() -> int:
    """Remove this job's placement groups whose creator has died; return how many groups the job still has.

    A trial that a scheduler stops, or whose process dies, takes its Train controller with it, and Ray keeps the group
    as long as the job lives. Train's own cleaner asks the dashboard, and gives up if the host has several clusters.
    """
    job, left = ray.get_runtime_context().get_job_id(), 0
    for raw in ray_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        if group.creator_job_id.hex() != job or group.state == PlacementGroupTableData.REMOVED:
            continue
        left += 1
        # Ray also calls the creator dead if it is the driver and no actor, as for Tune's own groups.
        if group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil():
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return left


def _cluster(settings: configuration.Ray, started: bool, dashboard: str | None) -> Cluster:
    present: dict[str, float] = {**ray.cluster_resources()}
    growing = {} if started else _growing(settings)
    resources = {name: max(present.get(name, 0.0), growing.get(name, 0.0)) for name in {*present, *growing}}
    nodes = () if growing else tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    return Cluster(resources, started, dashboard, present, nodes)


def _growing(settings: configuration.Ray) -> dict[str, float]:
    """What the cluster may grow to: for each resource the most that any source knows; empty if none knows."""
    announced = ray_state.get_max_resources_from_cluster_config() or {}  # by some managed clusters only
    known = [announced, largest(BOOTSTRAP.expanduser()), settings.grows_to or {}]
    return {name: max(single.get(name, 0.0) for single in known) for name in {name for k in known for name in k}}


# `ray up` leaves its configuration here on the head, where jobs start, with every node type's resources.
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")


def largest(path: Path) -> dict[str, float]:
    """The resources of a cluster.yaml with every node that it allows; empty if there is no such file."""
    if not path.is_file():
        return {}
    described = yaml.safe_load(path.read_text())
    together = described.get("max_workers", 0)
    total: dict[str, float] = {}
    for name, kind in described.get("available_node_types", {}).items():
        count = 1 if name == described.get("head_node_type") else min(kind.get("max_workers", together), together)
        for resource, amount in kind.get("resources", {}).items():
            total[resource] = total.get(resource, 0.0) + count * amount
    return total


@contextmanager
def connected(settings: configuration.Ray) -> Iterator[Cluster]:
    """Connect to Ray for the length of the context.

    A cluster that was started here is stopped at the end, on Ctrl-C too; any other is left alone.
    Raises ConfigError for an address at which no cluster answers.
    """
    if ray.is_initialized():
        yield _cluster(settings, False, None)
        return
    address = _address(settings)
    quiet()
    try:
        with _own_signals():
            context = _start(settings) if address is None else _join(address)
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        yield _cluster(settings, address is None, dashboard)
    finally:
        # On somebody else's cluster this ends only our connection, and our actors with it.
        with _uninterrupted():
            ray.shutdown()


def quiet() -> None:
    """Keep Ray's own chatter off the terminal: progress is shown by `pipelines.show.progress`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    # The first Ctrl-C is ours: Tune's own handler would wait until every trial has saved itself.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their errors reach us as exceptions


def _address(settings: configuration.Ray) -> str | None:
    """The address of a running cluster; None if one has to be started."""
    if settings.address == "local":
        return None
    # `ray.init("auto")` would also take another program's private Ray; this address is what `ray start` left.
    address = settings.address or os.environ.get("RAY_ADDRESS") or read_ray_address(None)
    if address in (None, "auto"):
        return None
    if settings.address or os.environ.get("RAY_ADDRESS") or _answers(address):
        return address
    print(f"Ray: the cluster at {address} no longer answers; starting a local one.", file=sys.stderr)
    return None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def _start(settings: configuration.Ray) -> Any:
    if IS_CHECKOUT:  # workers inherit this environment, and import the repository wherever the command was started
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    with _without_line("Set ray log level from environment variable"):
        return ray.init(
            address="local",
            num_cpus=settings.num_cpus or max(LEAST_CPUS, os.cpu_count() or 1),
            object_store_memory=settings.object_store_mb * 2**20,
            include_dashboard=settings.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep SIGTERM ours: Ray takes it, and would end this process before it can say how to resume."""
    ours = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore a second Ctrl-C or SIGTERM, which would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _without_line(text: str) -> Iterator[None]:
    """Hold back stderr, that of Ray's core too, and print it at the end without the lines that contain this text."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if text not in line))


PACKAGES = ("aig", "pipelines", "tune")


def _join(address: str) -> Any:
    # `ray job submit` has shipped the working directory already.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    code = {"working_dir": str(ROOT)} if IS_CHECKOUT else {"py_modules": [str(ROOT / name) for name in PACKAGES]}
    runtime_env = None if submitted else code
    try:
        return ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise configuration.ConfigError(
            f"ray.address: no Ray cluster answers at {address}: check it and RAY_ADDRESS, or take ray.address=local"
        ) from error
