"""Means of scores by groups of prompts, with intervals whose unit is the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from aig.pareto import LEAST_PROMPTS, bootstrap
from pipelines.config import Front
from pipelines.show import tables
from pipelines.show.estimates import Estimate, interval

ALL = "all"


@dataclass(frozen=True)
class Mean:
    """A reward's mean over the prompts of a group, each prompt's images averaged first, with its interval.

    An image without a prompt counts as a prompt of its own.
    """

    group: str
    reward: str
    value: float
    low: float
    high: float
    prompts: int
    images: int


def means(table: pa.Table, rewards: Sequence[str], front: Front) -> list[Mean]:
    """Each reward's mean in every group (the column `group`) and, if there are several groups, over all images.

    Images without a score are left out. The mean is NaN if no image is left, the interval with fewer than LEAST_PROMPTS
    prompts. `front` holds the bootstrap's settings.
    """
    own = table["group"].to_pylist() if "group" in table.column_names else [ALL] * len(table)
    places: dict[str, list[int]] = {}
    for row, group in enumerate(own):
        places.setdefault(group or "(none)", []).append(row)
    if len(places) > 1:
        places["all groups"] = list(range(len(table)))
    return [_mean(table.take(rows), group, reward, front) for group, rows in places.items() for reward in rewards]


def _mean(table: pa.Table, group: str, reward: str, front: Front) -> Mean:
    scores: dict[str | int, list[float]] = {}
    for row, (prompt, score) in enumerate(zip(table["prompt"].to_pylist(), table[reward].to_pylist(), strict=True)):
        if score is not None:
            scores.setdefault(prompt or row, []).append(score)
    prompts, images = len(scores), sum(map(len, scores.values()))
    values = np.array([[np.mean(each) for each in scores.values()]])  # (1, prompts)
    if prompts < 2:
        return Mean(group, reward, float(values.mean()) if prompts else math.nan, math.nan, math.nan, prompts, images)
    result = bootstrap({reward: values}, **front.resampling)
    low, high = result.interval[reward][0]
    return Mean(group, reward, float(result.mean[reward][0]), float(low), float(high), prompts, images)


def summary(found: Sequence[Mean], level: float) -> str:
    """The means as text: a line a group, a column a reward."""
    groups, rewards = ([*dict.fromkeys(getattr(mean, name) for mean in found)] for name in ("group", "reward"))
    cells = {(mean.group, mean.reward): interval(Estimate(mean.value, mean.low, mean.high)) for mean in found}
    # Of the reward with the most scores: an image that has none is told of apart.
    counts = {group: max((m.prompts, m.images) for m in found if m.group == group) for group in groups}
    lines = [["group", "prompts", "images", *rewards]]
    lines += [[group, *map(str, counts[group]), *(cells[group, reward] for reward in rewards)] for group in groups]
    few = any(mean.prompts < LEAST_PROMPTS for mean in found)
    note = f"; no interval below {LEAST_PROMPTS} prompts" if few else ""
    return "\n".join([tables.aligned(lines), f"(means over prompts, with {100 * level:g} % intervals{note})"])
