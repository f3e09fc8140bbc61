"""The sweep: Ray Tune over its settings, each trial a Ray Train run of its own.

A trial whose adapter is there, made by the same configuration, is not run again; one that was interrupted goes on from
its last checkpoint. So the same command resumes a sweep, without Tune's restore, which would fix the list of trials.
One that failed, or that a scheduler stopped, is left as it is; those that failed are run again on request.
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
    """What a sweep came to."""

    rows: list[dict[str, Any]]
    """A row a finished adapter: see `result_row`."""
    record: Record
    missing: list[str]
    """Trainings that were to be run and have not ended."""

    def check(self) -> None:
        """SweepError where trials failed, whenever that was, or were interrupted without this process."""
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
    """Train every adapter of the sweep that is not there yet, or with `retry_errored` those alone that failed before.

    `connect` connects to Ray, and is called where something is left to train. Raises ConfigError where one training
    needs more than the cluster could ever give.
    """
    # The trials' drivers import this module too, and need nothing of the model's libraries.
    from pipelines.train.records import is_finished

    def there(train: Train) -> bool:
        return is_finished(replace(config, train=train))

    record, wanted = trials.read(config), trainings.trainings(config)
    missing = {adapter_key(train): train for train in wanted if not there(train)}
    record.errored = {key: reason for key, reason in record.errored.items() if key in missing}
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} adapters are there already.")
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
    """Trainings at once: as many as asked for, and as the cluster has room for; ConfigError where that is none."""
    room = room_for(config, cluster, driver_cpus=DRIVER_CPUS)
    return min(room, config.sweep.max_concurrent)


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
    for key in record.stopped:  # its checkpoints: none will go on from them
        checkpoints.discard(files, files.checkpoints(key))


def trial(parameters: dict[str, Any]) -> None:
    """What a Tune trial runs: one training, whose validations become the trial's results."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    config = configuration.from_dict(parameters["config"])
    single = replace(config, train=watch.trained(config, parameters))
    train(single, callbacks=[watch.Reports(single.train)])


def result_row(config: Config) -> dict[str, Any]:
    """What a finished training came to: the points of its curves at its adapter's step and at the start.

    Where a guard has stopped it, `stopped` says so in words.
    """
    key, found, step = trainings.adapter_key(config.train), trainings.stopped(config), trainings.last_step(config)
    rows = {row["step"]: row for row in trainings.curve(config)}
    return {"adapter": key, **rows[step], "start": rows[0], "stopped": found and limits.describe_stop(found)}


def table(rows: list[dict[str, Any]]) -> str:
    """The adapters with their rewards, gold, accuracy and diversity before and after, and their distance to the base
    (the path KL in nats where sampling is stochastic, else the eps_mse path length), as text."""
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
    """Trainings that failed or were stopped, each with its reason, as text; empty where there are none."""
    told = [("failed", record.errored), ("stopped", record.stopped)]
    return "\n".join(f"{what}: {key}: {reason}" for what, found in told for key, reason in found.items())


def _name(trial: Any) -> str:
    return trial.config["adapter"]
