"""Validations of a training: scores, diversity and distances to the base on fixed prompts and noise, and a picture.

The prompts are training prompts, and no evaluation uses their noise: guards, schedulers and searches select by
validations, and selection must not share images with judgement.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from aig.metrics import per_prompt, vendi_score
from aig.models import Model, Sampling
from aig.sampler import Arm, Grid, sample_arms, to_uint8
from pipelines.config import Config
from pipelines.config.values import slug
from pipelines.rewards import names
from pipelines.rewards.names import Statistics
from pipelines.rewards.scores import ACCURACIES, GOLD, Scores
from pipelines.runs.directory import RunDir
from pipelines.study import statistics as reward_statistics
from pipelines.study.prompts import validation_prompts, validation_seeds
from pipelines.train.objective import ADAPTER

# Limits of a picture: prompts, images per prompt, and pixels of an image's longer side.
ROWS, COLUMNS, SIDE = 8, 4, 128


@dataclass(frozen=True)
class Validation:
    """A row of the training's curve, and the images of the first prompts."""

    row: dict[str, Any]
    pixels: Tensor
    """(P, S, 3, h, w) uint8, prompts by seeds."""
    prompts: list[str]

    def write(self, run: RunDir, path: Path) -> None:
        """The images as one PNG, whole or not at all: a row a prompt, which stand in its text `prompts` as JSON."""
        count, seeds, _, height, width = self.pixels.shape
        sheet = self.pixels.permute(0, 3, 1, 4, 2).reshape(count * height, seeds * width, 3)
        about = PngInfo()
        about.add_itxt("prompts", json.dumps(self.prompts))
        with run.whole(path) as part:
            Image.fromarray(np.ascontiguousarray(sheet.numpy())).save(part, "PNG", pnginfo=about)


def scores_of(config: Config, device: torch.device, statistics: Statistics | None) -> Scores:
    """The scorers of a validation: the evaluation's and the trained reward."""
    columns, gold = reward_statistics.columns(config), names.gold(config)
    return Scores(columns, statistics, gold, config.evaluate.features, device)


@torch.no_grad()
def validate(config: Config, model: Model, scores: Scores, sampling: Sampling, step: int) -> Validation:
    """Mean scores, within-prompt diversity and distances to the base of the current adapter.

    An image without a finite score raises FloatingPointError with its prompt and seed; with train.on_nan = skip it is
    left out of every mean and counted.
    """
    settings = config.train
    chosen, indices = validation_prompts(config), validation_seeds(config)
    prompts = [prompt for prompt in chosen for _ in indices]
    seeds = indices * len(chosen)
    # At step 0 the adapter is still the base: its distance is 0, unmeasured.
    samples = sample_arms(
        model, prompts, seeds, [Arm(ADAPTER, ADAPTER)], config.run.seed, sampling, measure_path=step > 0
    )
    distances = {"path": samples.path} | ({"kl_to_base": samples.kl} if Grid(model, sampling).has_path_kl else {})
    images = model.decode(samples.latents[ADAPTER])
    saved = to_uint8(images).permute(0, 3, 1, 2)  # (B, 3, H, W)
    columns = scores(saved, prompts)
    vectors = columns.pop("features")
    kept = _sound(images, columns, prompts, seeds, step, settings.on_nan)
    means = {name: float(column[kept].mean()) for name, column in columns.items()}
    other = names.held_out(config, settings.reward)
    judged = [means[name] for name in ACCURACIES[:2] if name in means]
    row = {
        "reward": means[slug(settings.reward)],
        "held_out": means[slug(other)] if other else None,
        "gold": means.get(GOLD),
        "accuracy": sum(judged) / len(judged) if judged else None,
        "diversity": _diversity(vectors[kept], [prompts[row] for row in kept]),
        **{name: float(column[ADAPTER][kept].mean()) if step > 0 else 0.0 for name, column in distances.items()},
        "scores": {name: mean for name, mean in means.items() if name not in ACCURACIES},
        "left_out": len(prompts) - len(kept),
    }
    sheet = saved.unflatten(0, (len(chosen), -1))[:ROWS, :COLUMNS]
    return Validation(row, _small(sheet), chosen[:ROWS])


def metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of the curve for Ray and trackers: its numbers by name, every reward's as `scores/NAME`."""
    flat = {**row} | {f"scores/{name}": mean for name, mean in row.get("scores", {}).items()}
    return {name: value for name, value in flat.items() if isinstance(value, (int, float))}


def _sound(
    images: Tensor, columns: Mapping[str, Tensor], prompts: Sequence[str], seeds: Sequence[int], step: int, on_nan: str
) -> list[int]:
    """The rows of images with finite pixels and scores; FloatingPointError if on_nan = stop and one is missing."""
    sound = images.isfinite().flatten(1).all(dim=1).cpu()  # (B,); after rounding to 8 bits all would have a score
    for column in columns.values():
        sound &= column.isfinite()
    kept = sound.nonzero().flatten().tolist()
    if len(kept) < len(prompts) and on_nan == "stop":
        lost = int((~sound).nonzero()[0])
        raise FloatingPointError(
            f"the validation of step {step} has {len(prompts) - len(kept)} images without a finite score, first that "
            f"of {prompts[lost]!r} with seed {seeds[lost]}: lower train.lr, or leave such images out in "
            "another run with train.on_nan=skip"
        )
    if not kept:
        raise FloatingPointError(f"the validation of step {step} has no image with a finite score: lower train.lr")
    return kept


def _diversity(vectors: Tensor, prompts: list[str]) -> float | None:
    """Mean within-prompt Vendi score, over the prompts with at least two images."""
    counts = Counter(prompts)
    rows = [row for row, prompt in enumerate(prompts) if counts[prompt] > 1]
    if not rows:
        return None
    return float(per_prompt(vendi_score, vectors[rows], [prompts[row] for row in rows]).mean())


def _small(images: Tensor) -> Tensor:
    """Shrink images (P, S, 3, H, W) uint8 to a longer side of at most `SIDE` pixels."""
    height, width = images.shape[-2:]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrunk = F.interpolate(images.flatten(0, 1).float(), size, mode="bilinear", antialias=True)
    return shrunk.round().to(torch.uint8).unflatten(0, images.shape[:2])
