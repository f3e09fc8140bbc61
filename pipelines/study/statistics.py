"""The base model's scores, by which the terms of weighted sums are z-scored: measured once and kept in the run.

They come from the validations' prompts and noise, so what is trained on owes nothing to the images that judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch

from aig.sampler import Arm, sample_arms, to_uint8
from pipelines import config as configuration
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster, actor
from pipelines.config import Config, ConfigError
from pipelines.rewards import names as reward_names
from pipelines.rewards.names import Columns, Statistics
from pipelines.rewards.scores import Scores
from pipelines.runs.directory import RunDir
from pipelines.show.program import command_line
from pipelines.study import models
from pipelines.study.prompts import validation_prompts, validation_seeds


def columns(config: Config) -> Columns:
    """The columns of everything that the run scores or trains on."""
    return reward_names.columns(config, [*reward_names.scored(config), config.train.reward])


def sum_statistics(config: Config) -> Statistics | None:
    """`read` for `Scores`; None if there is no sum to z-score."""
    return read(config) if columns(config).sums else None


def read(config: Config) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the base model's scores, by column; ConfigError if a sum's are missing."""
    known = _file(config).get("components", {})
    missing = [name for name in columns(config).normalized if name not in known]
    if missing:
        path = RunDir.of(config).reward_statistics
        raise ConfigError(
            f"{path} has no statistics of {', '.join(missing)}: run `{command_line('sweep')}` with the same "
            "configuration first"
        )
    return {name: (row["mean"], row["std"]) for name, row in known.items()}


def ensure(config: Config, connect: Callable[[], Cluster]) -> None:
    """Measure what `read` lacks, or has of another model or other weights, in a Ray task of a training worker's size.

    `connect` connects to Ray, and is called only if something is missing. ValueError if a reward gives all the base
    model's images one score.
    """
    scored = columns(config)
    if not scored.normalized:
        return
    file, digests = _file(config), reward_names.digests(scored.parts[name] for name in scored.normalized)
    known, measured_on = file.get("components", {}), _measured_on(config)
    current = {name: row for name, row in known.items() if row.get("digest") == digests.get(name, "")}
    if any(file.get(key) != value for key, value in measured_on.items()):
        current = {}
    missing = [name for name in scored.normalized if name not in current]
    if not missing:
        return
    cluster, need = connect(), resources.statistics(config)
    cluster.room(need)
    for name in set(missing) & set(known):
        print(f"{name} was measured by an earlier version, or of another model or other weights: it is measured anew.")
    images = len(measured_on["prompts"]) * config.train.validate_seeds
    print(f"Measuring {', '.join(missing)} on {images} images of the base model, to z-score weighted sums.")
    task = ray.remote(_task).options(max_retries=max(0, config.train.max_failures), **actor(need.one))
    rows = ray.get(task.remote(configuration.to_dict(config), missing))
    for name, row in rows.items():
        print(f"  {name}: mean {row['mean']:.4g}, standard deviation {row['std']:.4g}")
        current[name] = {**row, "digest": digests[name]}
    run = RunDir.of(config)
    run.write_json(run.reward_statistics, {**measured_on, "components": current})


def _task(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    config = configuration.from_dict(settings)
    torch.set_num_threads(config.train.threads)
    return measure(config, names)


@torch.no_grad()
def measure(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation (ddof = 1) of these columns over the base model's images of the validation prompts.

    Images and scores are those of a report: rounded to 8 bits, scored in float32.
    """
    model = models.load_model(config)
    parts = {name: columns(config).parts[name] for name in names}
    sampling = models.rollout_sampling(config, model.defaults)
    scores = Scores(Columns(parts, {}), device=model.device)
    values: dict[str, list[float]] = {name: [] for name in names}
    seeds = validation_seeds(config)
    for prompt in validation_prompts(config):
        texts = [prompt] * len(seeds)
        samples = sample_arms(model, texts, seeds, [Arm("base", None, 1.0, "base")], config.run.seed, sampling)
        images = model.decode(samples.latents["base"])
        for name, column in scores(to_uint8(images).permute(0, 3, 1, 2), texts).items():
            if not column.isfinite().all():
                seed = int((~column.isfinite()).nonzero()[0])
                raise FloatingPointError(
                    f"the score of {name} is {column[seed].item()} for the base model's image of {prompt!r} with seed "
                    f"{seed}: it cannot be z-scored; leave {name} out of the sum"
                )
            values[name] += column.tolist()
    return {
        name: {**_moments(name, column), "n": len(column), "reward": asdict(parts[name])}
        for name, column in values.items()
    }


def _moments(name: str, values: Sequence[float]) -> dict[str, float]:
    column = torch.tensor(values, dtype=torch.float64)
    mean, std = float(column.mean()), float(column.std())
    if not std > 1e-6 * abs(mean):
        raise ValueError(
            f"{name} scores all {len(values)} images of the base model {mean:g}: a constant cannot be z-scored; leave "
            "it out of the sum, or raise train.validate_prompts"
        )
    return {"mean": mean, "std": std}


def _file(config: Config) -> dict[str, Any]:
    run = RunDir.of(config)
    return run.read_json(run.reward_statistics) if run.reward_statistics.exists() else {}


def _measured_on(config: Config) -> dict[str, Any]:
    model = models.fingerprint(config.model.name, config.model.revision, config.model.variant)
    return {"model": model, "prompts": validation_prompts(config), "seeds": validation_seeds(config)}
