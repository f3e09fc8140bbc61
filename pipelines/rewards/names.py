"""The meaning of a reward's name in the configuration: the library's, one of rewards.define, or a weighted sum."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from aig import rewards
from aig.metrics import features
from aig.rewards import RewardSpec
from pipelines.config import Config, ConfigError, given
from pipelines.config.values import slug

Statistics = Mapping[str, tuple[float, float]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def terms(config: Config, name: str, within: tuple[str, ...] = ()) -> list[RewardSpec]:
    """The terms of a reward: one, or those of a weighted sum, by distinct columns.

    A single definition is labelled with its name; a sum within a sum is expanded. ValueError for what is unknown and
    for circular definitions.
    """
    define = config.rewards.define
    parts: list[RewardSpec] = []
    for text in re.split(r"(?<!\d[eE])\+", name):  # as the library splits sums: not at the + of 1e+3
        weight, _, term = (part.strip() for part in text.rpartition("*"))
        if term not in define or term in within:
            parts += rewards.parse(text)
        else:
            parts += [_times(part, weight, text) for part in _defined(config, term, within)]
    columns = [term.column for term in parts]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice:
        raise ConfigError(f"reward {name!r}: {twice} occurs twice; add up the weights, or give each a label of its own")
    return parts


def _defined(config: Config, name: str, within: tuple[str, ...]) -> list[RewardSpec]:
    definition = config.rewards.define[name]
    # In its own definition a name is the library's: {pickscore: {name: pickscore, weights: FOLDER}}.
    parts = terms(config, definition, (*within, name)) if isinstance(definition, str) else rewards.parse(definition)
    return parts if is_sum(parts) else [replace(parts[0], label=name)]


def _times(term: RewardSpec, weight: str, text: str) -> RewardSpec:
    try:
        return replace(term, weight=term.weight * float(weight or 1))
    except ValueError:
        raise ConfigError(f"reward {text.strip()!r}: {weight!r} is no number; write 0.5*pickscore") from None


def is_sum(parts: Sequence[RewardSpec]) -> bool:
    """Whether these terms are a weighted sum, which is z-scored."""
    return len(parts) > 1 or parts[0].weight != 1


def scored(config: Config) -> list[str]:
    """The rewards that score images: evaluate.rewards and those trained on."""
    return list(dict.fromkeys([*config.evaluate.rewards, *config.sweep.rewards]))


def held_out(config: Config, reward: str) -> str | None:
    """The first of evaluate.rewards that shares no term with the trained one."""
    trained = {(term.name, term.weights) for term in terms(config, reward)}
    for name in config.evaluate.rewards:
        if name != reward and not trained & {(term.name, term.weights) for term in terms(config, name)}:
            return name
    return None


# Families that need no download: they are tried out before any worker starts, of others only the weights are located.
LOCAL = ("world", "function")


def check(config: Config, name: str, trained: bool = False) -> None:
    """Try out a reward without large weights, and print the addresses of what is to be downloaded.

    ValueError if it is unknown or its weights are nowhere to be found; with `trained`, if it cannot be tuned to.
    """
    parts = terms(config, name)
    for term in parts:
        if term.family not in LOCAL:
            continue
        reward = rewards.load(replace(term, weight=1.0))
        if not reward.higher_is_better and not is_sum(parts):
            raise ConfigError(f"reward {name!r} is better when lower: wrap it in a callable that returns its negative")
        if trained:
            rewards.check_trainable(reward)
    for address in rewards.needed(parts):
        print(f"Reward {name!r}: to be downloaded first: {address}")


def gold(config: Config) -> RewardSpec | None:
    """The reward of evaluate.gold; ConfigError for a weighted sum."""
    if config.evaluate.gold is None:
        return None
    parts = terms(config, config.evaluate.gold)
    if is_sum(parts):
        raise ConfigError(f"evaluate.gold is the weighted sum {config.evaluate.gold!r}: give one reward")
    return parts[0]


@dataclass(frozen=True)
class Columns:
    """The recorded score columns: rewards and weighted sums of them."""

    parts: dict[str, RewardSpec]
    sums: dict[str, dict[str, float]]
    """By sum the weights of its parts."""

    @property
    def normalized(self) -> list[str]:
        """The parts that are terms of some sum."""
        return list(dict.fromkeys(part for weights in self.sums.values() for part in weights))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def columns(config: Config, names: Sequence[str]) -> Columns:
    """The columns of these rewards, with every term of a sum; ConfigError if two would share one."""
    parts: dict[str, RewardSpec] = {}
    sums: dict[str, dict[str, float]] = {}
    taken: dict[str, Any] = {}

    def take(column: str, content: Any, label: str) -> None:
        if taken.setdefault(column, content) != content:
            raise ConfigError(f"two rewards would share the column {column!r}: give {label!r} another name or label")

    for name in names:
        split = terms(config, name)
        for term in split:
            column, single = slug(term.column), replace(term, weight=1.0)
            take(column, single, term.column)
            parts[column] = single
        if is_sum(split):
            weights = {slug(term.column): float(term.weight) for term in split}
            take(slug(name), weights, name)
            sums[slug(name)] = weights
    return Columns(parts, sums)


def digests(specs: Iterable[RewardSpec]) -> dict[str, str]:
    """By column `aig.rewards.digests` of these rewards: hashes of what their scores come from."""
    return {slug(spec.column): _digest(spec) for spec in specs}


def scoring_digests(config: Config, columns: Columns) -> dict[str, Any]:
    """Hashes of what an evaluation's scores and features come from: columns, gold and extractor."""
    judge = gold(config)
    return {
        "rewards": digests(columns.parts.values()),
        "gold": None if judge is None else _digest(judge),
        "features": _features_digest(features.parse(config.evaluate.features)),
    }


@lru_cache
def _features_digest(extractor: features.FeatureSpec) -> str:
    with given("evaluate.features"):
        return features.digest(extractor)


@lru_cache
def _digest(spec: RewardSpec) -> str:
    with given():
        return rewards.digests(spec)[spec.column]


def load_trained(config: Config, device: torch.device, statistics: Statistics) -> Any:
    """The reward of `config.train`; a sum is z-scored by the base model's statistics."""
    parts = terms(config, config.train.reward)
    known = {term.column: statistics[slug(term.column)] for term in parts} if is_sum(parts) else None
    reward = rewards.load(parts, device, dtype=DTYPES[config.rewards.dtype], statistics=known)
    if "reward" in config.train.checkpointing:
        reward.checkpoint()  # type: ignore[attr-defined]
    if config.rewards.rounding:
        reward.round_through()  # type: ignore[attr-defined]
    return reward
