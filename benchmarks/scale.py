"""The evaluation's real plan with a sleep in the place of the model: what Ray, the actors and the driver cost at scale.

Generators sleep instead of drawing, and hand out prepared images; scorers read, score and write them with a reward and
features that cost nothing. So nothing but the plan itself can keep the images from coming as fast as the sleep allows.

    python -m benchmarks.scale              # 10^5 images, four generators
    python -m benchmarks.scale 10000
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from torch import Tensor

from aig import models
from benchmarks.pipeline import run_configuration
from pipelines import config as configuration
from pipelines.cluster import connect
from pipelines.evaluate import generate
from pipelines.evaluate import images as dataset
from pipelines.evaluate.pixels import PIXEL_STD
from pipelines.evaluate.scorers import to_png
from pipelines.runs.directory import RunDir
from pipelines.study.arms import drawn_arms, studies
from pipelines.study.resolved import Drawable, resolve_images
from pipelines.study.trials import Trials

IMAGES = 100_000
GENERATORS, SCORERS = 4, 2
SEEDS, PICTURES = 8, 64
FEATURES = 768  # as CLIP's and DINOv2's base models have


class Sleeper(generate.Generator):
    """A generator that sleeps for `seconds` a unit, and gives out prepared images of noise."""

    seconds = 1.0

    def __init__(self, study: Drawable) -> None:
        self.config, self.arms = study.config, study.arms
        draws = np.random.default_rng(0)
        self.pictures = [to_png(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(PICTURES)]

    def draw(self, rows: list[dict[str, Any]], measured: bool) -> list[dict[str, Any]]:
        time.sleep(self.seconds * len(rows))
        found = []
        for row in rows:
            count = len(self.arms) * len(row["seeds"])
            images = [self.pictures[(row["prompt_id"] + i) % PICTURES] for i in range(count)]
            other = {PIXEL_STD: [0.3] * count, "path": [math.nan] * count, "cost": '{"predictions": 1}'}
            found.append({**row, "image": images, **other, "predictions": count})
        return found


class Napper(Sleeper):
    """The same to try it out."""

    seconds = 0.01


def reward(images: Tensor, prompts: list[str]) -> Tensor:
    """The mean of the pixels (B,)."""
    return images.flatten(1).mean(1)


def features(images: Tensor) -> Tensor:
    """The first pixels (B, 768)."""
    return images.flatten(1)[:, :FEATURES]


features.dimension = FEATURES  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Figures:
    """What was measured; sizes in bytes, times in seconds."""

    images: int
    units: int
    share: float
    """The rate from the first group of images to the last, over the rate that the sleep allows."""
    seconds: float
    """From the first group to the last."""
    cpu_a_unit: float
    """CPU seconds of all processes a group."""
    driver: tuple[int, int, int]
    """The driver's resident memory when a tenth, a half and all of the groups were there."""
    disk: int
    """The files of images."""


def simulate(
    storage: Path, images: int = IMAGES, generator: type[Sleeper] = Sleeper, overrides: Sequence[str] = ()
) -> Figures:
    """Run the plan over so many images on a Ray that is started for it, and check that each is there once."""
    found = simulation(storage, images, overrides)
    study = resolve_images(found, models.load(found.model.name).defaults)
    folder, total = RunDir.of(found).images, len(generate.units(study))
    memory: dict[int, int] = {}  # groups that are there -> resident bytes
    over = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not over.wait(0.5):
            done = sum(1 for _ in folder.glob("part-*.parquet"))
            memory[done] = max(memory.get(done, 0), process.memory_info().rss)

    with connect.connected(found.ray) as connection:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        before = _cpu_seconds(family)
        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            generate.generate(study, lambda: connection, generator=generator)
        finally:
            over.set()
            watching.join()
        used = _cpu_seconds([psutil.Process(), *psutil.Process().children(recursive=True)]) - before
    read = dataset.read(study, without=["image", "features"])
    assert read.missing == read.duplicate == 0
    files = sorted((path.stat().st_mtime, path.stat().st_size) for path in folder.glob("part-*.parquet"))
    seconds = files[-1][0] - files[0][0]
    share = (len(files) - 1) / seconds * generator.seconds / found.evaluate.generators
    at = [max(rss for done, rss in memory.items() if done <= max(1, total * tenths // 10)) for tenths in (1, 5, 10)]
    disk = sum(size for _, size in files)
    return Figures(read.found, len(files), share, seconds, used / len(files), (at[0], at[1], at[2]), disk)


def simulation(storage: Path, images: int, more: Sequence[str] = ()) -> configuration.Config:
    """The demo's arms over as many prompts of their own as give so many images, with the simulation's reward."""
    counted = Trials.of(run_configuration(storage / "counted", GENERATORS, more))
    arms = len(drawn_arms(studies(counted)))
    prompts = storage / "prompts.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(max(2, images // (arms * SEEDS)))))
    overrides = [
        f"evaluate.prompts={prompts}", f"evaluate.seeds={SEEDS}", f"evaluate.group={SEEDS}",
        "evaluate.rewards=['benchmarks.scale:reward']", "evaluate.gold=null", "evaluate.groups_at_once=1",
        "evaluate.features=benchmarks.scale:features", f"evaluate.scorers={SCORERS}", "evaluate.generator_cpus=0.5",
        "evaluate.scorer_cpus=0.5", "train.reward=benchmarks.scale:reward", "sweep.rewards=['benchmarks.scale:reward']",
    ]  # fmt: skip
    return run_configuration(storage, GENERATORS, [*overrides, *more])


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", type=int, nargs="?", default=IMAGES)
    with tempfile.TemporaryDirectory() as storage:
        figures = simulate(Path(storage), parser.parse_args(argv).images)
    print(json.dumps(figures.__dict__, indent=1))


if __name__ == "__main__":
    main()
