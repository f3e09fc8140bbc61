"""What became of a sweep's trials, and which of them are compared: read from the run alone, without torch and Ray.

The adapters say which trainings are done. What they cannot say stands in `sweep.json`: the trials that a search drew,
those that a scheduler stopped and those that failed. The sweep's driver alone writes it, whole, as things happen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from pipelines.config import Config, ConfigError, Train
from pipelines.config.values import slug
from pipelines.runs import directory
from pipelines.runs.directory import RunDir
from pipelines.study import trainings
from pipelines.study.trainings import adapter_key


@dataclass
class Record:
    """The content of `sweep.json`; trials go by their adapters' keys."""

    drawn: list[list[dict[str, Any]]] = field(default_factory=list)
    """Settings of the trials of a search, by generations."""
    exhausted: bool = False
    """Whether a search has drawn all that there is, before its trials were that many."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Why a scheduler stopped a trial."""
    errored: dict[str, str] = field(default_factory=dict)
    """Why a trial failed."""

    def write(self, config: Config) -> None:
        directory.write_json(RunDir.of(config).sweep, asdict(self))


def read(config: Config) -> Record:
    """The run's record; an empty one where no sweep has begun. ConfigError where it cannot be read."""
    return Record(**trainings.read_sweep(config))


@dataclass(frozen=True)
class Group:
    """The trainings that a study compares: the tuned one and those that differ from it, in their KL weights or, where
    a search drew them, in other settings too."""

    tuned: Train
    others: tuple[Train, ...]

    @property
    def name(self) -> str:
        return f"{setting_name(self.tuned)}-s{self.tuned.seed}"


def setting_name(train: Train) -> str:
    """A study's name but for its seed, as fragile-k1 or fragile-k1-lr0.0003."""
    return f"{slug(train.reward)}-k{train.k}" + (f"-{train.label}" if train.label else "")


def groups(config: Config) -> list[Group]:
    """A group a study. Trainings that failed or were stopped are left out, and a study whose tuned one did."""
    record = read(config)
    left_out = {*record.errored, *record.stopped}
    sweep = config.sweep
    shared = (sweep.rewards, sweep.ks, *trainings.learning(config), sweep.train_seeds)
    if sweep.search != "grid":
        shared = (sweep.rewards, sweep.ks, (config.train.lr,), (config.train.rank,), sweep.train_seeds)
    every = trainings.trainings(config)
    found = []
    for reward, k, lr, rank, seed in product(*shared):
        tuned = trainings.training(config, reward=reward, k=k, kl_weight=0.0, lr=lr, rank=rank, seed=seed)
        others = [other for other in every if other != tuned and _belongs(config, other, tuned)]
        if adapter_key(tuned) not in left_out:
            others.sort(key=lambda other: (other.kl_weight, other.lr, other.rank))
            found.append(Group(tuned, tuple(other for other in others if adapter_key(other) not in left_out)))
    return found


def _belongs(config: Config, other: Train, tuned: Train) -> bool:
    shared = ("reward", "k", "seed") if config.sweep.search != "grid" else ("reward", "k", "seed", "lr", "rank")
    return all(getattr(other, name) == getattr(tuned, name) for name in shared)


def words(config: Config, train: Train) -> str:
    """Learning rate and rank of a study in words, where a grid varies them; else empty."""
    sweep = config.sweep
    if sweep.search != "grid":
        return ""
    said = [f"learning rate {train.lr:g}"] * (len(sweep.lrs) > 1) + [f"rank {train.rank}"] * (len(sweep.ranks) > 1)
    return ", ".join(said)


def draws(config: Config, record: Record) -> bool:
    """Whether the sweep is a search that has trials left to draw."""
    count = sum(map(len, record.drawn))
    return config.sweep.search != "grid" and count < config.sweep.trials and not record.exhausted


def left_out(config: Config) -> list[str]:
    """What an evaluation leaves out, a line each."""
    record = read(config)
    told = {"failed": record.errored, "was stopped": record.stopped}
    return [f"left out, since its training {what}: {key}" for what, found in told.items() for key in found]


def check_drawn(config: Config) -> None:
    """ConfigError where a search has trials left to draw, or nothing is left to compare."""
    record = read(config)
    if draws(config, record):
        count = sum(map(len, record.drawn))
        raise ConfigError(
            f"the search has drawn {count} of {config.sweep.trials} trials: run `python -m pipelines sweep` with the "
            f"same configuration first, or give sweep.trials={count}"
        )
    if trainings.trainings(config) and not groups(config):
        raise ConfigError(
            "no adapter with KL weight 0 is left to compare with, since their trainings failed "
            f"({'; '.join(record.errored.values())}): mend that and run `python -m pipelines sweep --retry-errored`"
        )
