"""The base model's scores, by which the terms of a weighted sum are z-scored: measured once, and kept in the run.

They are those of the validations' prompts and noise: the scale of what is trained on owes nothing to the images that
judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
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
from pipelines.study import models
from pipelines.study.prompts import validation_prompts, validation_seeds


def wanted(config: Config) -> Columns:
    """The columns of everything that the run scores or trains on."""
    return reward_names.columns(config, [*reward_names.scored(config), config.train.reward])


def read(config: Config) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the base model's scores, by column; ConfigError where a sum's are missing."""
    path, columns = RunDir.of(config).reward_statistics, wanted(config)
    found = _components(config)
    lacking = [name for name in columns.normalized if name not in found]
    if lacking:
        raise ConfigError(
            f"{path} has no statistics of {', '.join(lacking)}: run `python -m pipelines sweep` with the same "
            "configuration first"
        )
    return {name: (row["mean"], row["std"]) for name, row in found.items()}


def ensure(config: Config, connect: Callable[[], Cluster]) -> None:
    """Measure what `read` lacks, or has of another model or of other weights of a reward, in a Ray task of a training
    worker's size.

    `connect` connects to Ray, and is called where something is lacking.
    ValueError where a reward gives all the base model's images one score.
    """
    columns = wanted(config)
    if not columns.normalized:
        return
    known, digests = _current(config), _digests(columns)
    lacking = [name for name in columns.normalized if name not in known]
    if not lacking:
        return
    cluster, train = connect(), config.train
    need = resources.statistics(config)
    cluster.room(need)
    for name in set(lacking) & set(_components(config)):
        print(f"{name} was measured by an earlier version, or of another model or other weights: it is measured anew.")
    print(f"Measuring {', '.join(lacking)} on {_images(config)} images of the base model, to z-score weighted sums.")
    task = ray.remote(_task).options(max_retries=max(0, train.max_failures), **actor(need.one))
    found = ray.get(task.remote(configuration.to_dict(config), lacking))
    for name, row in found.items():
        print(f"  {name}: mean {row['mean']:.4g}, standard deviation {row['std']:.4g}")
    found = {name: {**row, "digest": digests[name]} for name, row in found.items()}
    run = RunDir.of(config)
    run.write_json(run.reward_statistics, {**_measured_on(config), "components": known | found})


def _task(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    asked = configuration.from_dict(config)
    torch.set_num_threads(asked.train.threads)
    return measure(asked, names)


@torch.no_grad()
def measure(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation (ddof = 1) of these columns over the base model's images of the validation prompts.

    Images and scores are those that a report would have: rounded to 8 bits, scored in float32.
    """
    model = models.load_model(config)
    settings, columns = config.train, wanted(config)
    sampling = models.resolve_sampling(config, model.defaults)
    sampling = replace(sampling, max_rows=settings.rollout_batch or sampling.max_rows)
    scores = Scores(Columns({name: columns.parts[name] for name in names}, {}), device=model.device)
    found: dict[str, list[float]] = {name: [] for name in names}
    seeds = validation_seeds(config)
    for prompt in validation_prompts(config):
        texts = [prompt] * len(seeds)
        samples = sample_arms(model, texts, seeds, [Arm("base", None, 1.0, "base")], config.run.seed, sampling)
        images = model.decode(samples.latents["base"])
        for name, values in scores(to_uint8(images).permute(0, 3, 1, 2), texts).items():
            if not values.isfinite().all():
                seed = int((~values.isfinite()).nonzero()[0])
                raise FloatingPointError(
                    f"the score of {name} is {values[seed].item()} for the base model's image of {prompt!r} with seed "
                    f"{seed}: it cannot be z-scored; leave {name} out of the sum"
                )
            found[name] += values.tolist()
    return {
        name: {**_moments(name, values), "n": len(values), "reward": asdict(columns.parts[name])}
        for name, values in found.items()
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


def _components(config: Config) -> dict[str, Any]:
    run = RunDir.of(config)
    path = run.reward_statistics
    return run.read_json(path)["components"] if path.exists() else {}


def _measured_on(config: Config) -> dict[str, Any]:
    model = models.fingerprint(config.model.name, config.model.revision, config.model.variant)
    return {"model": model, "prompts": validation_prompts(config), "seeds": validation_seeds(config)}


def _current(config: Config) -> dict[str, Any]:
    """Of `_components` those that were measured on this model, and with the weights that the rewards have here."""
    run = RunDir.of(config)
    path = run.reward_statistics
    if not path.exists():
        return {}
    file, asked = run.read_json(path), _measured_on(config)
    if any(file.get(key) != value for key, value in asked.items()):
        return {}
    digests = _digests(wanted(config))
    return {name: row for name, row in file["components"].items() if row.get("digest") == digests.get(name, "")}


def _digests(columns: Columns) -> dict[str, str]:
    return reward_names.digests(columns.parts[name] for name in columns.normalized)


def _images(config: Config) -> int:
    return len(validation_prompts(config)) * config.train.validate_seeds


def of_sums(config: Config) -> Statistics | None:
    """What `Scores` needs of `read`: None where there is no sum to z-score."""
    return read(config) if wanted(config).sums else None
