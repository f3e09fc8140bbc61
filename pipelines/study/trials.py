"""What became of a sweep's trials, and which of them are compared: read without torch and Ray.

The adapters say which trainings are done. `sweep.json` says the rest: which trials a search drew, a scheduler stopped
or failed. Only the sweep's driver writes it, as things happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from pipelines.config import Config, ConfigError, Train
from pipelines.config.values import slug
from pipelines.runs.directory import RunDir
from pipelines.show.program import command_line
from pipelines.study import limits, trainings
from pipelines.study.trainings import adapter_key


@dataclass
class Record:
    """The content of `sweep.json`; trials are named by their adapters' keys."""

    drawn: list[list[dict[str, Any]]] = field(default_factory=list)
    """Settings of the trials of a search, by generations."""
    exhausted: bool = False
    """Whether a search ran out of settings before it had drawn all its trials."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Why a scheduler stopped a trial."""
    errored: dict[str, str] = field(default_factory=dict)
    """Why a trial failed."""

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Settings of all drawn trials, in their order."""
        return [settings for generation in self.drawn for settings in generation]

    def write(self, config: Config) -> None:
        run = RunDir.of(config)
        run.write_json(run.sweep, asdict(self))


def read(config: Config) -> Record:
    """The run's record; an empty one if no sweep has begun. ConfigError if it cannot be read."""
    return Record(**trainings.read_sweep(config))


@dataclass(frozen=True)
class Group:
    """The trainings that a study compares: the tuned one and those that differ from it, in their KL weights or, if a
    search drew them, in other settings too."""

    tuned: Train
    others: tuple[Train, ...]

    @property
    def name(self) -> str:
        return f"{setting_name(self.tuned)}-s{self.tuned.seed}"


@dataclass(frozen=True)
class Trials:
    """The trainings of a run and what became of them, read once."""

    config: Config
    trainings: tuple[Train, ...]
    record: Record
    stopped: Mapping[str, Mapping[str, Any]]
    """The adapter's record, by key, of each training that a guard stopped."""

    @classmethod
    def of(cls, config: Config) -> Trials:
        """Read the sweep's record and those of the adapters; ConfigError if the first cannot be read."""
        record = read(config)
        planned = tuple(trainings.trainings(config, record.settings))
        stops = {adapter_key(train): trainings.stopped(replace(config, train=train)) for train in planned}
        return cls(config, planned, record, {key: stop for key, stop in stops.items() if stop is not None})

    def groups(self) -> list[Group]:
        """One group per study, without trainings that failed or were stopped by a scheduler; no group without its tuned
        one."""
        left_out = {*self.record.errored, *self.record.stopped}
        config, sweep = self.config, self.config.sweep
        lrs, ranks = trainings.learning(config)
        if sweep.search != "grid":
            lrs, ranks = (config.train.lr,), (config.train.rank,)
        groups = []
        for reward, k, lr, rank, seed in product(sweep.rewards, sweep.ks, lrs, ranks, sweep.train_seeds):
            tuned = trainings.training(config, reward=reward, k=k, kl_weight=0.0, lr=lr, rank=rank, seed=seed)
            if adapter_key(tuned) in left_out:
                continue
            others = [other for other in self.trainings if other != tuned and _belongs(config, other, tuned)]
            others.sort(key=lambda other: (other.drawn_kl, other.kl_weight, other.lr, other.rank))
            groups.append(Group(tuned, tuple(other for other in others if adapter_key(other) not in left_out)))
        return groups

    def notes(self) -> list[str]:
        """What an evaluation leaves out and which trainings a guard stopped, one line each."""
        reasons = {"failed": self.record.errored, "was stopped": self.record.stopped}
        lines = [f"left out, since its training {what}: {key}" for what, keys in reasons.items() for key in keys]
        for train in self.trainings:
            if (stop := self.stopped.get(key := adapter_key(train))) is None:
                continue
            later = [step for step in early_stops(self.config) if step > stop["step"] and train.kl_weight == 0]
            missing = f"; left out: {', '.join(f'stop at {step}' for step in later)}" if later else ""
            lines.append(f"{key}: {limits.describe_stop(stop)}{missing}")
        return lines

    def check_drawn(self) -> None:
        """ConfigError if a search has trials left to draw, or nothing is left to compare."""
        if draws(self.config, self.record):
            count = len(self.record.settings)
            raise ConfigError(
                f"the search has drawn {count} of {self.config.sweep.trials} trials: run `{command_line('sweep')}` "
                f"with the same configuration first, or give sweep.trials={count}"
            )
        if self.trainings and not self.groups():
            raise ConfigError(
                "no adapter with KL weight 0 is left to compare with, since their trainings failed "
                f"({'; '.join(self.record.errored.values())}): mend that and run "
                f"`{command_line('sweep', '--retry-errored')}`"
            )


def early_stops(config: Config) -> Sequence[int]:
    """The snapshots that are arms; ConfigError for one that no training keeps."""
    kept, asked = trainings.snapshot_steps(config), config.evaluate.early_stops
    for step in asked or ():
        if step not in kept:
            raise ConfigError(f"evaluate.early_stops: there is no snapshot of step {step}: choose among {kept}")
    return kept if asked is None else asked


def setting_name(train: Train) -> str:
    """A study's name but for its seed, as fragile-k1 or fragile-k1-lr0.0003."""
    return f"{slug(train.reward)}-k{train.k}" + (f"-{train.label}" if train.label else "")


def _belongs(config: Config, other: Train, tuned: Train) -> bool:
    shared = ("reward", "k", "seed") if config.sweep.search != "grid" else ("reward", "k", "seed", "lr", "rank")
    return all(getattr(other, name) == getattr(tuned, name) for name in shared)


def varied_settings(config: Config, train: Train) -> dict[str, float]:
    """Learning rate and rank of a study if a grid varies them."""
    sweep = config.sweep
    if sweep.search != "grid":
        return {}
    varied = {"lr": len(sweep.lrs) > 1, "rank": len(sweep.ranks) > 1}
    return {name: getattr(train, name) for name, several in varied.items() if several}


def draws(config: Config, record: Record) -> bool:
    """Whether the sweep is a search that has trials left to draw."""
    return config.sweep.search != "grid" and len(record.settings) < config.sweep.trials and not record.exhausted
