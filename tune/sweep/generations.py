"""Draws the trials of a search, one generation at a time.

Each generation has a new sampler, in a study that holds all earlier trials and their values. So it depends on the seed
and on storage alone, and an interrupted search goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from pipelines.config import Config, ConfigError, Train
from pipelines.study import trainings
from pipelines.study.trainings import adapter_key
from pipelines.study.trials import Record
from tune.sweep import space

# Draws per trial before the space counts as exhausted, if too few of them are new.
TRIES = 50


def draw(config: Config, record: Record) -> list[Train]:
    """Draw the next generation and write it into the record; empty if `sweep.trials` or the whole space are drawn.

    Call it when every earlier trial has ended.
    """
    sweep, known = config.sweep, {adapter_key(train) for train in trainings.trainings(config)}
    left = sweep.trials - len(record.settings)
    if left <= 0 or record.exhausted:
        return []
    history, distributions = study(config, record), space.space(config)
    drawn: list[dict[str, Any]] = []
    count = left if sweep.search == "random" else min(sweep.generation, left)
    for _ in range(TRIES * count):
        settings = space.settings(config, history.ask(distributions).params)
        key = adapter_key(trainings.training(config, **settings))
        if key not in known:
            known.add(key)
            drawn.append(settings)
        if len(drawn) == count:
            break
    record.exhausted = len(drawn) < count
    if drawn:
        record.drawn.append(drawn)
    record.write(config)
    return [trainings.training(config, **settings) for settings in drawn]


def study(config: Config, record: Record) -> optuna.Study:
    """Optuna's study of all trials so far, with the sampler of the next generation.

    A trial that a scheduler stopped has its last values; one without values has failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = space.space(config)
    if not distributions:
        raise ConfigError(
            "sweep.search has nothing to draw: give a range (sweep.lr_range, sweep.kl_range) or several values in "
            "sweep.kl_weights, sweep.lrs, sweep.ranks, sweep.ks or sweep.rewards"
        )
    directions = [StudyDirection.MAXIMIZE] * len(config.sweep.objectives)
    history = optuna.create_study(directions=directions, sampler=space.sampler(config, len(record.drawn)))
    for settings in record.settings:
        single = replace(config, train=trainings.training(config, **settings))
        values = None if adapter_key(single.train) in record.errored else objectives(single)
        params = {name: settings[name] for name in distributions}
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        history.add_trial(create_trial(state=state, values=values, params=params, distributions=distributions))
    return history


def objectives(config: Config) -> list[float] | None:
    """The values of `sweep.objectives` that the adapter of `config.train` reached; None unless all are finite."""
    rows = trainings.standings(config)
    values = [rows[-1].get(name) for name in config.sweep.objectives] if rows else []
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    return finite if len(finite) == len(values) > 0 else None


class Queue(Searcher):
    """Hands Tune the trainings that are left, then a search's generations, each after the one before has ended."""

    def __init__(self, config: Config, record: Record, first: Sequence[Train], drawing: bool) -> None:
        super().__init__(metric="reward", mode="max")  # required, not used
        self.config, self.record, self.drawing = config, record, drawing
        self.waiting, self.running = list(first), dict[str, str]()
        self.failed: list[str] = []
        self.keys = [adapter_key(train) for train in first]
        """Keys of all trainings so far; a search adds to it."""

    def suggest(self, trial_id: str) -> Any:
        if not self.waiting and self.running:
            # A generation learns from all of the one before; Tune asks again.
            return None if self.drawing else Searcher.FINISHED
        # A failure that is not recorded was an interruption: that trial is run again before others learn from it.
        if not self.waiting and self.drawing and all(key in self.record.errored for key in self.failed):
            self.waiting = draw(self.config, self.record)
            self.keys += map(adapter_key, self.waiting)
        if not self.waiting:
            return Searcher.FINISHED
        train = self.waiting.pop(0)
        self.running[trial_id] = adapter_key(train)
        return {"adapter": adapter_key(train), **{name: getattr(train, name) for name in trainings.SWEPT}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key = self.running.pop(trial_id)
        if error:
            self.failed.append(key)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, as `save`."""
