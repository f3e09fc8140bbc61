"""The workers of a search: Ray actors that hold the model, an adapter and the scores, and draw whole generations.

They live as long as the search: loading a model costs more than drawing a candidate. They get a generation at once,
since its candidates share noise, texts and the steps on which their weights agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch

from aig import adapters
from aig.metrics import mean_pairwise_cosine_distance, vendi_score
from aig.sampler import Arm, sample_arms, to_uint8
from pipelines import config as configuration
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster, actor
from pipelines.config import SEARCH_SEEDS, Config
from pipelines.evaluate.scorers import scoring_device
from pipelines.rewards import names
from pipelines.rewards.scores import ACCURACIES, Scores
from pipelines.runs.directory import RunDir
from pipelines.study import models
from pipelines.study import statistics as reward_statistics
from tune.search.plan import Plan, scored
from tune.search.store import Measured, Unit

ADAPTER = "searched"
RETRIES = 3  # per unit whose worker died


class Evaluator:
    """Draws and scores units in one process."""

    def __init__(
        self,
        config: dict[str, Any],
        adapter: str,
        reward: str,
        prompts: dict[str, tuple[str, ...]],
        seeds: dict[str, int],
    ) -> None:
        self.config = configuration.from_dict(config)
        torch.set_num_threads(self.config.evaluate.threads)
        self.prompts, self.seeds = prompts, seeds
        files = RunDir.of(self.config)
        files.pull(files.root, files.reward_statistics.name)
        files.pull(files.adapters, adapter)
        self.model = models.load_model(self.config)
        adapters.load(self.model.denoiser, files.adapters / adapter, ADAPTER)
        self.sampling = models.evaluation_sampling(self.config, self.model.defaults)
        evaluate = self.config.evaluate
        columns = names.columns(self.config, scored(self.config, reward))
        statistics = reward_statistics.sum_statistics(self.config)
        self.scores = Scores(columns, statistics, names.gold(self.config), evaluate.features, scoring_device())

    @torch.no_grad()
    def draw(self, unit: Unit) -> Measured:
        """Draw every curve on the unit's prompts and seeds, from common noise, and score the 8-bit images."""
        seeds = self.seeds[unit.set]
        texts = [self.prompts[unit.set][p] for p in unit.prompt_ids for _ in range(seeds)]
        indices = [SEARCH_SEEDS + seed for _ in unit.prompt_ids for seed in range(seeds)]
        arms = [arm_of(text) for text in unit.schedules]
        samples = sample_arms(self.model, texts, indices, arms, self.config.run.seed, self.sampling)
        rows = [self._measure(samples.latents[arm.name], texts, len(unit.prompt_ids)) for arm in arms]
        values = {name: [row[name] for row in rows] for name in rows[0]}
        return Measured(values, {name: count * len(texts) for name, count in samples.cost.counts().items()})

    def _measure(self, latents: torch.Tensor, texts: list[str], prompts: int) -> dict[str, list[float]]:
        """Metric -> (prompts,) of one curve's latents (prompts · seeds, C, H, W)."""
        images = to_uint8(self.model.decode(latents)).permute(0, 3, 1, 2)
        scores = {name: value.cpu().numpy() for name, value in self.scores(images, texts).items()}
        features = scores.pop("features").reshape(prompts, len(texts) // prompts, -1)
        table = {name: column.astype(np.float64).reshape(prompts, -1).mean(axis=1) for name, column in scores.items()}
        if ACCURACIES[0] in table:
            table["accuracy"] = (table[ACCURACIES[0]] + table[ACCURACIES[1]]) / 2
        table["vendi"] = np.array([vendi_score(rows) for rows in features])
        table["pairwise"] = np.array([mean_pairwise_cosine_distance(rows) for rows in features])
        bad = next((name for name, values in table.items() if not np.isfinite(values).all()), None)
        if bad is not None:
            raise ValueError(f"{bad} is not finite on images of {texts[0]!r}: a search cannot rank such schedules")
        return {name: values.tolist() for name, values in table.items()}


def arm_of(schedule: str) -> Arm:
    """A schedule's arm; the base needs no adapter and shares its states with curves that begin with it."""
    return Arm(schedule, None if schedule == "base" else ADAPTER, 1.0, schedule)


def size(config: Config, cluster: Cluster) -> int:
    """The number of workers: as many as fit into the cluster, at most `search.workers`; ConfigError if none fits."""
    return min(cluster.room(resources.searcher(config.search)), config.search.workers)


class Pool:
    """Draws units with workers on a cluster; `connect` connects to it when the first unit is to be drawn."""

    def __init__(self, plan: Plan, connect: Callable[[], Cluster]) -> None:
        self.plan, self.connect = plan, connect
        self.workers: list[Any] = []

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Measured]]:
        """Yield each unit with its measurements, as they are done."""
        if not self.workers:
            self._start()
        left, idle = list(units), list(self.workers)
        running: dict[Any, tuple[Unit, Any]] = {}
        while left or running:
            while left and idle:
                unit, worker = left.pop(0), idle.pop()
                running[worker.draw.remote(unit)] = unit, worker
            done, _ = ray.wait(list(running), num_returns=1)
            unit, worker = running.pop(done[0])
            idle.append(worker)
            yield unit, ray.get(done[0])

    def _start(self) -> None:
        config, plan = self.plan.config, self.plan
        count = size(config, self.connect())
        held = actor(resources.searcher(config.search).one)
        worker: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **held)(Evaluator)
        self.workers = [
            worker.remote(configuration.to_dict(config), plan.adapter, plan.reward, plan.prompts, plan.seeds)
            for _ in range(count)
        ]
