"""The images of every arm: a Ray Data plan from units through generators and scorers into parquet files.

A unit is one prompt with some of its seeds, for all arms at once, so that arms share their common trajectories. Its
file is named by a hash of everything that its content depends on and appears whole, so the same command resumes, and
no record of what is done exists that could disagree with the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from aig import adapters
from aig.sampler import Grid, sample_arms, to_uint8
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster, actor
from pipelines.config import ConfigError
from pipelines.evaluate import failures, pools, streaming
from pipelines.evaluate.attempt import attempt
from pipelines.evaluate.images import OTHERWISE
from pipelines.evaluate.pixels import PIXEL_STD, pixel_std
from pipelines.evaluate.scorers import PART, Pictures, scoring_device, to_png
from pipelines.evaluate.units import Unit, has_path, image_id, units
from pipelines.rewards import names
from pipelines.rewards.scores import Scores
from pipelines.runs.directory import IMAGES_FORMAT
from pipelines.show.bar import Bar
from pipelines.study import models, rivals
from pipelines.study.arms import StudyArm
from pipelines.study.resolved import Drawable


def generate(
    study: Drawable, connect: Callable[[], Cluster], memory: int = 0, generator: type[Generator] | None = None
) -> int:
    """Make and score every missing image; returns how many units were tried.

    `connect` connects to Ray, and is called only if something is missing. memory: bytes of a node that a generator
    takes, if the configuration leaves their number to the cluster. generator: another class in the place of
    `Generator`. A unit that fails twice is kept in `failures.parquet`. Raises ConfigError if the actors need more than
    the cluster has, and EvaluationError if everything fails.
    """
    files = study.directory
    files.pull(files.images)
    wanted = units(study)
    _drop_others(study, {unit.name for unit in wanted})
    missing = [unit for unit in wanted if not (files.images / PART.format(unit=unit.name)).exists()]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} groups of images are there already.")
    if missing:
        pool = pools.generators(study.config, connect(), memory)
        plan, arms = _plan(study, missing, pool, generator or Generator), len(study.arms)
        total, left = (arms * sum(len(unit.seeds) for unit in some) for some in (wanted, missing))
        failed = failures.Failures(files, missing, study.config.evaluate.failures_in_a_row)
        streaming.run(plan, Bar("images", total, total - left, arms), failed)
        failed.close()
    return len(missing)


def _plan(study: Drawable, missing: Sequence[Unit], pool: pools.Pool, generator: type[Generator]) -> ray.data.Dataset:
    evaluate = study.config.evaluate
    streaming.quiet_data()
    rows = [unit.row() for unit in missing]
    drawn = streaming.rows(rows).map_batches(
        generator,
        fn_constructor_kwargs={"study": study},
        compute=pool.strategy(len(rows)),
        **actor(resources.generator(evaluate, pool.memory).one),
        batch_size=min(evaluate.groups_at_once, -(-len(rows) // pool.start)),
        batch_format="pyarrow",
    )
    plan = streaming.scored(drawn, Evaluation(study), study.config, len(rows))
    plan.set_name("images")  # its name in the dashboard
    return plan


class Generator:
    """Draws all arms for some units at once: rows of units in, rows of units with lists of images out."""

    def __init__(self, study: Drawable) -> None:
        self.config, self.sampling, self.arms = study.config, study.sampling, study.arms
        torch.set_num_threads(self.config.evaluate.threads)
        files = study.directory
        files.pull(files.adapters)
        self.model = models.load_model(self.config)
        self.has_kl = Grid(self.model, self.sampling).has_path_kl
        for name in dict.fromkeys(name for arm in self.arms for name in rivals.saved(arm.arm)):
            adapters.load(self.model.denoiser, files.adapters / name, name)
        for name in dict.fromkeys(arm.arm.adapter for arm in self.arms):
            if name is not None and rivals.is_soup(name):
                adapters.soup(self.model.denoiser, name, rivals.averaged(name))

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        drawn, _ = attempt(lambda: self.units(rows))
        if drawn is None:
            drawn = [drawn_row for row in rows for drawn_row in self.again(row)]
        return pa.Table.from_pylist(drawn, schema=UNIT_SCHEMA)

    def again(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """A unit by itself, after it failed; if it does so again, its row says why."""
        drawn, reason = attempt(lambda: self.units([row]))
        return [{**row, "error": reason}] if drawn is None else drawn

    def units(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The units' rows with their images."""
        drawn = []
        for measured in (True, False):
            alike = [row for row in rows if has_path(self.config, row["prompt_id"]) == measured]
            drawn += self.draw(alike, measured) if alike else []
        return drawn

    @torch.no_grad()
    def draw(self, rows: list[dict[str, Any]], measured: bool) -> list[dict[str, Any]]:
        """The units' rows with their images and, if `measured`, distances to the base, by arm and then by seed."""
        arms = [arm.arm for arm in self.arms]
        prompts = [row["prompt"] for row in rows for _ in row["seeds"]]
        seeds = [seed for row in rows for seed in row["seeds"]]
        samples = sample_arms(
            self.model, prompts, seeds, arms, self.config.run.seed, self.sampling, measure_path=measured
        )
        pixels, spread = {}, {}
        for arm in arms:
            decoded = self.model.decode(samples.latents[arm.name])
            pixels[arm.name], spread[arm.name] = to_uint8(decoded).numpy(), pixel_std(decoded).tolist()
        cost = json.dumps(samples.cost.counts())
        columns = {"path": samples.path} | ({"kl_to_base": samples.kl} if self.has_kl else {})
        drawn, first = [], 0
        for row in rows:
            own = slice(first, first + len(row["seeds"]))
            first = own.stop
            images = [to_png(image) for arm in arms for image in pixels[arm.name][own]]
            std = [x for arm in arms for x in spread[arm.name][own]]
            unknown = [math.nan] * len(images)
            distances = {
                name: [x for arm in arms for x in column[arm.name][own].tolist()] if measured else unknown
                for name, column in columns.items()
            }
            made = samples.cost.predictions * len(row["seeds"])
            drawn.append({**row, "image": images, PIXEL_STD: std, **distances, "cost": cost, "predictions": made})
        return drawn


