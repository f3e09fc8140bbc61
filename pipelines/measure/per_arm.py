"""The measures of one arm's features and scores, and whether its images are broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from aig.metrics import FeatureError, NeighbourScores, mean_pairwise_cosine_distance, vendi_score
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster
from pipelines.config import Config, ConfigError
from pipelines.evaluate import pixels
from pipelines.measure import broken as measure_broken
from pipelines.measure import sets as measure_sets
from pipelines.measure.feature_file import FeatureFile
from pipelines.measure.sets import SetMeasures
from pipelines.measure.tiles import Tiles
from pipelines.show.bar import Bar
from pipelines.study.arms import StudyArm

BY_PROMPT = {"vendi": vendi_score, "pairwise": mean_pairwise_cosine_distance}


@dataclass(frozen=True)
class Measured:
    """One arm's measures."""

    by_prompt: dict[str, np.ndarray]
    """(prompts,) per metric, NaN for features that are not finite or have no direction."""
    sets: SetMeasures | None
    """None if a measure refuses the features."""
    broken: list[str]
    """What is wrong with its images."""
    warning: str | None
    """A note on images that are sound."""


def measure_arms(
    config: Config,
    arms: Sequence[StudyArm],
    scores: dict[str, np.ndarray],
    features: FeatureFile,
    connect: Callable[[], Cluster],
) -> tuple[list[Measured], dict[str, Any]]:
    """The measures of each arm, and the row of the noise floor; features are read a block at a time.

    scores: (arms, prompts, seeds) per name. ConfigError if the base's features can be no reference.
    """
    first = next(i for i, arm in enumerate(arms) if arm.family == "base")
    base = features.arm(first)
    wrong = measure_broken.of_features(base)
    if wrong:
        raise ConfigError(f"the base model's {wrong[0]}, so no arm can be measured against it: see evaluate.features")
    tiled = _tiled(config, features, first, base.shape[0] * base.shape[1], connect)
    measured, bar = [], Bar("arms measured", len(arms), unit="arms")
    try:
        for i in range(len(arms)):
            rows = base if i == first else features.arm(i)
            broken = measure_broken.of_images(config.measure, scores[pixels.PIXEL_STD][i])
            broken += measure_broken.of_scores(scores, i)
            whole, refused = _sets(config, base, rows, tiled and (lambda i=i: tiled(i)))
            by_prompt = {name: _by_prompt(metric, rows) for name, metric in BY_PROMPT.items()}
            warning = _warning(config, whole) if whole and not broken else None
            measured.append(Measured(by_prompt, whole, broken + refused, warning))
            bar.add(1)
    finally:
        bar.close()
    about = {"arm": arms[first].arm.name, "metric": measure_sets.FLOOR, "seeds": base.shape[1] // 2}
    return measured, {**about, "value": measure_sets.noise_floor(base)}


def _sets(
    config: Config, base: np.ndarray, rows: np.ndarray, tiled: measure_sets.Tiled | None
) -> tuple[SetMeasures | None, list[str]]:
    """The measures of an arm's features against the base's, or why there are none."""
    refused = measure_broken.of_features(rows)
    if refused:
        return None, refused
    try:
        whole = measure_sets.measure_sets(config, base, rows, tiled)
    except FeatureError as error:  # as if a subset's features are all the same
        if rows is base:
            raise ConfigError(
                f"no arm can be measured against the base model's images ({error}): see evaluate.features"
            ) from error
        return None, [str(error)]
    return whole, []


def _warning(config: Config, whole: SetMeasures) -> str | None:
    precision = dict(zip(whole.names, whole.found.estimate, strict=True)).get("precision", np.nan)
    return measure_broken.warning(config.measure, precision)


def _tiled(
    config: Config, features: FeatureFile, base: int, n: int, connect: Callable[[], Cluster]
) -> Callable[[int], NeighbourScores] | None:
    """A function that measures an arm's neighbours with Ray; None for sets that fit one process."""
    if n < config.measure.tiles_from:
        return None
    connect().room(resources.tile(config.measure))
    tiles = Tiles(features, n, measure_sets.NEIGHBOURS, config.measure.tile, config.measure.tile_cpus)

    @cache
    def radii() -> torch.Tensor:
        return tiles.radii(base)

    return lambda arm: tiles.scores(base, arm, radii())


def _by_prompt(metric: Callable[[np.ndarray], float], features: np.ndarray) -> np.ndarray:
    """The metric of each prompt's rows (seeds, d), NaN if one is not finite or has no direction."""
    sound = [np.isfinite(rows).all() and rows.any(1).all() for rows in features]
    return np.array([metric(rows) if ok else np.nan for rows, ok in zip(features, sound, strict=True)])
