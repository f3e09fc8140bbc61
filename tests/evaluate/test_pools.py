"""How many actors an evaluation has, and how its progress is told."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipelines import config as configuration
from pipelines.cluster import resources
from pipelines.cluster.connect import PLACE, Cluster
from pipelines.config import ConfigError
from pipelines.evaluate import pools
from pipelines.show.bar import Bar
from pipelines.train.launch import room_for
from tune.search import workers

GIB = 2**30


def cluster(cpus, gpus=0.0, memory=64 * GIB, present=None):
    return Cluster({"CPU": cpus, "GPU": gpus, "memory": memory}, False, None, present)


def sizes(found, there, memory=0):
    made = pools.generators(configuration.load(None, None, found), there, memory)
    return made.least, made.start, made.most


@pytest.mark.parametrize(
    ("keys", "there", "expected"),
    [
        ([], cluster(8), (2, 2, 2)),
        (["evaluate.generators=6"], cluster(4), (3, 3, 3)),  # one scorer of half a CPU, and a task
        (["evaluate.generators=[1, 6]"], cluster(4), (1, 3, 6)),
        (["evaluate.generators=[2, 6]"], cluster(64, present={"CPU": 4}), (2, 3, 6)),
        (["evaluate.generators=[4, 6]"], cluster(64, present={}), (4, 4, 6)),
        (["evaluate.generators=[4, 6]"], cluster(3), (2, 2, 6)),
        (["evaluate.generators=null"], cluster(64, present={"CPU": 9, "memory": 64 * GIB}), (1, 8, float("inf"))),
        (["evaluate.generators=null", "evaluate.generator_gpus=0.5"], cluster(64, 3), (1, 6, float("inf"))),
    ],
)
def test_a_pool_starts_with_what_there_is_room_for_and_ends_where_the_configuration_says(keys, there, expected):
    assert sizes(keys, there) == expected


def test_a_pool_that_takes_what_there_is_holds_memory_too_and_a_fixed_one_does_not():
    there = cluster(64, memory=10 * GIB)
    assert sizes(["evaluate.generators=null"], there, memory=3 * GIB)[1] == 3
    made = pools.generators(configuration.load(None, None, ["evaluate.generators=null"]), there, 3 * GIB)
    assert made.memory == 3 * GIB
    assert sizes(["evaluate.generators=8"], there, memory=3 * GIB) == (8, 8, 8)
    said = r"a generator needs 11 GiB of memory, and the cluster has 10 GiB of memory: .*take larger nodes"
    with pytest.raises(ConfigError, match=said):
        sizes(["evaluate.generators=null"], there, memory=11 * GIB)


GPU_NODES = ({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0})


def of(nodes, **more):
    """The cluster of these nodes."""
    together = {name: sum(node.get(name, 0.0) for node in nodes) for name in {n for node in nodes for n in node}}
    return Cluster(together | more, False, None, nodes=tuple(nodes))


def score_there(found, there):
    there.room(resources.scorers(found.evaluate), resources.SPARE)


def evaluate_there(found, there):
    pools.check(found, there)


def search_there(found, there):
    workers.size(found, there)


def train_there(found, there):
    room_for(found, there)


def normalize_there(found, there):
    there.room(resources.statistics(found))


TWO = ({"CPU": 4.0}, {"CPU": 4.0})
REFUSED = [
    (
        evaluate_there, ["evaluate.generator_cpus=5"], GPU_NODES,
        r"a generator needs 5 CPU \(evaluate.generator_cpus\) on one node, and the largest node has 4 CPU: "
        "lower evaluate.generator_cpus, or take larger nodes",
    ),
    (
        evaluate_there, ["evaluate.generator_gpus=2"], GPU_NODES,
        r"a generator needs 2 GPU \(evaluate.generator_gpus\) on one node, and the largest node has 1 GPU: lower",
    ),
    (
        evaluate_there, ["evaluate.generator_cpus=3", "evaluate.generator_gpus=1"], GPU_NODES,
        r"3 CPU .*, 1 GPU .* on one node, and no node has all of that \(they have 4 CPU, 0 GPU; 2 CPU, 1 GPU\): lower",
    ),
    (evaluate_there, ["evaluate.scorer_cpus=5"], GPU_NODES, r"a scorer needs 5 CPU \(evaluate.scorer_cpus\)"),
    (
        evaluate_there, ["evaluate.node=spot"], GPU_NODES,
        r"a scorer needs the resource spot \(evaluate.node\) on one node, and the largest node has no spot: "
        "name another evaluate.node",
    ),
    (
        evaluate_there, ["evaluate.scorers=3", "evaluate.scorer_cpus=2.5"], TWO,
        "the pool of scorers needs 3 times 2.5 CPU, each on one node, and the nodes have room for 2",
    ),
    (
        evaluate_there, ["evaluate.scorers=2", "evaluate.scorer_cpus=2.5", "evaluate.generator_cpus=2"], TWO,
        "a generator needs 2 CPU on one node, and the nodes have room for none beside the pool of scorers and",
    ),
    (
        evaluate_there, ["measure.tiles_from=4", "measure.tile_cpus=5"], GPU_NODES,
        r"a tile of nearest neighbours needs 5 CPU \(measure.tile_cpus\) on one node",
    ),
    (score_there, ["evaluate.scorer_gpus=2"], GPU_NODES, r"a scorer needs 2 GPU \(evaluate.scorer_gpus\)"),
    (search_there, ["search.worker_cpus=5"], GPU_NODES, r"the search needs 5 CPU \(search.worker_cpus\) on one node"),
    (search_there, ["search.worker_gpus=2"], GPU_NODES, r"needs 2 GPU \(search.worker_gpus\) on one node"),
    (search_there, ["search.node=spot"], GPU_NODES, "name another search.node"),
    (
        normalize_there, ["train.gpus_per_worker=2"], GPU_NODES,
        r"the task that scores the base model's images needs 2 GPU \(train.gpus_per_worker\) on one node",
    ),
    (train_there, ["train.gpus_per_worker=2"], GPU_NODES, r"a training needs 2 GPU \(train.gpus_per_worker\)"),
    (
        train_there, ["train.num_workers=3", "train.cpus_per_worker=2.5"], TWO,
        "a training needs 3 times 2.5 CPU, each on one node, and the nodes have room for 2: "
        "lower train.cpus_per_worker, train.num_workers, or",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("start", "keys", "nodes", "expected"), REFUSED)
def test_what_no_node_could_ever_hold_is_refused_at_once_with_the_key_the_largest_node_and_the_fix(
    start, keys, nodes, expected
):
    found = configuration.load(None, None, keys)
    with pytest.raises(ConfigError, match=expected) as error:
        start(found, of(nodes))
    assert "\n" not in str(error.value)
    start(found, Cluster({"CPU": 64.0, "GPU": 8.0, "spot": 8.0}, False, None))  # as ray.grows_to says, nodes may come


@pytest.mark.parametrize("start", [evaluate_there, score_there, search_there, train_there, normalize_there])
def test_what_the_nodes_have_room_for_is_let_through(start):
    keys = ["evaluate.generators=1", "evaluate.node=spot", "search.node=spot", "search.worker_gpus=0.5"]
    start(configuration.load(None, None, keys), of([{"CPU": 2.0, "GPU": 1.0, "spot": 1.0}, {"CPU": 1.0}]))


def test_workers_of_a_search_hold_what_its_keys_say_on_the_nodes_that_they_name(monkeypatch):
    asked = []

    def remote(**options):
        asked.append(options)
        return lambda actor: SimpleNamespace(remote=lambda *_: None)

    monkeypatch.setattr(workers.ray, "remote", remote)
    found = configuration.load(None, None, ["search.worker_cpus=2", "search.worker_gpus=0.5", "search.node=spot"])
    plan = SimpleNamespace(config=found, adapter="x", reward="fragile", prompts={}, seeds={})
    workers.Pool(plan, lambda: of([{"CPU": 4.0, "GPU": 1.0, "spot": 1.0}]))._start()  # type: ignore[arg-type]
    (options,) = asked
    assert (options["num_cpus"], options["num_gpus"], options["resources"]) == (2, 0.5, {"spot": PLACE})


def test_a_pool_is_no_larger_than_its_work():
    strategy = pools.Pool(2, 4, float("inf")).strategy(3)
    assert (strategy.min_size, strategy.initial_size, strategy.max_size) == (2, 3, 3)


def test_a_generator_takes_what_a_worker_and_the_models_weights_do():
    layer = nn.Linear(1000, 1000)
    pipe = SimpleNamespace(components={"unet": layer, "again": layer, "scheduler": object()})
    found = pools.host_memory(SimpleNamespace(pipe=pipe, denoiser=layer))  # type: ignore[arg-type]
    assert found == pools.WORKER_BYTES + 4 * (1000 * 1000 + 1000)
    half = layer.to(torch.float16)
    assert pools.host_memory(SimpleNamespace(denoiser=half)) < found  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["[3, 2]", "[1, 2, 3]", "[]"])
def test_bounds_that_are_none_are_refused(value):
    with pytest.raises(ConfigError, match=r"evaluate.generators is .*give a number, or"):
        configuration.load(None, None, [f"evaluate.generators={value}"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def bar(out, **more):
    now = [0.0]
    made = Bar("images", 200, out=out, clock=lambda: now[0], **more)

    def at(second, *counts, **named):
        now[0] = second
        made.add(*counts, **named)

    return made, at


def test_the_line_tells_images_rates_time_left_and_each_arms_part():
    made, at = bar(io.StringIO(), done=40, arms=5)
    assert made.line() == "images 40/200 (20 %), 5 arms with 8 of 40 images each"
    at(10, 20, 300)
    at(20, 20, 300, failed=1)
    assert made.line() == (
        "images 80/200 (40 %), 2 images/s, 30 predictions/s, 1:00 left, 5 arms with 16 of 40 images each, "
        "1 groups failed"
    )


def test_what_need_not_be_made_counts_as_there_and_not_as_fast():
    made, at = bar(io.StringIO(), unit="arms")
    at(10, 20)
    made.spare(100)
    at(20, 20)
    made.note = "generation 2"
    assert made.line() == "images 140/200 (70 %), 2 arms/s, 0:30 left, generation 2"


def test_a_log_has_whole_lines_now_and_then_and_the_last_state():
    out = io.StringIO()
    made, at = bar(out)
    for second in range(1, 41):
        at(second, 5)
    made.close()
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "images 75/200 (38 %)", "images 150/200 (75 %)", "images 200/200 (100 %)",
    ]  # fmt: skip
    assert "\r" not in out.getvalue() and "left" not in lines[-1]


def test_a_terminal_has_one_line_that_is_drawn_anew():
    out = Terminal()
    made, at = bar(out)
    at(1, 5)
    at(1.1, 5)
    at(2, 5)
    made.close()
    assert out.getvalue().count("\r") == 3 and out.getvalue().count("\n") == 1
