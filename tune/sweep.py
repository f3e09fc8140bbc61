"""The sweep: Ray Tune over rewards, K, KL weights and training seeds, each trial a Ray Train run of its own.

A trial whose adapter is there, made by the same configuration, is not run again; one that was interrupted goes on from
its last checkpoint. So the same command resumes a sweep, without Tune's restore, which would fix the list of trials.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines import config as configuration
from pipelines import guards, layout, progress
from pipelines.cluster import Cluster
from pipelines.config import Config
from pipelines.layout import RunFiles
from pipelines.train import room_for, train
from tune.space import grid

# A trial's driver only waits for its training. Tune refuses 0, and 1 would take the CPUs that workers need: a deadlock.
DRIVER_CPUS = 0.01


class SweepError(RuntimeError):
    """Some trials failed; the message names them and their reasons."""


def sweep(config: Config, connect: Callable[[], Cluster]) -> list[dict[str, Any]]:
    """Train every adapter of the sweep that is not there yet; returns a row an adapter, finished ones included.

    `connect` connects to Ray, and is called where something is left to train.

    Raises ConfigError where one training needs more than the whole cluster, SweepError where trials failed.
    """
    # The trials' drivers import this module too, and need nothing of the model's libraries.
    from pipelines.study import is_finished

    configs = {layout.adapter_key(train): replace(config, train=train) for train in layout.trainings(config)}
    missing = [key for key, single in configs.items() if not is_finished(single)]
    if len(missing) < len(configs):
        print(f"{len(configs) - len(missing)} of {len(configs)} adapters are there already.")
    if missing:
        _run_trials(config, missing, concurrency(config, connect()))
    return [result_row(single) for single in configs.values()]


def concurrency(config: Config, cluster: Cluster) -> int:
    """Trainings at once: as many as asked for, and as the cluster has room for; ConfigError where that is none."""
    room = room_for(config, cluster, driver_cpus=DRIVER_CPUS)
    return min(room, config.sweep.max_concurrent)


def _run_trials(config: Config, keys: list[str], at_once: int) -> None:
    files = RunFiles(config.directory)
    for key in keys:
        (files.progress / f"{key}.json").unlink(missing_ok=True)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": DRIVER_CPUS}),
        param_space={"config": configuration.to_dict(config), **grid(config, keys)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once, trial_name_creator=_name, trial_dirname_creator=_name
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(files.ray), verbose=0),
    )
    with progress.trainings(files.progress, keys):
        results = tuner.fit()
    failed = {key: error for key, error in _errors(results).items()}
    if failed:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in failed.items())
        raise SweepError(
            f"{len(failed)} of {len(keys)} trainings failed ({reasons}): the same command tries them again"
        )


def trial(parameters: dict[str, Any]) -> None:
    """What a Tune trial runs: one training, whose reports become the trial's."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    config = configuration.from_dict(parameters["config"])
    settings = {layout.adapter_key(each): each for each in layout.trainings(config)}
    train(replace(config, train=settings[parameters["adapter"]]), callbacks=[TuneReportCallback()])


def result_row(config: Config) -> dict[str, Any]:
    """What a finished training came to: the points of its curves at its adapter's step and at the start.

    Where a guard has stopped it, `stopped` says so in words.
    """
    key, found, step = layout.adapter_key(config.train), layout.stopped(config), layout.last_step(config)
    lines = (RunFiles(config.directory).curves / f"{key}.jsonl").read_text().splitlines()
    rows = {row["step"]: row for row in map(json.loads, lines)}
    return {"adapter": key, **rows[step], "start": rows[0], "stopped": found and guards.told(found)}


def table(rows: list[dict[str, Any]]) -> str:
    """The adapters with their rewards, gold, accuracy and diversity before and after, and their distance to the base
    (the path KL in nats where sampling is stochastic, else the eps_mse path length), as text."""
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


def _name(trial: Any) -> str:
    return trial.config["adapter"]


def _errors(results: tune.ResultGrid) -> dict[str, str]:
    return {
        result.config["adapter"]: progress.root_cause(result.error)
        for result in results
        if result.error is not None and result.config
    }
