"""The statements that reward hacking makes, each as a paired difference with its interval, by training seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aig.pareto import LEAST_SEEDS, Contrast, below_peak, bootstrap, contrast
from pipelines.config import Front
from pipelines.measure.table import Table
from pipelines.rewards.scores import GOLD
from pipelines.study.arms import Study, StudyArm


def claims(front: Front, single: Study, table: Table, proxy: str, held_out: str | None) -> list[dict[str, Any]]:
    """What tuning does to each reward, to diversity and to prompt accuracy, and whether gold falls under its peak.

    `expected` is the sign of a claim that holds. An interval is of other prompts, and with LEAST_SEEDS training seeds
    or more of other trainings too. Claims are few and not adjusted for their number.
    """
    wanted = [
        ("proxy reward rises" if single.trained else f"{proxy} rises", proxy, 1),
        ("diversity falls", front.diversity, -1),
    ]
    wanted += [("held-out reward rises", held_out, 1)] if held_out in table.values else []
    wanted += [("prompt accuracy falls", "accuracy", -1)] if "accuracy" in table.values else []
    found = []
    for text, metric, sign in wanted:
        ends = rows(single, table, str(metric), [single.one("tuned"), single.one("base")])
        tuned, base = ends[:, 0], ends[:, 1]
        difference = paired(front, tuned - base)
        found.append({"claim": f"{text} (tuned - base)", "expected": sign, **entry(single, difference)})
    if GOLD in table.values and single.trained:
        text = "gold falls under its peak along training (tuned - peak)"
        found.append({"claim": text, "expected": -1, **entry(single, gold_from_peak(front, single, table))})
    return found


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
    return contrast(by_seed, left_out, pooled.counts @ differences.T / prompts, front.level)


def gold_from_peak(front: Front, single: Study, table: Table) -> Contrast:
    """Gold of the tuned model less gold at its peak along training; early stops that are broken have no peak."""
    sound = [arm for arm in single.arms if arm.family == "early" and arm.arm.name not in table.broken]
    snapshots = [single.one("base"), *sound, single.one("tuned")]
    gold = rows(single, table, GOLD, snapshots)
    return below_peak(gold, bootstrap({GOLD: gold[0]}, **front.resampling).counts, front.level)


def entry(single: Study, found: Contrast) -> dict[str, Any]:
    """As `front.json` has it: the estimate, its interval, and its values by training seed."""
    seeds = dict(zip(map(str, single.train_seeds), found.by_seed, strict=False))
    return {"value": found.value, "low": found.low, "high": found.high, "by_seed": seeds}
