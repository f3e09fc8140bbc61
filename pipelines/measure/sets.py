"""Measures of an arm's images as a set against the base's of the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from aig.metrics import (
    Moments,
    NeighbourScores,
    cmmd,
    features,
    frechet_distance,
    kernel_distance,
    log_spectral_distance,
    neighbour_scores,
    spectral_distance,
    spectral_profile,
    vendi_score,
    within_prompt_moments,
)
from aig.pareto import Subsample, subsample
from pipelines.config import Config

NEIGHBOURS = 5  # of precision, recall, density and coverage
BLOCK = 2**24  # numbers of features copied to float64 at a time
KERNEL_ROWS = 8192  # of each set in a kernel distance, whose cost grows with their square
FLOOR = "log_spectral_floor"
SHARES = ("precision", "recall", "coverage")  # measures that are shares of the images

Tiled = Callable[[], NeighbourScores]


@dataclass(frozen=True)
class SetMeasures:
    """The measures by name, with intervals by subsets of the prompts."""

    names: list[str]
    found: Subsample
    images: int
    """Number of images of the arm."""

    def interval(self, name: str) -> tuple[float, float]:
        """Low and high of a measure."""
        place = self.names.index(name)
        if name in SHARES:
            return self.found.share_interval(place, self.images)
        low, high = self.found.interval[place]
        return float(low), float(high)


def measure_sets(config: Config, ref: np.ndarray, gen: np.ndarray, tiled: Tiled | None = None) -> SetMeasures:
    """All measures of gen against ref, both (prompts, seeds, d); FeatureError for features that one refuses.

    tiled: computes the neighbours' measures of all images elsewhere; subsets are small enough for this process.
    """
    settings, (prompts, seeds, _) = config.measure, ref.shape
    names: list[str] = []

    def on(kept: np.ndarray) -> np.ndarray:
        whole = len(kept) == prompts
        r, g = (ref, gen) if whole else (ref[kept], gen[kept])
        values = distances(r, g, config.evaluate.features)
        if prompts * seeds > NEIGHBOURS:
            values |= neighbours(r, g) if tiled is None or not whole else tiled()._asdict()
        names[:] = values
        return np.array(list(values.values()))

    size = subset_size(prompts, seeds, settings.subset_images)
    n = settings.subsets if 1 < size < prompts else 0
    found = subsample(on, prompts, n, size=size, level=config.front.level, seed=config.front.seed)
    return SetMeasures(list(names), found, prompts * seeds)


def subset_size(prompts: int, seeds: int, images: int) -> int:
    """Prompts of a subset: half of them, or those of so many images; enough for the neighbours' measures."""
    return max(min(prompts // 2, images // seeds), NEIGHBOURS // seeds + 1)


def distances(ref: np.ndarray, gen: np.ndarray, extractor: features.Spec) -> dict[str, float]:
    """Distances of gen to ref, both (prompts, seeds, d): of all rows, and of the spread inside the prompts."""
    r, g = flat(ref), flat(gen)
    moments = Moments.of(r), Moments.of(g)
    values = {
        "spectral": spectral_distance(*moments),
        "log_spectral": log_spectral_distance(*moments),
        "frechet": frechet_distance(*moments),
        "kid": in_parts(kernel_distance, r, g),
        "collapse": spectral_profile(within(ref), within(gen)).mean_log_ratio,
        # A row of zeros has no direction.
        "vendi_pooled": vendi_score(g) if g.any(1).all() else np.nan,
    }
    if features.parse(extractor).name == "clip":
        values["cmmd"] = in_parts(partial(cmmd, unbiased=True), r, g)
    return values


def in_parts(distance: Callable[..., float], ref: np.ndarray, gen: np.ndarray) -> float:
    """An unbiased distance of rows (n, d); for many rows its mean over interleaved parts, unbiased as well."""
    parts = -(-len(ref) // KERNEL_ROWS)
    return float(np.mean([distance(ref[part::parts], gen[part::parts]) for part in range(parts)]))


def neighbours(ref: np.ndarray, gen: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage of gen (prompts, seeds, d) against ref."""
    return neighbour_scores(flat(ref), flat(gen), NEIGHBOURS)._asdict()


def noise_floor(base: np.ndarray) -> float:
    """The log spectral distance of chance: between two halves of the base's seeds (prompts, seeds, d)."""
    half = base.shape[1] // 2
    return log_spectral_distance(*(_moments(base[:, part]) for part in (slice(half), slice(half, 2 * half))))


def _moments(rows: np.ndarray) -> Moments:
    """Moments of rows (prompts, seeds, d), contiguous or not, some prompts at a time."""
    step, total = max(1, BLOCK // rows[0].size), Moments()
    for start in range(0, len(rows), step):
        total.update(flat(rows[start : start + step]))
    return total


def flat(rows: np.ndarray) -> np.ndarray:
    """(prompts, seeds, d) as (n, d)."""
    return rows.reshape(-1, rows.shape[-1])


def within(rows: np.ndarray) -> Moments:
    """Moments of the pooled covariance inside the prompts of rows (prompts, seeds, d), some prompts at a time."""
    prompts, seeds, d = rows.shape
    step = max(1, BLOCK // (seeds * d))
    freedom, M2 = 0, np.zeros((d, d))
    for start in range(0, prompts, step):
        part = rows[start : start + step]
        moments = within_prompt_moments(flat(part), np.repeat(np.arange(len(part)), seeds))
        freedom, M2 = freedom + moments.n - 1, M2 + moments.M2
    return Moments(freedom + 1, np.zeros(d), M2)
