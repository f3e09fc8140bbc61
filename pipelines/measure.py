"""From images to numbers: every metric of every arm, prompt by prompt where that is possible, with intervals.

Means over training seeds are arms here like any other: prompt by prompt, the mean of their members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from aig.metrics import (
    frechet_distance,
    log_spectral_distance,
    mean_pairwise_cosine_distance,
    precision_recall,
    spectral_distance,
    spectral_profile,
    vendi_score,
    within_prompt_moments,
)
from aig.pareto import bootstrap
from pipelines import generate, layout, study
from pipelines.config import Config
from pipelines.layout import RunFiles
from pipelines.scoring import ACCURACIES

NEIGHBOURS = 5  # of precision and recall
PER_PROMPT = "per_prompt.parquet"


@dataclass(frozen=True)
class Table:
    """Metrics prompt by prompt: (arms, prompts) a metric, arms by name."""

    arms: list[str]
    prompts: list[str]
    seeds: int
    values: dict[str, np.ndarray]

    def rows(self, arms: list[str]) -> dict[str, np.ndarray]:
        """The metrics of these arms, in this order."""
        index = [self.arms.index(arm) for arm in arms]
        return {metric: values[index] for metric, values in self.values.items()}


def measure(config: Config, images: generate.Images, command: str) -> Table:
    """Write `metrics.parquet`, the table prompt by prompt beside it, and `arms.json` with the command.

    ConfigError where the dataset is not complete.
    """
    images.require_complete()
    # The matrices are small, and threads that wait for one another on busy cores take thirty times as long.
    torch.set_num_threads(1)
    files = RunFiles(config.directory)
    scores, features = _arrays(config, images.table)
    table = _per_prompt(config, scores, features)
    rows = _mean_rows(config, table) + _set_rows(config, features)
    members = {mean.arm.name: len(mean.members) for mean in study.mean_arms(config)}
    prompts, seeds = len(table.prompts), table.seeds
    for row in rows:
        row |= {"prompts": row.get("prompts", prompts), "seeds": seeds}
        row["n"] = row["prompts"] * seeds * members.get(row["arm"], 1)
    generate.commit(pa.Table.from_pylist(rows), files.metrics)
    generate.commit(_to_long(table), files.root / PER_PROMPT)
    arms = [arm.to_dict() for arm in [*study.all_arms(config), *study.mean_arms(config)]]
    check = {name: getattr(images, name) for name in ("expected", "found", "missing", "duplicate")}
    versions = {package: version(package) for package in ("torch", "diffusers", "peft", "ray")}
    layout.write_json(
        files.arms, {"arms": arms, "cost": images.cost, "check": check, "command": command, "versions": versions}
    )
    return table


def read_table(config: Config) -> Table:
    """The table prompt by prompt that `measure` wrote; ValueError where it did not."""
    path = RunFiles(config.directory).root / PER_PROMPT
    if not path.exists():
        raise ValueError(f"{path} is missing: run `python -m pipelines evaluate` with the same configuration first")
    long = pq.read_table(path)
    arms, metrics = (list(dict.fromkeys(long[name].to_pylist())) for name in ("arm", "metric"))
    prompts = study.resolve_prompts(config.evaluate.prompts, "evaluate.prompts")
    grid = long["value"].to_numpy().reshape(len(metrics), len(arms), len(prompts))
    return Table(arms, prompts, config.evaluate.seeds, dict(zip(metrics, grid, strict=True)))


def _arrays(config: Config, images: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Score columns (arms, prompts, seeds) and features (arms, prompts, seeds, d), arms as in `all_arms`."""
    arms = [arm.arm.name for arm in study.all_arms(config)]
    place = {name: i for i, name in enumerate(arms)}
    shape = (len(arms), len(study.resolve_prompts(config.evaluate.prompts, "evaluate.prompts")), config.evaluate.seeds)
    at = (
        np.array([place[name] for name in images["arm"].to_pylist()]),
        images["prompt_id"].to_numpy(),
        images["seed_index"].to_numpy(),
    )
    scores = {}
    for name in images.column_names:
        if pa.types.is_floating(images.schema.field(name).type):
            scores[name] = np.full(shape, np.nan)
            scores[name][at] = images[name].to_numpy()
    flat = images["features"].combine_chunks()
    rows = np.asarray(flat.values if isinstance(flat, pa.FixedSizeListArray) else flat.flatten()).reshape(
        len(images), -1
    )
    features = np.full((*shape, rows.shape[1]), np.nan)
    features[at] = rows
    return scores, features


