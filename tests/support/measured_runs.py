"""Runs whose images were never drawn: a directory with made-up scores and features, for the tests of measuring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from aig import adapters
from aig.models import TinyModel
from pipelines import config as configuration
from pipelines.cluster.connect import Cluster
from pipelines.config import Config
from pipelines.config.values import slug
from pipelines.evaluate import generate
from pipelines.evaluate import images as dataset
from pipelines.measure import measure
from pipelines.measure.table import Table
from pipelines.runs import identity as runs_identity
from pipelines.runs.directory import IMAGES_FORMAT, RunDir
from pipelines.study.arms import StudyArm
from pipelines.study.resolved import resolve, resolve_images

DIMENSION = 6
RED, BRIGHT = "pipeline_toys:red", "pipeline_toys:bright"
TUNED = "pipeline_toys-red-k1-kl0-s0"

Change = Callable[[str, dict[str, np.ndarray]], None]
"""Spoils the columns of one arm's images, given its name."""
Picture = Callable[[StudyArm, int, int], bytes]
"""An arm's image of a prompt and a seed, as PNG."""


def columns(arm: StudyArm, prompt_id: int, seeds: tuple[int, ...], gain: float) -> dict[str, np.ndarray]:
    """Scores and features of one arm's images of a prompt: the more tuned, the more reward and the less spread."""
    noise = np.random.default_rng([prompt_id, *seeds]).normal(size=(len(seeds), DIMENSION))
    own = np.random.default_rng([prompt_id, len(arm.arm.name)]).normal(size=(len(seeds), DIMENSION))
    tuned = {"base": 0.0, "tuned": 1.0}.get(arm.family, 0.5) * gain
    centre = np.random.default_rng(prompt_id).normal(size=DIMENSION)
    features = 3 + centre + (1 - 0.6 * tuned) * noise + 0.2 * tuned * own
    reward = centre[0] + noise[:, 0] + 2 * tuned
    return {
        slug(RED): reward, slug(BRIGHT): reward / 2, "gold": -reward, "pixel_std": 0.2 + 0.01 * np.abs(noise[:, 1]),
        "path": np.full(len(seeds), tuned if prompt_id < 2 else np.nan), "features": features,
    }  # fmt: skip


def settings(storage: Path | str, *more: str) -> Config:
    """A run of five arms on six prompts and four seeds, in two files a prompt."""
    return configuration.load("smoke", None, [*given(storage), *more])


def given(storage: Path | str) -> list[str]:
    """What it differs in from the preset."""
    return [
        f"run.storage={storage}", f"train.reward={RED}", f"sweep.rewards=['{RED}']", "sweep.kl_weights=[0]",
        f"evaluate.rewards=['{RED}', '{BRIGHT}']", f"evaluate.gold={BRIGHT}", "evaluate.features=pipeline_toys:pixels",
        "evaluate.prompts=6", "evaluate.seeds=4", "evaluate.path_prompts=2", "measure.subsets=8",
    ]  # fmt: skip


def build(found: Config, change: Change | None = None, gain: float = 1.0, picture: Picture | None = None) -> Config:
    """Write the run's directory, with all that drawing its images would have left; `gain`: how far tuned arms go.

    picture: draws the images themselves, which measuring does without.
    """
    files = RunDir.of(found)
    runs_identity.claim_directory(found)
    for name in {arm.arm.adapter for arm in resolve(found).arms if arm.arm.adapter}:
        (files.adapters / name).mkdir(parents=True)
        save_file({name: torch.zeros(1)}, files.adapters / name / adapters.WEIGHTS)
    study = resolve_images(found, TinyModel.defaults)
    for unit in generate.units(study):
        parts = []
        for arm, origin in zip(study.arms, unit.origins, strict=True):
            made = columns(arm, unit.prompt_id, unit.seeds, gain)
            if change is not None:
                change(arm.arm.name, made)
            features = made.pop("features").astype(np.float32)
            listed = [arm] * len(unit.seeds), [origin] * len(unit.seeds)
            identity = generate.identity_columns(*listed, unit.prompt_id, unit.prompt, unit.seeds)
            parts.append(pa.table({
                **identity,
                **{name: pa.array(values, pa.float32()) for name, values in made.items()},
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), DIMENSION),
                **({"image": [picture(arm, unit.prompt_id, seed) for seed in unit.seeds]} if picture else {}),
            }))  # fmt: skip
        about = {"cost": json.dumps({"predictions": 5, "separate": 8, "published": 10}), "format": str(IMAGES_FORMAT)}
        table = pa.concat_tables(parts).replace_schema_metadata(about)
        files.write_parquet(files.images / generate.PART.format(unit=unit.name), table)
    return found


def refuse_ray() -> Cluster:
    raise AssertionError("there is nothing here that needs Ray")


def measured(found: Config, connect: Callable[[], Cluster] = refuse_ray) -> Table:
    """Measure the images of a run's directory."""
    study = resolve_images(found, TinyModel.defaults)
    return measure.measure(study, dataset.read(study, without=measure.UNNEEDED), "a command", connect)
