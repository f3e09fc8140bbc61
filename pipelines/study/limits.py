"""The limits train.stop_*: rules on numbers that say when to stop a training before its reward is hacked.

They read the training's curve alone, so a training that was interrupted stops at the same step as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config import ConfigError, Train

# By limit: the column of a validation that it bounds, and that column's name and unit in words.
COLUMNS = {
    "held_out": ("held_out", "the held-out reward", ""),
    "diversity": ("diversity", "diversity", ""),
    "kl": ("kl_to_base", "the path KL to the base", " nats"),
    "path": ("path", "the path length to the base", ""),
}
FALLS = ("held_out", "diversity")  # whose limits are lower bounds


@dataclass(frozen=True)
class Stop:
    """Why a training was stopped: the last of too many validations in a row beyond one limit."""

    step: int
    why: str
    """The limit: held_out, diversity, kl or path."""
    value: float
    limit: float


@dataclass(frozen=True)
class Verdict:
    """What a training's validations come to."""

    within: bool
    """Whether the last one is within all limits."""
    stop: Stop | None = None


def judge(settings: Train, rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on a training's validations, rows of its curve from step 0 on.

    A value that a row lacks (diversity, if images without a score were left out) is neither within its limit nor
    beyond. ConfigError if a limit could never be passed.
    """
    limits = settings.limits
    base, best = rows[0].get("diversity"), -math.inf
    beyond, within = dict.fromkeys(limits, 0), False
    for row in rows:
        best = max(best, row["held_out"]) if row.get("held_out") is not None else best
        within = True
        for name in limits:
            value, limit = row.get(COLUMNS[name][0]), _bound(limits, name, base, best)
            if value is None or limit is None:
                beyond[name], within = 0, False
                continue
            over = value < limit if name in FALLS else value > limit
            beyond[name] = beyond[name] + 1 if over else 0
            within &= not over
            if over and beyond[name] >= settings.stop_patience:
                return Verdict(False, Stop(row["step"], name, value, limit))
    return Verdict(within)


def _bound(limits: Mapping[str, float], name: str, base: float | None, best: float) -> float | None:
    if name == "held_out":
        return best - limits[name]
    if name != "diversity":
        return limits[name]
    if base is None:
        return None
    least = limits[name] * base
    if least <= 1:  # no Vendi score is under 1
        raise ConfigError(
            f"train.stop_diversity is {limits[name]:g}, and the base's diversity {base:.3f}: a Vendi score cannot fall "
            f"under {least:.3f}, since none is under 1; give a share above {1 / base:.3f}"
        )
    return least


def describe_stop(record: Mapping[str, Any]) -> str:
    """Where and why a training was stopped, in words, from its adapter's record."""
    stop = Stop(**record["stopped"])
    _, what, unit = COLUMNS[stop.why]
    side = "under" if stop.why in FALLS else "over"
    return (
        f"stopped at step {stop.step}, where {what} was {stop.value:.3g}{unit}, {side} {stop.limit:.3g}{unit}; its "
        f"adapter is that of step {record['step']}"
    )


def check(settings: Train, has_kl: bool, held_out: str | None) -> None:
    """ConfigError if a limit bounds what this training does not have.

    `has_kl`: whether its sampling is stochastic; `held_out`: its held-out reward.
    """
    limits, reward = settings.limits, settings.reward
    if "kl" in limits and not has_kl:
        raise ConfigError(
            f"train.stop_kl is {limits['kl']:g} nats, and deterministic sampling has no KL: give train.stop_path, or "
            "sample with noise (model.eta above 0, or model.scheduler=sde-dpm)"
        )
    if "held_out" in limits and held_out is None:
        raise ConfigError(
            f"train.stop_held_out is {limits['held_out']:g}, and no reward is held out from {reward!r}: name another "
            "one in evaluate.rewards"
        )
