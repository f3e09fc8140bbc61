"""Units of an evaluation's images, and what tells them and the images apart: a hash of all that they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from aig import adapters, models
from pipelines.config import Config, ConfigError, given
from pipelines.rewards import names
from pipelines.runs.directory import IMAGES_FORMAT, RunDir
from pipelines.study import arms as study_arms
from pipelines.study import models as study_models
from pipelines.study import statistics
from pipelines.study.prompts import EVALUATE, resolve_prompts


@dataclass(frozen=True)
class Unit:
    """One prompt with some of its seeds, for all arms; `name` is a hash of all that its images and scores depend on."""

    name: str
    prompt_id: int
    prompt: str
    seeds: tuple[int, ...]
    origins: tuple[str, ...]
    """Of each arm: see `origins`."""

    def row(self) -> dict[str, Any]:
        """The unit as a row of the dataset."""
        listed = {"seeds": list(self.seeds), "origins": list(self.origins)}
        return {"unit": self.name, "prompt_id": self.prompt_id, "prompt": self.prompt, **listed}

    @property
    def ids(self) -> list[str]:
        """The ids of its images, by arm and then by seed."""
        return [image_id(origin, self.prompt, seed) for origin in self.origins for seed in self.seeds]


def units(config: Config, model_defaults: models.Sampling) -> list[Unit]:
    """Every unit of the evaluation; the adapters have to be there, since their content is part of the names.

    So is that of the rewards and of the feature extractor, whose weights are downloaded where they are not here yet.
    """
    evaluate, made = config.evaluate, origins(config, model_defaults)
    columns = names.columns(config, study_arms.scored_rewards(config))
    shared = {
        "format": IMAGES_FORMAT,
        "arms": list(made.items()),
        "scores": [study_arms.scored_rewards(config), evaluate.gold, evaluate.features],
        "digests": names.scoring_digests(config, columns),
    }
    if columns.sums or config.rewards.define:  # else the names say it all
        shared["columns"] = [columns.to_json(), statistics.of_sums(config)]
    found = []
    for prompt_id, prompt in enumerate(resolve_prompts(config, EVALUATE)):
        for first in range(0, evaluate.seeds, evaluate.group):
            seeds = tuple(range(first, min(first + evaluate.group, evaluate.seeds)))
            content = {**shared, "prompt_id": prompt_id, "path": has_path(config, prompt_id)}
            name = _hash({**content, "prompt": prompt, "seeds": seeds})
            found.append(Unit(name, prompt_id, prompt, seeds, tuple(made.values())))
    return found


def origins(config: Config, model_defaults: models.Sampling) -> dict[str, str]:
    """By arm a hash of what its images come from beside their prompt and seed index: the content of the model and of
    the adapter, dtype, size, sampling, run seed, and what the arm does."""
    drawing = {
        "model": study_models.fingerprint(config.model.name, config.model.revision, config.model.variant),
        "dtype": config.model.dtype,
        "size": [config.model.height, config.model.width],
        "sampling": asdict(replace(sampling_of(config, model_defaults), max_rows=1)),
        "run_seed": config.run.seed,
    }
    arms = [arm.arm for arm in study_arms.all_arms(config)]
    adapter = {name: adapter_digest(config, name) for name in dict.fromkeys(arm.adapter for arm in arms)}
    return {arm.name: _hash({**drawing, "arm": arm.id, "adapter": adapter[arm.adapter]}) for arm in arms}


def image_id(origin: str, prompt: str, seed: int) -> str:
    """An image's id, in this run and among those of all runs: 16 hex digits, of what its arm's images come from
    (`origins`), its prompt and its seed index."""
    return _hash([origin, prompt, seed])


def has_path(config: Config, prompt_id: int) -> bool:
    """Whether the distance to the base is measured on this prompt."""
    return config.evaluate.path_prompts is None or prompt_id < config.evaluate.path_prompts


def adapter_digest(config: Config, name: str | None) -> str | None:
    """`aig.adapters.digest` of an adapter of the run; ConfigError where it was not trained."""
    if name is None:
        return None
    folder = RunDir.of(config).adapters / name
    try:
        adapters.weights_file(folder)
    except ValueError:
        raise ConfigError(
            f"adapter {name!r} is not trained: run `python -m pipelines sweep` with the same configuration first"
        ) from None
    with given():
        return adapters.digest(folder)


def sampling_of(config: Config, defaults: models.Sampling) -> models.Sampling:
    """The sampling of an evaluation's images."""
    sampling = study_models.resolve_sampling(config, defaults)
    return replace(sampling, max_rows=config.evaluate.max_rows or sampling.max_rows)


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
