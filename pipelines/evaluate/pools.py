"""How many actors an evaluation has: a fixed number, or as many as the cluster has room for while it grows.

Ray Data's autoscaler grows a pool while its actors have tasks waiting (max_tasks_in_flight_per_actor / 1 must reach
1.75, so each gets 2) and the cluster has room; it releases idle actors. If a node goes, Ray gives its tasks to others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from ray.data import ActorPoolStrategy

from aig.models import Model
from pipelines import config as configuration
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster
from pipelines.config import Config
from pipelines.study.prompts import EVALUATE, resolve_prompts

# A worker with torch that has loaded nothing else: measured as 840 MB.
WORKER_BYTES = 2**30
IN_FLIGHT = 2


@dataclass(frozen=True)
class Pool:
    """The bounds of a pool of actors, and how many it starts with."""

    least: int
    start: int
    most: float
    """Infinite if only the cluster is a bound."""
    memory: int = 0
    """Bytes of a node's memory that each actor holds."""

    def strategy(self, work: int) -> ActorPoolStrategy:
        """As an ActorPoolStrategy, capped at `work` actors."""
        least, start, most = (int(min(size, work)) for size in (self.least, self.start, self.most))
        return ActorPoolStrategy(
            min_size=least, max_size=most, initial_size=start, max_tasks_in_flight_per_actor=IN_FLIGHT
        )


def scorers(evaluate: configuration.Evaluate) -> Pool:
    """The scorers, at first the least of them."""
    least, most = configuration.bounds(evaluate.scorers)
    return Pool(least, least, most)


def check(config: Config, cluster: Cluster, memory: int = 0) -> None:
    """ConfigError if the cluster has no room for an evaluation's scorers, generators or tiles.

    memory: bytes of a node that a generator takes (`host_memory`).
    """
    generators(config, cluster, memory)
    images = len(resolve_prompts(config, EVALUATE)) * config.evaluate.seeds
    if images >= config.measure.tiles_from:
        cluster.room(resources.tile(config.measure))


def generators(config: Config, cluster: Cluster, memory: int = 0) -> Pool:
    """The generators that the cluster has room for beside the scorers; ConfigError if either do not fit.

    memory: bytes of a node that one takes (`host_memory`); it counts if evaluate.generators is null.
    """
    evaluate = config.evaluate
    need, beside = resources.generator(evaluate, memory), (resources.scorers(evaluate), resources.SPARE)
    cluster.room(*beside)
    room = cluster.room(need, *beside)
    least, most = (1, math.inf) if evaluate.generators is None else configuration.bounds(evaluate.generators)
    if least == most:  # actors without a node make the cluster start one
        fixed = int(min(room, most))
        return Pool(fixed, fixed, fixed)
    least = min(least, room)
    start = int(max(least, min(cluster.room_now(need, *beside), most)))
    return Pool(least, start, most, int(need.one.get("memory", 0)))


def host_memory(model: Model) -> int:
    """About how many bytes of a node's memory a generator takes: a worker's own and the model's weights."""
    pipe: Any = getattr(model, "pipe", None)
    parts = [model.denoiser] if pipe is None else pipe.components.values()
    tensors = [t for part in parts if isinstance(part, torch.nn.Module) for t in [*part.parameters(), *part.buffers()]]
    return WORKER_BYTES + sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
