"""How often a whole report says "ahead" where all its arms are one: `python -m benchmarks.coverage chain`.

One pool of images of the embedded base model, scored and with features once. A draw takes prompts and, for each prompt
and each arm of the demo, images that no other arm has; so all arms are the same adapter under different names. What a
run would make of them is made of them: metrics prompt by prompt, then all that `front.json` says, verdicts included.
Base and tuned are moved apart along a trade-off, as tuning moves them, and all arms between them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aig import models
from aig.sampler import Arm, sample_arms, to_uint8
from aig.world.scenes import all_prompts
from pipelines import config as configuration
from pipelines.config import Config
from pipelines.front import front
from pipelines.front.results import AHEAD, BEHIND, Front
from pipelines.measure.per_arm import BY_PROMPT
from pipelines.measure.table import Table
from pipelines.study.prompts import EVALUATE, resolve_prompts
from pipelines.study.resolved import Resolved, resolve
from pipelines.train.validation import scores_of

BATCH = 32
# Where arms are on (reward, diversity), in standard deviations of prompts: the ends, and all others.
PLACES = {"base": (0.0, 1.0), "tuned": (1.0, 0.0)}
BETWEEN = (0.7, 0.7)


@dataclass(frozen=True)
class Pool:
    """Images as numbers."""

    scores: dict[str, np.ndarray]
    """(prompts, images) a column."""
    features: np.ndarray
    """(prompts, images, d)."""


def settings(storage: Path, train_seeds: Sequence[int] = (0,), prompts: int = 16) -> Config:
    """The demo, as it is compared."""
    given = [f"run.storage={storage}", f"sweep.train_seeds={list(train_seeds)}", f"evaluate.prompts={prompts}"]
    return configuration.load("demo", None, given)


@torch.no_grad()
def sample_pool(found: Config, prompts: int, images: int) -> Pool:
    """Images of the base model for the first captions of its world."""
    model = models.load(found.model.name)
    scores = scores_of(found, torch.device("cpu"), None)
    columns: dict[str, list[np.ndarray]] = {}
    for prompt in all_prompts()[:prompts]:
        for start in range(0, images, BATCH):
            seeds = list(range(start, min(start + BATCH, images)))
            texts = [prompt] * len(seeds)
            drawn = sample_arms(model, texts, seeds, [Arm("base", None, 1.0, "base")])
            saved = to_uint8(model.decode(drawn.latents["base"])).permute(0, 3, 1, 2)
            for name, column in scores(saved, texts).items():
                columns.setdefault(name, []).append(column.numpy())
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    shaped = {name: values.reshape(prompts, images, *values.shape[1:]) for name, values in whole.items()}
    return Pool(features=shaped.pop("features"), scores=shaped)


def made_up_pool(rng: np.random.Generator, prompts: int, images: int, names: Sequence[str], d: int = 8) -> Pool:
    """Prompts that differ in their mean and their spread, and skewed scores."""
    spread = rng.gamma(4, 0.25, size=(prompts, 1))
    scores = {
        name: rng.normal(size=(prompts, 1)) + spread * rng.gamma(4, 0.5, size=(prompts, images)) for name in names
    }
    centre = 2 * rng.normal(size=(prompts, 1, d))
    return Pool(scores, centre + spread[..., None] * rng.normal(size=(prompts, images, d)))


def draw(study: Resolved, pool: Pool, rng: np.random.Generator) -> Front:
    """The results of arms that are disjoint draws from the pool, on prompts drawn from its own."""
    found, every = study.config, study.studies
    single = {arm.arm.name: arm for one in every for arm in one.arms if not arm.members}
    seeds, count = found.evaluate.seeds, len(resolve_prompts(found, EVALUATE))
    total, images = pool.features.shape[:2]
    if len(single) * seeds > images:
        raise ValueError(f"{len(single)} arms of {seeds} images need more than {images} a prompt: give a larger pool")
    prompts = rng.choice(total, count)
    taken = np.stack([rng.permutation(images)[: len(single) * seeds] for _ in prompts])
    taken = taken.reshape(count, len(single), seeds)
    values = {name: column[prompts[:, None, None], taken].mean(2).T for name, column in pool.scores.items()}
    rows = pool.features[prompts[:, None, None], taken]  # (prompts, arms, seeds, d)
    for name, metric in BY_PROMPT.items():
        values[name] = np.array([[metric(own) for own in of_prompt] for of_prompt in rows]).T
    for name, column in values.items():
        places = [PLACES.get(arm.family, BETWEEN)[name in BY_PROMPT] for arm in single.values()]
        column += column.std() * np.array(places)[:, None]
    names = list(single)
    for mean in (arm for one in every for arm in one.arms if arm.members):
        members = [names.index(name) for name in mean.members]
        values = {name: np.vstack([column, column[members].mean(0)]) for name, column in values.items()}
        names.append(mean.arm.name)
    table = Table(names, [str(p) for p in range(count)], seeds, values)
    return front.compute(study, table, {}, {})


def count(found: Config, pool: Pool, draws: int, seed: int = 0) -> dict[str, int]:
    """In how many draws any difference is ahead, any is behind, and any would be either without adjustment."""
    study, said = resolve(found), {AHEAD: 0, BEHIND: 0, "not adjusted": 0}
    for i in range(draws):
        studies = draw(study, pool, np.random.default_rng([seed, i])).studies
        planes = [plane for one in studies if one.leading for plane in one.planes.values()]
        rows = [row for plane in planes for row in plane.differences]
        for verdict in (AHEAD, BEHIND):
            said[verdict] += any(row.verdict == verdict for row in rows)
        said["not adjusted"] += any(row.p < 1 - found.front.level for row in rows)
    return said


def chain(draws: int, place: Path, prompts: int = 24, images: int = 128) -> None:
    """Print the shares; the pool is sampled once and kept at `place`."""
    found = settings(place, prompts=16)
    path = place / f"pool-{prompts}x{images}.npz"
    if not path.exists():
        sampled = sample_pool(found, prompts, images)
        np.savez(path, features=sampled.features, **sampled.scores)
    with np.load(path) as file:
        scores = {name: file[name] for name in file.files if name != "features"}
        pool = Pool(scores, file["features"])
    print(f"all arms are the base model, {draws} draws of 16 prompts from {prompts} x {images} images")
    for name, said in count(found, pool, draws).items():
        print(f"  {name:<24}{said:>5} draws ({100 * said / draws:.1f} %)", flush=True)
