"""A training on a Ray cluster of several nodes, one of which is killed under it; a process of its own, since nodes are
added from a main thread alone and the tests' process has its own Ray."""

from __future__ import annotations

import json
import sys
import threading

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
from waiting import wait_for

from pipelines import config as configuration
from pipelines.cluster.connect import quiet
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study.trainings import adapter_key
from pipelines.train.launch import train

SIZE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def main(nodes: int, replaced: bool, arguments: list[str]) -> None:
    """Train on so many nodes; once some steps are made, kill one of them, and add another where it is `replaced`."""
    single = configuration.load("smoke", None, arguments)
    identity.claim_directory(single)
    quiet()
    cluster = Cluster(initialize_head=True, head_node_args={**SIZE, "include_dashboard": False})
    machines = [cluster.add_node(**SIZE, resources={"train": 1}) for _ in range(nodes)]
    ray.init(address=cluster.address, log_to_driver=False)
    thread = threading.Thread(target=train, args=(single,), daemon=True)
    thread.start()
    status = RunDir.of(single).progress / f"{adapter_key(single.train)}.json"
    wait_for(lambda: status.exists() and json.loads(status.read_text())["step"] >= 3)
    cluster.remove_node(machines[-1], allow_graceful=False)
    killed_at = json.loads(status.read_text())["step"]
    if replaced:
        cluster.add_node(**SIZE, resources={"train": 1})
    thread.join()
    groups = [group["state"] for group in placement_group_table().values()]
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({"groups": groups, "killed_at": killed_at}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "replaced", sys.argv[3:])