def _per_prompt(config: Config, scores: dict[str, np.ndarray], features: np.ndarray) -> Table:
    values = {name: column.mean(axis=2) for name, column in scores.items()}
    if ACCURACIES[0] in values:
        values["accuracy"] = (values[ACCURACIES[0]] + values[ACCURACIES[1]]) / 2
    for name, metric in (("vendi", vendi_score), ("pairwise", mean_pairwise_cosine_distance)):
        values[name] = np.array([[metric(rows) for rows in prompts] for prompts in features])
    arms = [arm.arm.name for arm in study.all_arms(config)]
    for mean in study.mean_arms(config):
        members = [arms.index(name) for name in mean.members]
        values = {name: np.vstack([column, column[members].mean(axis=0)]) for name, column in values.items()}
    arms += [mean.arm.name for mean in study.mean_arms(config)]
    prompts = study.resolve_prompts(config.evaluate.prompts, "evaluate.prompts")
    return Table(arms, prompts, config.evaluate.seeds, values)


def _mean_rows(config: Config, table: Table) -> list[dict[str, Any]]:
    """Means over prompts, with bootstrap intervals; over the prompts that a metric was measured on."""
    front, rows = config.front, []
    for metric, values in table.values.items():
        known = values[:, np.isfinite(values).all(axis=0)]
        if known.shape[1] < 2:
            continue
        result = bootstrap({metric: known, "again": known}, front.bootstrap, level=front.level, seed=front.seed)
        for a, arm in enumerate(table.arms):
            estimate = _row(arm, metric, result.mean[metric][a], *result.interval[metric][a])
            rows.append({**estimate, "prompts": known.shape[1]})
    return rows


def _set_rows(config: Config, features: np.ndarray) -> list[dict[str, Any]]:
    """Metrics of sets of images against the base's of the same prompts and seeds, with jackknife intervals."""
    arms = study.all_arms(config)
    base = features[next(i for i, arm in enumerate(arms) if arm.family == "base")]
    wanted = set_metrics(len(base), config.evaluate.seeds)
    prompts = len(base)
    kept = [np.delete(np.arange(prompts), p) for p in range(prompts)] if prompts > 2 else []
    found: dict[tuple[str, str], np.ndarray] = {}  # (arm, metric) -> all prompts, then each left out
    for arm, rows in zip(arms, features, strict=True):
        for metric, function in wanted.items():
            subsets = [np.arange(prompts), *kept]
            found[arm.arm.name, metric] = np.array([function(base[subset], rows[subset]) for subset in subsets])
    for mean in study.mean_arms(config):
        for metric in wanted:
            found[mean.arm.name, metric] = np.mean([found[member, metric] for member in mean.members], axis=0)
    return [_row(arm, metric, *_jackknife(values, config.front.level)) for (arm, metric), values in found.items()]


def set_metrics(prompts: int, seeds: int) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Metrics of (reference, generated), each (prompts, seeds, d), that so many images allow, less one prompt."""

    def flat(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, rows.shape[-1])

    def within(rows: np.ndarray) -> Any:
        return within_prompt_moments(flat(rows), np.repeat(np.arange(len(rows)), rows.shape[1]))

    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "spectral": lambda ref, gen: spectral_distance(flat(ref), flat(gen)),
        "log_spectral": lambda ref, gen: log_spectral_distance(flat(ref), flat(gen)),
        "frechet": lambda ref, gen: frechet_distance(flat(ref), flat(gen)),
        "collapse": lambda ref, gen: spectral_profile(within(ref), within(gen)).mean_log_ratio,
    }
    if (prompts - 1) * seeds > NEIGHBOURS:
        metrics["precision"] = lambda ref, gen: precision_recall(flat(ref), flat(gen), NEIGHBOURS)[0]
        metrics["recall"] = lambda ref, gen: precision_recall(flat(ref), flat(gen), NEIGHBOURS)[1]
    return metrics


def _jackknife(values: np.ndarray, level: float) -> tuple[float, float, float]:
    """Estimate and normal interval from all prompts (first) and each left out (Efron and Tibshirani 1993, (11.5))."""
    estimate, left_out = values[0], values[1:]
    if not len(left_out):
        return estimate, np.nan, np.nan
    n = len(left_out)
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return estimate, estimate - half, estimate + half


def _row(arm: str, metric: str, value: float, low: float, high: float) -> dict[str, Any]:
    return {"arm": arm, "metric": metric, "value": float(value), "low": float(low), "high": float(high)}


def _to_long(table: Table) -> pa.Table:
    metrics, arms, prompts = len(table.values), len(table.arms), len(table.prompts)
    return pa.table({
        "metric": np.repeat(list(table.values), arms * prompts),
        "arm": np.tile(np.repeat(table.arms, prompts), metrics),
        "prompt_id": np.tile(np.arange(prompts, dtype=np.int32), metrics * arms),
        "value": np.concatenate([values.ravel() for values in table.values.values()]),
    })  # fmt: skip
