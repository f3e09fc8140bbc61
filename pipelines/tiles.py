"""Nearest neighbours of sets too large for one process: tiles of distances as Ray tasks, exact as in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import ray
import torch
from torch import Tensor

from aig.metrics import Hits, NeighbourScores, hits_tile, merge_radii, radii_tile
from pipelines.feature_file import FeatureFile

AHEAD = 2  # tasks a CPU that wait, so that none of them stands idle


@dataclass(frozen=True)
class Tiles:
    """The arms of a feature file, n rows each, in blocks of `tile` rows."""

    features: FeatureFile
    n: int
    k: int
    tile: int
    cpus: float = 1.0
    """Ray CPUs of a task."""

    def radii(self, arm: int) -> Tensor:
        """Squared distance (n,) of each of an arm's rows to its k-th nearest other row; Ray has to be connected."""
        nearest: dict[int, Tensor] = {}
        # Each block with itself first: its radii bound what the other tiles have to look at.
        for (_, i, *_), (of_i, _) in self.run(_radii_task, ((arm, i, i, None, None) for i in self.blocks())):
            nearest[i] = of_i
        pairs = combinations(self.blocks(), 2)
        jobs = ((arm, i, j, nearest[i][:, -1].clone(), nearest[j][:, -1].clone()) for i, j in pairs)
        for (_, i, j, *_), (of_i, of_j) in self.run(_radii_task, jobs):
            nearest[i], nearest[j] = merge_radii(nearest[i], of_i), merge_radii(nearest[j], of_j)
        return torch.cat([nearest[i] for i in self.blocks()])[:, -1].clone()

    def scores(self, ref: int, gen: int, radii_ref: Tensor) -> NeighbourScores:
        """Precision, recall, density and coverage of arm gen against arm ref, whose radii these are."""
        radii_gen = self.radii(gen)
        total = Hits.none(self.n, self.n)
        # A slice would take the whole tensor along.
        jobs = (
            (ref, gen, i, j, radii_ref[self.rows(i)].clone(), radii_gen[self.rows(j)].clone())
            for i, j in product(self.blocks(), self.blocks())
        )
        for (_, _, i, j, *_), tile in self.run(_hits_task, jobs):
            total.add(tile, self.rows(i).start, self.rows(j).start)
        return total.scores(self.k)

    def blocks(self) -> range:
        return range(-(-self.n // self.tile))

    def rows(self, block: int) -> slice:
        return slice(block * self.tile, min((block + 1) * self.tile, self.n))

    def load(self, arm: int, block: int) -> Any:
        rows = self.rows(block)
        return self.features.rows(arm, rows.start, rows.stop)

    def run(self, task: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each job with its result, as they finish; a few more than there is room for wait at a time."""
        remote: Any = ray.remote(task).options(num_cpus=self.cpus)
        room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus))
        running: dict[Any, tuple[Any, ...]] = {}
        for job in jobs:
            if len(running) >= room:
                (done,), _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done), ray.get(done)
            running[remote.remote(self, *job)] = job
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)


def _radii_task(tiles: Tiles, arm: int, i: int, j: int, *bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    return radii_tile(tiles.load(arm, i), None if i == j else tiles.load(arm, j), tiles.k, *bounds)


def _hits_task(tiles: Tiles, ref: int, gen: int, i: int, j: int, radii_ref: Tensor, radii_gen: Tensor) -> Hits:
    return hits_tile(tiles.load(ref, i), tiles.load(gen, j), radii_ref, radii_gen)
