"""Units of an evaluation's images, and their names and ids: hashes of all that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.config import Config
from pipelines.rewards import names
from pipelines.runs.directory import IMAGES_FORMAT
from pipelines.study.resolved import Drawable, hashed


@dataclass(frozen=True)
class Unit:
    """One prompt with some of its seeds, for all arms; the name is a hash of all that images and scores depend on."""

    name: str
    prompt_id: int
    prompt: str
    seeds: tuple[int, ...]
    origins: tuple[str, ...]
    """Of each arm: see `Drawable.origins`."""

    def row(self) -> dict[str, Any]:
        """The unit as a row of the dataset."""
        listed = {"seeds": list(self.seeds), "origins": list(self.origins)}
        return {"unit": self.name, "prompt_id": self.prompt_id, "prompt": self.prompt, **listed}

    @property
    def ids(self) -> list[str]:
        """The ids of its images, by arm and then by seed."""
        return [image_id(origin, self.prompt, seed) for origin in self.origins for seed in self.seeds]


def units(study: Drawable) -> list[Unit]:
    """Every unit of the evaluation; downloads weights of rewards and features, whose content is part of the names."""
    config, evaluate = study.config, study.config.evaluate
    shared = {
        "format": IMAGES_FORMAT,
        "arms": list(study.origins.items()),
        "scores": [names.scored(config), evaluate.gold, evaluate.features],
        "digests": names.scoring_digests(config, study.columns),
    }
    if study.columns.sums or config.rewards.define:  # else the names say it all
        shared["columns"] = [study.columns.to_json(), study.statistics]
    origins = tuple(study.origins.values())
    made = []
    for prompt_id, prompt in enumerate(study.prompts):
        for first in range(0, evaluate.seeds, evaluate.group):
            seeds = tuple(range(first, min(first + evaluate.group, evaluate.seeds)))
            content = {**shared, "prompt_id": prompt_id, "path": has_path(config, prompt_id)}
            made.append(Unit(hashed({**content, "prompt": prompt, "seeds": seeds}), prompt_id, prompt, seeds, origins))
    return made


def image_id(origin: str, prompt: str, seed: int) -> str:
    """An image's id, unique among all runs: 16 hex digits of its arm's origin (`Drawable.origins`), prompt and seed."""
    return hashed([origin, prompt, seed])


def has_path(config: Config, prompt_id: int) -> bool:
    """Whether the distance to the base is measured on this prompt."""
    return config.evaluate.path_prompts is None or prompt_id < config.evaluate.path_prompts
