"""Drawing the trials of a search, a generation at a time.

Every generation is drawn by a sampler of its own, which is told all trials before it and what they came to. So a
generation depends on the seed and on storage alone, and a search that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pipelines.config import Config, ConfigError, Train
from pipelines.study import trainings
from pipelines.study.trainings import adapter_key
from pipelines.study.trials import Record
from tune.sweep import space

# So often is a trial that is known already drawn again, until there seem to be no others.
TRIES = 50


def draw(config: Config, record: Record) -> list[Train]:
    """The next generation of a search, written into the record; empty where `sweep.trials` are drawn or no others are.

    Call it when every trial before it has ended.
    """
    sweep, known = config.sweep, {adapter_key(train) for train in trainings.trainings(config)}
    left = sweep.trials - sum(map(len, record.drawn))
    if left <= 0 or record.exhausted:
        return []
    searcher = _informed(config, record)
    found: list[dict[str, Any]] = []
    wanted = left if sweep.search == "random" else min(sweep.generation, left)
    for number in range(TRIES * wanted):
        settings = space.settings(config, searcher.suggest(f"new-{number}") or {})
        key = adapter_key(trainings.training(config, **settings))
        if key not in known:
            known.add(key)
            found.append(settings)
        if len(found) == wanted:
            break
    record.exhausted = len(found) < wanted
    if found:
        record.drawn.append(found)
    record.write(config)
    return [trainings.training(config, **settings) for settings in found]


def _informed(config: Config, record: Record) -> OptunaSearch:
    """Optuna's study of the trials so far; one that failed counts as failed, one that was stopped by where it stood."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names, distributions = list(config.sweep.objectives), space.space(config)
    if not distributions:
        raise ConfigError(
            "sweep.search has nothing to draw: give a range (sweep.lr_range, sweep.kl_range) or several values in "
            "sweep.kl_weights, sweep.lrs, sweep.ranks, sweep.ks or sweep.rewards"
        )
    before = [settings for generation in record.drawn for settings in generation]
    searcher = OptunaSearch(
        distributions, metric=names, mode=["max"] * len(names),
        points_to_evaluate=[{name: settings[name] for name in distributions} for settings in before],
        sampler=space.sampler(config, len(record.drawn)),
    )  # fmt: skip
    for number, settings in enumerate(before):
        single = replace(config, train=trainings.training(config, **settings))
        searcher.suggest(str(number))
        values = None if adapter_key(single.train) in record.errored else objectives(single)
        searcher.on_trial_complete(str(number), values, error=values is None)
    return searcher


def objectives(config: Config) -> dict[str, float] | None:
    """What the training `config.train` came to, by the validation of its adapter; None where it has none or it is not
    finite."""
    rows = trainings.standings(config)
    values = [rows[-1].get(name) for name in config.sweep.objectives] if rows else []
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    return dict(zip(config.sweep.objectives, finite, strict=True)) if len(finite) == len(values) > 0 else None


class Queue(Searcher):
    """Hands Tune the trainings that are left and, of a search, the generations after them, each when all have ended."""

    def __init__(self, config: Config, record: Record, first: Sequence[Train], drawing: bool) -> None:
        super().__init__(metric="reward", mode="max")  # required, and not looked at here
        self.config, self.record, self.drawing = config, record, drawing
        self.waiting, self.running = list(first), dict[str, str]()
        self.failed: list[str] = []
        self.keys = [adapter_key(train) for train in first]
        """Of everything that was handed out or waits; it grows."""

    def suggest(self, trial_id: str) -> Any:
        if not self.waiting and self.running:
            # A generation learns from the whole one before it; Tune asks again.
            return None if self.drawing else Searcher.FINISHED
        # What failed without being recorded was only interrupted, and comes before what would learn from it.
        if not self.waiting and self.drawing and all(key in self.record.errored for key in self.failed):
            self.waiting = draw(self.config, self.record)
            self.keys += map(adapter_key, self.waiting)
        if not self.waiting:
            return Searcher.FINISHED
        train = self.waiting.pop(0)
        self.running[trial_id] = adapter_key(train)
        names = ("reward", "k", "kl_weight", "lr", "rank", "seed")
        return {"adapter": adapter_key(train), **{name: getattr(train, name) for name in names}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key = self.running.pop(trial_id)
        if error:
            self.failed.append(key)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""
