"""Links between trials and Tune: their reports, the record of how they end, and the scheduler that stops them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from pipelines.cluster import errors
from pipelines.cluster.connect import remove_orphans
from pipelines.config import Config, Train
from pipelines.runs.directory import RunDir
from pipelines.study import trainings
from pipelines.study.trainings import adapter_key
from pipelines.study.trials import Record

LOOK_SECONDS = 2.0
CLEAN_SECONDS = 30.0


class Reports(TuneReportCallback):
    """Passes a training's reports to Tune as results with flat names: step, reward, held_out, gold, kl, ..."""

    def __init__(self, train: Train) -> None:
        super().__init__()
        self.every, self.steps = train.validate_every, train.steps

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        # A report between two validations repeats the values of the earlier one.
        step = metrics[0].get("step", 0)
        if step % self.every == 0 or step == self.steps:
            super().after_report(run_context, [flat(metrics[0])], checkpoint)


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a report, by the names that Tune's tables and TensorBoard show."""
    numbers = {
        name: value for name, value in metrics.items() if isinstance(value, (int, float)) and math.isfinite(value)
    }
    if "kl_to_base" in numbers:
        numbers["kl"] = numbers.pop("kl_to_base")
    return {**numbers, "timesteps_total": numbers["step"]}  # TensorBoard's x axis


class Keep(tune.Callback):
    """Records what only Tune knows of the trials: errors, and what a scheduler stopped."""

    def __init__(self, config: Config, record: Record, stopped: Collection[str] = ()) -> None:
        """`stopped`: the live set of ids of trials that a scheduler stopped."""
        self.config, self.record, self.stopped = config, record, stopped
        self.looked = 0.0
        self.ended = False
        """Whether a trial was stopped or failed, and so may have left workers behind."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.ended and time.monotonic() - self.looked > LOOK_SECONDS:
            remove_orphans()
            self.looked = time.monotonic()

    def clean(self) -> None:
        """After the last trial, wait for at most CLEAN_SECONDS until stopped trainings hold no resources."""
        deadline = time.monotonic() + CLEAN_SECONDS
        while self.ended and remove_orphans() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 4)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended = True
        error = _error(trial)
        # A trial whose driver or controller died with its node is only interrupted.
        if not isinstance(error, RayActorError) and not isinstance(getattr(error, "cause", None), RayActorError):
            self.record.errored[trial.config["adapter"]] = errors.root_cause(error)
            self.record.write(self.config)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        from pipelines.train.records import is_finished  # with torch, which the trials' drivers do not need

        files, key = RunDir.of(self.config), trial.config["adapter"]
        files.pull(files.adapters, key, f"{key}@*")
        files.pull(files.curves / f"{key}.jsonl")
        if is_finished(replace(self.config, train=trained(self.config, trial.config))):
            return
        step, proxy = trial.last_result.get("step", 0), self.config.sweep.proxy
        if trial.trial_id in self.stopped:
            self.ended = True
            value = trial.last_result.get(proxy, math.nan)
            self.record.stopped[key] = f"ASHA stopped it at step {step}: {proxy} {value:.4g} was behind"
        else:
            self.record.errored[key] = (
                f"it ended at step {step}, and its curve, its adapter or a snapshot in "
                f"{files.shown(files.adapters / key)} is missing or not what this configuration makes: if files of "
                "the model or a reward changed meanwhile, delete the folder, and give the same command with "
                "--retry-errored"
            )
        self.record.write(self.config)


def _error(trial: Any) -> BaseException:
    """A trial's error, from the files that Tune has just written in this process; storage gets them later."""
    if trial.pickled_error_file:
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return RuntimeError(Path(trial.error_file).read_text())


def trained(config: Config, parameters: dict[str, Any]) -> Train:
    """The training of a trial with these parameters."""
    return trainings.training(config, **{name: parameters[name] for name in trainings.SWEPT})


class Asha(ASHAScheduler):
    """ASHA (Li et al. 2020) that knows the curves of earlier trainings and notes which trials it stops.

    It judges by the last step but one at the latest: stopping a training that has just ended saves nothing.
    """

    def __init__(self, config: Config) -> None:
        sweep, settings = config.sweep, config.train
        super().__init__(
            time_attr="step", metric=sweep.proxy, mode="max", max_t=settings.steps - 1, stop_last_trials=False,
            grace_period=sweep.grace * settings.validate_every, reduction_factor=sweep.reduction,
        )  # fmt: skip
        self.stopped: set[str] = set()
        """Ids of the stopped trials."""
        for train in trainings.trainings(config):
            before: Any = SimpleNamespace(trial_id=adapter_key(train))
            self.on_trial_add(None, before)  # type: ignore[arg-type]
            for row in trainings.standings(replace(config, train=train)):
                self.on_trial_result(None, before, flat(row))  # type: ignore[arg-type]
        self.stopped.clear()  # none of these is running

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.trial_id)
        return decision


def scheduler(config: Config) -> TrialScheduler:
    """The scheduler of `config.sweep`."""
    return FIFOScheduler() if config.sweep.scheduler == "none" else Asha(config)
