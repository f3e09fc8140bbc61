"""The resources that each part of a run asks of Ray, and the configuration keys behind them."""

from __future__ import annotations

from pipelines import config as configuration
from pipelines.cluster.connect import Need, needs
from pipelines.config import Config

# A task that hands out the groups needs room beside the pools.
SPARE = Need("the task that hands out groups", {"CPU": 0.25}, {})


def training(config: Config, driver_cpus: float = 0.0) -> Need:
    """A training: its least number of workers at once, and their driver."""
    one = _worker(config.train)
    keys = _keys("train", "cpus_per_worker", "gpus_per_worker", config.train.node, "memory_per_worker")
    return Need("a training", one, keys | {"count": "train.num_workers"}, config.train.workers[0], driver_cpus)


def statistics(config: Config) -> Need:
    """The task that scores the base model's images; it is as large as a training worker."""
    keys = _keys("train", "cpus_per_worker", "gpus_per_worker", config.train.node, "memory_per_worker")
    return Need("the task that scores the base model's images", _worker(config.train), keys)


def _worker(train: configuration.Train) -> dict[str, float]:
    return needs(train.cpus_per_worker, train.gpus_per_worker, train.node, train.memory_per_worker)


def scorers(evaluate: configuration.Evaluate) -> Need:
    """The least number of scorers at once."""
    one = needs(evaluate.scorer_cpus, evaluate.scorer_gpus, evaluate.node)
    keys = _keys("evaluate", "scorer_cpus", "scorer_gpus", evaluate.node) | {"count": "evaluate.scorers"}
    least, _ = configuration.bounds(evaluate.scorers)
    return Need("the pool of scorers" if least > 1 else "a scorer", one, keys, least)


def generator(evaluate: configuration.Evaluate, memory: int = 0) -> Need:
    """A generator; if the cluster decides their number, each also takes `memory` bytes of a node."""
    one = needs(evaluate.generator_cpus, evaluate.generator_gpus, evaluate.node)
    one |= {"memory": memory} if evaluate.generators is None and memory else {}
    return Need("a generator", one, _keys("evaluate", "generator_cpus", "generator_gpus", evaluate.node))


def tile(measure: configuration.Measure) -> Need:
    """A task that compares `measure.tile` images on each side."""
    return Need("a tile of nearest neighbours", needs(measure.tile_cpus), {"CPU": "measure.tile_cpus"})


def searcher(search: configuration.Search) -> Need:
    """A worker of the search."""
    one = needs(search.worker_cpus, search.worker_gpus, search.node)
    return Need("a worker of the search", one, _keys("search", "worker_cpus", "worker_gpus", search.node))


def _keys(section: str, cpus: str, gpus: str, node: str | None, memory: str | None = None) -> dict[str, str]:
    names = {"CPU": cpus, "GPU": gpus, **({"memory": memory} if memory else {}), **({node: "node"} if node else {})}
    return {resource: f"{section}.{name}" for resource, name in names.items()}