UNIT_SCHEMA = pa.schema({
    "unit": pa.string(), "prompt_id": pa.int32(), "prompt": pa.string(), "seeds": pa.list_(pa.int32()),
    "origins": pa.list_(pa.string()),
    "image": pa.list_(pa.binary()), PIXEL_STD: pa.list_(pa.float32()), "path": pa.list_(pa.float32()),
    "kl_to_base": pa.list_(pa.float32()),
    "cost": pa.string(), "predictions": pa.int64(), "error": pa.string(),
})  # fmt: skip
DISTANCES = ("path", "kl_to_base")  # eps_mse; nats, where sampling is stochastic


class Evaluation:
    """The scorers' job in an evaluation: images from the generators.

    An image without a score is kept with a warning and marks its arm as broken; a unit that makes a reward raise fails.
    """

    warns = keeps_failures = True

    def __init__(self, study: Drawable) -> None:
        self.study, evaluate = study, study.config.evaluate
        self.threads, self.batch = evaluate.threads, evaluate.score_batch

    def save(self, unit: str, table: pa.Table) -> None:
        run = self.study.directory
        run.write_parquet(run.images / PART.format(unit=unit), table)

    def scores(self) -> Scores:
        study, config, run = self.study, self.study.config, self.study.directory
        if run.mirror is not None:  # which may be the first of this run on the scorer's node
            run.root.mkdir(parents=True, exist_ok=True)
        gold, extractor = names.gold(config), config.evaluate.features
        return Scores(study.columns, study.statistics, gold, extractor, scoring_device())

    def pictures(self, row: Mapping[str, Any]) -> Pictures:
        arms = [arm for arm in self.study.arms for _ in row["seeds"]]
        made = [origin for origin in row["origins"] for _ in row["seeds"]]
        columns = identity_columns(arms, made, row["prompt_id"], row["prompt"], [*row["seeds"]] * len(self.study.arms))
        columns |= {"image": pa.array(row["image"], pa.binary())}
        measured = [name for name in (PIXEL_STD, *DISTANCES) if row[name] is not None]
        columns |= {name: pa.array(row[name], pa.float32()) for name in measured}
        prompts = [row["prompt"]] * len(arms)
        about = {"cost": row["cost"], "format": str(IMAGES_FORMAT)}
        return Pictures(columns["id"].to_pylist(), row["image"], prompts, columns, about)


def identity_columns(
    arms: Sequence[StudyArm], origins: Sequence[str], prompt_id: int, prompt: str, seeds: Sequence[int]
) -> dict[str, pa.Array]:
    """The columns that say which image a row is, from the arm, origin and seed index of each."""
    ids = [image_id(origin, prompt, seed) for origin, seed in zip(origins, seeds, strict=True)]
    return {
        "id": pa.array(ids),
        "arm": pa.array([arm.arm.name for arm in arms]),
        "arm_id": pa.array([arm.id for arm in arms]),
        "prompt_id": pa.array([prompt_id] * len(arms), pa.int32()),
        "prompt": pa.array([prompt] * len(arms)),
        "seed_index": pa.array(seeds, pa.int32()),
    }


def _drop_others(study: Drawable, wanted: set[str]) -> None:
    """Remove units that this run no longer makes, and what a killed writer left.

    ConfigError, before anything is removed, if the folder holds images of another run.
    """
    run, folder = study.directory, study.directory.images
    if not folder.is_dir():
        return
    others = [path for path in folder.glob("part-*.parquet") if path.stem.removeprefix("part-") not in wanted]
    if others:
        _check_ours(study, others)
        print(f"Removing {len(others)} groups of images {OTHERWISE}: they are made anew.")
    for path in folder.glob(".part-*.part"):
        path.unlink()
    for path in others:
        run.forget(path)


def _check_ours(study: Drawable, paths: Sequence[Path]) -> None:
    """ConfigError if a unit's file has an arm or a prompt that this run does not have."""
    ours = {*(arm.arm.name for arm in study.arms), *study.prompts}
    for path in paths:
        try:
            table = pq.read_table(path, columns=["arm", "prompt"])
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{path} is no file of images ({error}): move it away, it is not this run's") from error
        strange = [name for column in ("arm", "prompt") for name in table[column].to_pylist() if name not in ours]
        if strange:
            raise ConfigError(
                f"{path} holds images of another run ({strange[0]!r} is nothing of this one's): move the images folder "
                "away, or choose another run.name"
            )
