"""Nearest neighbours of sets too large for one process: tiles of distances as Ray tasks, with the exact result.

The features lie in a file of this machine; tasks on any node get blocks of them through a part of Ray's object store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from aig.metrics import Hits, NeighbourScores, hits_tile, merge_radii, radii_tile
from pipelines.measure.feature_file import FeatureFile

AHEAD = 2  # tasks per CPU that wait, so that no CPU idles
STORE_SHARE = 0.4  # of this node's object store for kept blocks; waiting tasks hold as much again at most

Key = tuple[int, int]  # an arm, and one of its blocks


@dataclass
class Blocks:
    """A cache of at most `most` blocks in the object store, the last used ones; a task keeps those it was given."""

    load: Callable[[int, int], np.ndarray]
    most: int
    put: Callable[[np.ndarray], Any] = ray.put
    kept: OrderedDict[Key, Any] = field(default_factory=OrderedDict)

    def ref(self, key: Key) -> Any:
        """A block's reference, read from the file if it is not kept."""
        block = self.kept.pop(key, None)
        if block is None:
            while len(self.kept) >= self.most:
                self.kept.popitem(last=False)
            block = self.put(self.load(*key))
        self.kept[key] = block
        return block


@dataclass(frozen=True)
class Tiles:
    """The arms of a feature file, n rows each, in blocks of `tile` rows."""

    features: FeatureFile
    n: int
    k: int
    tile: int
    cpus: float = 1.0
    """Of a task."""

    def radii(self, arm: int) -> Tensor:
        """Squared distance (n,) of each of an arm's rows to its k-th nearest other row; needs a connected Ray."""
        nearest: dict[int, Tensor] = {}
        # Each block with itself first: its radii bound what the other tiles have to look at.
        for ((_, i),), (of_i, _) in self.run(_radii_of_one, ((((arm, i),), (self.k,)) for i in self.blocks())):
            nearest[i] = of_i
        jobs = (
            (((arm, i), (arm, j)), (self.k, nearest[i][:, -1].clone(), nearest[j][:, -1].clone()))
            for i, j in combinations(self.blocks(), 2)
        )
        for ((_, i), (_, j)), (of_i, of_j) in self.run(radii_tile, jobs):
            nearest[i], nearest[j] = merge_radii(nearest[i], of_i), merge_radii(nearest[j], of_j)
        return torch.cat([nearest[i] for i in self.blocks()])[:, -1].clone()

    def scores(self, ref: int, gen: int, radii_ref: Tensor) -> NeighbourScores:
        """Precision, recall, density and coverage of arm gen against arm ref, whose radii these are."""
        radii_gen = self.radii(gen)
        total = Hits.none(self.n, self.n)
        # A slice would take the whole tensor along.
        jobs = (
            (((ref, i), (gen, j)), (radii_ref[self.rows(i)].clone(), radii_gen[self.rows(j)].clone()))
            for i, j in product(self.blocks(), self.blocks())
        )
        for ((_, i), (_, j)), tile in self.run(hits_tile, jobs):
            total.add(tile, self.rows(i).start, self.rows(j).start)
        return total.scores(self.k)

    def blocks(self) -> range:
        return range(-(-self.n // self.tile))

    def rows(self, block: int) -> slice:
        return slice(block * self.tile, min((block + 1) * self.tile, self.n))

    def load(self, arm: int, block: int) -> np.ndarray:
        rows = self.rows(block)
        return self.features.rows(arm, rows.start, rows.stop)

    def run(
        self, function: Callable[..., Any], jobs: Iterable[tuple[tuple[Key, ...], tuple[Any, ...]]]
    ) -> Iterator[tuple[tuple[Key, ...], Any]]:
        """A function's results on each job's blocks and other arguments, with the blocks' keys, as tasks finish."""
        task: Any = ray.remote(function).options(num_cpus=self.cpus)
        blocks = Blocks(self.load, self.most())
        room = min(blocks.most, AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus)))
        running: dict[Any, tuple[Key, ...]] = {}
        for keys, more in jobs:
            if len(running) >= room:
                yield _next(running)
            running[task.remote(*map(blocks.ref, keys), *more)] = keys
        while running:
            yield _next(running)

    def most(self) -> int:
        """How many blocks this node's object store has room for; at least the two of a tile."""
        here = ray.get_runtime_context().get_node_id()
        store = next(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here)
        return max(2, int(STORE_SHARE * store) // self.load(0, 0).nbytes)


def _radii_of_one(x: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    return radii_tile(x, None, k)


def _next(running: dict[Any, tuple[Key, ...]]) -> tuple[tuple[Key, ...], Any]:
    """Remove and return the first finished task."""
    (done,), _ = ray.wait(list(running), num_returns=1)
    return running.pop(done), ray.get(done)
