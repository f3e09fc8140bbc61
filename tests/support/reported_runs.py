"""Runs up to their report, with the files that the pipeline's own writers make of made-up images."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import measured_runs
import numpy as np
from measured_runs import BRIGHT, RED, Change
from PIL import Image

from aig.models import TinyModel
from pipelines.config import Config
from pipelines.config.values import slug
from pipelines.evaluate import images
from pipelines.front import front
from pipelines.measure import measure
from pipelines.runs.directory import RunDir
from pipelines.study.arms import StudyArm
from pipelines.study.resolved import resolve, resolve_images
from pipelines.study.trainings import adapter_key, trainings
from pipelines.train.worker import write_curve

PROXY, HELD_OUT = slug(RED), slug(BRIGHT)
SIZE = 16
SWEPT = (
    "sweep.kl_weights=[0, 1, 10]", "evaluate.schedules=[linear, 'power:2', 'constant:0.5']",
    "evaluate.kl_schedules=[linear]", "evaluate.seeds=3", "front.bootstrap=200",
)  # fmt: skip


def build(storage: Path, *more: str, change: Change | None = None) -> Config:
    """A run with all that a report is made of: AIG keeps more of the diversity than the other families."""
    config = measured_runs.settings(storage, *SWEPT, *more)
    measured_runs.build(config, change or shine, picture=picture)
    write_curves(config)
    study = resolve_images(config, TinyModel.defaults)
    shown = images.read(study, without=["image", "features"])
    measure.measure(study, shown, "python -m pipelines demo", no_ray)
    front.write_front(resolve(config))
    return config


def shine(name: str, columns: dict[str, np.ndarray]) -> None:
    """Give AIG's arms the tuned model's reward and more than the base's spread."""
    if "+linear" in name or "+power" in name:
        columns[PROXY] = columns[PROXY] + 1.5
        columns["features"] = 3 + 2 * np.random.default_rng(0).normal(size=columns["features"].shape)


def picture(arm: StudyArm, prompt: int, seed: int) -> bytes:
    """A grey for the prompt and the seed, with a stripe for the arm's name."""
    pixels = np.full((SIZE, SIZE, 3), (40 + 30 * prompt + 5 * seed) % 256, np.uint8)
    pixels[:2] = np.frombuffer(arm.id[:6].encode(), np.uint8).reshape(2, 1, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_curves(config: Config) -> None:
    """A training curve for each training: the more regularized, the flatter."""
    for train in trainings(config):
        rows = []
        for step in range(0, 5, 2):
            d = step / 4 / (1 + math.log1p(train.kl_weight))
            row = {"reward": 12 + 5 * d, "held_out": 16 + d, "gold": 3 + d - d**2, "accuracy": 0.7 - 0.2 * d}
            row |= {"diversity": 4.8 - 2 * d if step else None, "path": d**2, "scores": {PROXY: d}, "loss": None}
            rows.append({**row, "step": step, "seconds": 1.1 * step})
        write_curve(RunDir.of(replace(config, train=train)), adapter_key(train), rows)


def no_ray() -> None:
    raise AssertionError("so few images need no Ray")
