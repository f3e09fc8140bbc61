"""What reward hacking would show, each claim as a paired difference with its interval, by training seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aig.pareto import LEAST_SEEDS, Contrast, below_peak, bootstrap
from aig.pareto import contrast as contrast_of
from pipelines.config import Front
from pipelines.front.results import Claim, Direction
from pipelines.measure.table import Table
from pipelines.rewards.scores import GOLD
from pipelines.show.estimates import Estimate
from pipelines.study.arms import Study, StudyArm


def claims(front: Front, single: Study, table: Table, proxy: str, held_out: str | None) -> tuple[Claim, ...]:
    """What tuning does to each reward, to diversity and to prompt accuracy, and whether gold falls under its peak.

    An interval is of other prompts, and with LEAST_SEEDS training seeds or more of other trainings too. Claims are few
    and not adjusted for their number.
    """
    expected: dict[str | None, Direction] = {proxy: "up", front.diversity: "down", held_out: "up", "accuracy": "down"}
    claims = []
    for metric, direction in expected.items():
        if metric is not None and metric in table.values:
            ends = rows(single, table, metric, [single.one("tuned"), single.one("base")])
            difference = paired(front, ends[:, 0] - ends[:, 1])
            claims.append(Claim(metric, direction, "base", *estimate(single, difference)))
    if GOLD in table.values and single.trained:
        claims.append(Claim(GOLD, "down", "peak", *estimate(single, gold_from_peak(front, single, table))))
    return tuple(claims)


def rows(single: Study, table: Table, metric: str, arms: Sequence[StudyArm]) -> np.ndarray:
    """A metric (training seeds, arms, prompts) of some of the study's arms."""
    return np.stack([table.rows(names)[metric] for names in single.by_seed(arms)])


def paired(front: Front, differences: np.ndarray) -> Contrast:
    """The mean of paired differences (training seeds, prompts)."""
    seeds, prompts = differences.shape
    pooled = bootstrap({"": differences.mean(0)[None]}, **front.resampling)
    by_seed = differences.mean(1)
    if seeds < LEAST_SEEDS:
        low, high = pooled.interval[""][0]
        return Contrast(float(by_seed.mean()), float(low), float(high), np.nan, tuple(by_seed.tolist()))
    left_out = (differences.sum(1, keepdims=True) - differences).T / (prompts - 1)
    return contrast_of(by_seed, left_out, pooled.counts @ differences.T / prompts, front.level)


def gold_from_peak(front: Front, single: Study, table: Table) -> Contrast:
    """Gold of the tuned model less gold at its peak along training; early stops that are broken have no peak."""
    sound = [arm for arm in single.arms if arm.family == "early" and arm.arm.name not in table.broken]
    snapshots = [single.one("base"), *sound, single.one("tuned")]
    gold = rows(single, table, GOLD, snapshots)
    return below_peak(gold, bootstrap({GOLD: gold[0]}, **front.resampling).counts, front.level)


def estimate(single: Study, contrast: Contrast) -> tuple[Estimate, dict[int, float]]:
    """A contrast with its interval, and its value in each training seed."""
    by_seed = dict(zip(single.train_seeds, contrast.by_seed, strict=False))
    return Estimate(contrast.value, contrast.low, contrast.high), by_seed
