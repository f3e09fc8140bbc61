"""What a reward's name in the configuration means: a reward of the library, one that is defined there, or a sum."""

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
    """The terms of a reward as it is named in the configuration: one, or those of a weighted sum, by distinct columns.

    A single definition is labelled with its name. A sum within a sum is multiplied out. ValueError for what is unknown,
    and for definitions that go round in a circle.
    """
    define = config.rewards.define
    found: list[RewardSpec] = []
    for text in re.split(r"(?<!\d[eE])\+", name):  # as the library reads sums in words: not at the + of 1e+3
        weight, _, term = (part.strip() for part in text.rpartition("*"))
        if term not in define or term in within:
            found += rewards.parse(text)
        else:
            found += [_times(part, weight, text) for part in _defined(config, term, within)]
    columns = [term.column for term in found]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice:
        raise ConfigError(f"reward {name!r}: {twice} occurs twice; add up the weights, or give each a label of its own")
    return found


def _defined(config: Config, name: str, within: tuple[str, ...]) -> list[RewardSpec]:
    meant = config.rewards.define[name]
    # In its own definition a name is the library's: {pickscore: {name: pickscore, weights: FOLDER}}.
    found = terms(config, meant, (*within, name)) if isinstance(meant, str) else rewards.parse(meant)
    return found if is_sum(found) else [replace(found[0], label=name)]


def _times(term: RewardSpec, weight: str, text: str) -> RewardSpec:
    try:
        return replace(term, weight=term.weight * float(weight or 1))
    except ValueError:
        raise ConfigError(f"reward {text.strip()!r}: {weight!r} is no number; write 0.5*pickscore") from None


def is_sum(found: Sequence[RewardSpec]) -> bool:
    """Whether these terms are added up, with weights, and z-scored."""
    return len(found) > 1 or found[0].weight != 1


def scored(config: Config) -> list[str]:
    """The rewards that score images: those asked for and those trained on."""
    return list(dict.fromkeys([*config.evaluate.rewards, *config.sweep.rewards]))


def held_out(config: Config, reward: str) -> str | None:
    """The first scored reward that shares nothing with the trained one."""
    trained = {(term.name, term.weights) for term in terms(config, reward)}
    for name in config.evaluate.rewards:
        if name != reward and not trained & {(term.name, term.weights) for term in terms(config, name)}:
            return name
    return None


# Rewards that are here whole, and so are tried out before any worker starts; the others' weights are only looked for.
HERE = ("world", "function")


def check(config: Config, name: str, trained: bool = False) -> None:
    """Try out a reward as far as that needs no large weights, and print the addresses of what is to be downloaded.

    ValueError where it is unknown or its weights can be found nowhere; with `trained` where it cannot be tuned to.
    """
    found = terms(config, name)
    for term in found:
        if term.family not in HERE:
            continue
        reward = rewards.load(replace(term, weight=1.0))
        if not reward.higher_is_better and not is_sum(found):
            raise ConfigError(f"reward {name!r} is better when lower: wrap it in a callable that returns its negative")
        if trained:
            rewards.check_trainable(reward)
    for address in rewards.needed(found):
        print(f"Reward {name!r}: to be downloaded first: {address}")


def gold(config: Config) -> RewardSpec | None:
    """The reward of evaluate.gold; ConfigError for a weighted sum."""
    if config.evaluate.gold is None:
        return None
    found = terms(config, config.evaluate.gold)
    if is_sum(found):
        raise ConfigError(f"evaluate.gold is the weighted sum {config.evaluate.gold!r}: give one reward")
    return found[0]


@dataclass(frozen=True)
class Columns:
    """What is scored and recorded, by column: rewards, and weighted sums of them."""

    parts: dict[str, RewardSpec]
    sums: dict[str, dict[str, float]]
    """Weights of the parts by their columns, a sum."""

    @property
    def normalized(self) -> list[str]:
        """The parts that are terms of some sum."""
        return list(dict.fromkeys(part for weights in self.sums.values() for part in weights))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def columns(config: Config, names: Sequence[str]) -> Columns:
    """The columns of these rewards, every term of a sum included; ConfigError where two would share one."""
    parts: dict[str, RewardSpec] = {}
    sums: dict[str, dict[str, float]] = {}
    taken: dict[str, Any] = {}

    def take(column: str, what: Any, said: str) -> None:
        if taken.setdefault(column, what) != what:
            raise ConfigError(f"two rewards would share the column {column!r}: give {said!r} another name or label")

    for name in names:
        found = terms(config, name)
        for term in found:
            column, single = slug(term.column), replace(term, weight=1.0)
            take(column, single, term.column)
            parts[column] = single
        if is_sum(found):
            weights = {slug(term.column): float(term.weight) for term in found}
            take(slug(name), weights, name)
            sums[slug(name)] = weights
    return Columns(parts, sums)


def digests(specs: Iterable[RewardSpec]) -> dict[str, str]:
    """`aig.rewards.digests` of these rewards, by column: hashes of what their scores come from."""
    return {slug(spec.column): _digest(spec) for spec in specs}


def scoring_digests(config: Config, columns: Columns) -> dict[str, Any]:
    """Hashes of what an evaluation's scores and features come from: of the columns, of the judge, of the extractor."""
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
    """The reward of `config.train`, a sum z-scored by the base model's statistics."""
    found = terms(config, config.train.reward)
    known = {term.column: statistics[slug(term.column)] for term in found} if is_sum(found) else None
    reward = rewards.load(found, device, dtype=DTYPES[config.rewards.dtype], statistics=known)
    if "reward" in config.train.checkpointing:
        reward.checkpoint()  # type: ignore[attr-defined]
    if config.rewards.rounding:
        reward.round_through()  # type: ignore[attr-defined]
    return reward
