"""`python growing.py ARGUMENTS`: evaluate on one node, bring a second in the middle, and take it away again.

Prints, as JSON, on which number of generators a node each phase settled, and the exit code.
"""

import json
import sys
import threading
import time
from collections import Counter

import ray
from ray._private.state import state
from ray.cluster_utils import Cluster

from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.runs.directory import RunDir


def generators():
    """Generators that are alive, by their node."""
    alive = [actor for actor in state.actor_table(None).values() if actor["State"] == "ALIVE"]
    return Counter(
        actor["Address"]["NodeID"] for actor in alive if "Generator" in actor["Name"] + actor["ActorClassName"]
    )


def wait_until(happened, thread):
    while not happened():
        assert thread.is_alive(), "the evaluation was over before"
        time.sleep(0.2)


def run(given):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 * 2**20})
    ray.init(address=cluster.address, log_to_driver=False)
    folder = RunDir(configuration.load("smoke", None, given[2:]).directory).images
    codes, seen = [], {}
    thread = threading.Thread(target=lambda: codes.append(main(["evaluate", *given])))
    thread.start()
    parts = lambda: len(list(folder.glob("part-*.parquet")))  # noqa: E731
    wait_until(lambda: parts() > 1, thread)
    seen["one node"] = sorted(generators().values())
    node = cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
    wait_until(lambda: generators().total() == 3, thread)
    there = parts()
    wait_until(lambda: parts() > there + 3, thread)
    seen["two nodes"] = sorted(generators().values())
    cluster.remove_node(node)
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    return {"generators": seen, "code": codes[0]}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:])))
