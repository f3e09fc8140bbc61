"""The sweep: Ray Tune over its settings, each trial a Ray Train run of its own.

A trial is not run again if its adapter is there, made by the same configuration; an interrupted one goes on from its
last checkpoint. So the same command resumes a sweep, without Tune's restore, which would fix the list of trials. Trials
that failed, or that a scheduler stopped, are left alone; failed ones are run again on request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray import tune

from pipelines import config as configuration
from pipelines.cluster.connect import Cluster
from pipelines.config import Config, ConfigError, RunError, Train
from pipelines.runs.directory import RunDir
from pipelines.show import progress
from pipelines.study import limits, trainings, trials
from pipelines.study.trainings import adapter_key
from pipelines.study.trials import Record
from pipelines.train import checkpoints
from pipelines.train.launch import room_for, train
from tune.sweep import watch
from tune.sweep.generations import Queue

# A trial's driver only waits for its training. Tune refuses 0, and 1 would take the CPUs that workers need: a deadlock.
DRIVER_CPUS = 0.01


class SweepError(RunError):
    """Some trials failed; the message says how many and how to go on."""


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep."""

    rows: list[dict[str, Any]]
    """One row per finished adapter: see `result_row`."""
    record: Record
    missing: list[str]
    """Keys of trainings that have not ended."""

    def check(self) -> None:
        """SweepError if trials failed, now or earlier, or were interrupted."""
        if self.missing:
            raise SweepError(
                f"{len(self.missing)} trainings were interrupted, as their processes or nodes died "
                f"({', '.join(self.missing)}): the same command goes on with them"
            )
        if count := len(self.record.errored):
            of = count + len(self.rows) + len(self.record.stopped)
            raise SweepError(
                f"{count} of {of} trainings failed, as listed above: mend the cause and give the same command with "
                "--retry-errored, or go on with evaluate, which leaves them out"
            )


def sweep(config: Config, connect: Callable[[], Cluster], retry_errored: bool = False) -> Outcome:
    """Train every missing adapter of the sweep, or with `retry_errored` only those that failed before.

    `connect` connects to Ray if something is left to train. Raises ConfigError if one training needs more than the
    cluster could ever give.
    """
    # Imported here: the trials' drivers import this module too, and need no model libraries.
    from pipelines.train.records import is_finished

    def there(train: Train) -> bool:
        return is_finished(replace(config, train=train))

    record, planned = trials.read(config), trainings.trainings(config)
    missing = {adapter_key(train): train for train in planned if not there(train)}
    record.errored = {key: reason for key, reason in record.errored.items() if key in missing}
    if len(missing) < len(planned):
        print(f"{len(planned) - len(missing)} of {len(planned)} adapters are there already.")
    ended = {*record.errored, *record.stopped}
    if retry_errored:
        chosen, record.errored = [missing[key] for key in record.errored], {}
        print(f"{len(chosen)} trainings that failed before are run again.")
    else:
        chosen = [train for key, train in missing.items() if key not in ended]
    drawing = not retry_errored and trials.draws(config, record)
    if chosen or drawing:
        _run_trials(config, record, chosen, drawing, connect())
    done = {adapter_key(train): train for train in trainings.trainings(config) if there(train)}
    rows = [result_row(replace(config, train=train)) for train in done.values()]
    ended = {*done, *record.errored, *record.stopped}
    asked = map(adapter_key, chosen if retry_errored else trainings.trainings(config))
    return Outcome(rows, record, [key for key in asked if key not in ended])


def concurrency(config: Config, cluster: Cluster) -> int:
    """Trainings at once: as many as fit into the cluster, at most `sweep.max_concurrent`; ConfigError if none fits."""
    return min(room_for(config, cluster, driver_cpus=DRIVER_CPUS), config.sweep.max_concurrent)


def _run_trials(config: Config, record: Record, first: Sequence[Train], drawing: bool, cluster: Cluster) -> None:
    files, at_once = RunDir.of(config), concurrency(config, cluster)
    if config.sweep.scheduler != "none" and cluster.dashboard is None:
        raise ConfigError(
            "sweep.scheduler=asha needs the cluster's dashboard, without which Ray leaves the workers of a stopped "
            "trial behind: start Ray with it (pip install 'ray[default]'), or take sweep.scheduler=none"
        )
    for each in first:
        files.forget(files.progress / f"{adapter_key(each)}.json")
    record.write(config)
    queue, scheduler = Queue(config, record, first, drawing), watch.scheduler(config)
    keep = watch.Keep(config, record, getattr(scheduler, "stopped", ()))
    storage = files.storage_path(files.ray)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": DRIVER_CPUS}),
        param_space={"config": configuration.to_dict(config)},
        tune_config=tune.TuneConfig(
            search_alg=queue, num_samples=-1, scheduler=scheduler,
            max_concurrent_trials=at_once, trial_name_creator=_name, trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0, callbacks=[keep]),
    )  # fmt: skip
    with progress.trainings(files.progress, queue.keys, partial(files.glance, files.progress)):
        tuner.fit()
    keep.clean()
    files.pull(files.root, files.adapters.name, files.curves.name)
    for key in record.stopped:  # no training will go on from these checkpoints
        checkpoints.discard(files, files.checkpoints(key))


def trial(parameters: dict[str, Any]) -> None:
    """A Tune trial: one training, whose validations become the trial's results."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    config = configuration.from_dict(parameters["config"])
    single = replace(config, train=watch.trained(config, parameters))
    train(single, callbacks=[watch.Reports(single.train)])


def result_row(config: Config) -> dict[str, Any]:
    """A finished training's validations at its adapter's step and at the start.

    `stopped` says in words how a guard stopped it, or is None.
    """
    key, stop, step = trainings.adapter_key(config.train), trainings.stopped(config), trainings.last_step(config)
    rows = {row["step"]: row for row in trainings.curve(config)}
    return {"adapter": key, **rows[step], "start": rows[0], "stopped": stop and limits.describe_stop(stop)}


def table(rows: list[dict[str, Any]]) -> str:
    """The adapters as text: rewards, gold, accuracy and diversity before and after, and distance to the base.

    The distance is the path KL in nats if sampling is stochastic, else the eps_mse path length.
    """
    if not rows:
        return "No adapter is finished."
    distance, title = ("kl_to_base", "KL, nats") if "kl_to_base" in rows[0] else ("path", "path")
    names = ("reward", "held_out", "gold", "accuracy", "diversity")
    width = max(len(row["adapter"]) for row in rows)
    lines = [
        f"{'adapter':<{width}}  steps  "
        + "".join(f"{name.replace('_', ' '):^18}" for name in names)
        + f"{title:<10}seconds"
    ]
    for row in rows:
        cells = "".join(f"{_change(row['start'].get(name), row.get(name)):^18}" for name in names)
        lines.append(f"{row['adapter']:<{width}}  {row['step']:>5}  {cells}{row[distance]:<10.2g}{row['seconds']:.0f}")
    lines += [f"{row['adapter']}: {row['stopped']}" for row in rows if row.get("stopped")]
    return "\n".join(lines)


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.2f} → {after:.2f}"


def ended(record: Record) -> str:
    """Failed and stopped trainings with their reasons, one line each; empty if there are none."""
    groups = [("failed", record.errored), ("stopped", record.stopped)]
    return "\n".join(f"{state}: {key}: {reason}" for state, reasons in groups for key, reason in reasons.items())


def _name(trial: Any) -> str:
    return trial.config["adapter"]
