"""Training one adapter: a Ray Train `TorchTrainer` around the worker of `pipelines.training`.

Everything random comes from (seed, step, index of the sample in the global batch), so a replayed step gives the same
bits and any number of workers the same adapter. A worker that dies is replaced and goes on from the last checkpoint.
The same command resumes what was interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines import checkpoints, demands, layout, remote
from pipelines import config as configuration
from pipelines.cluster import Cluster
from pipelines.config import Config
from pipelines.layout import RunFiles, adapter_key


def train(config: Config, callbacks: Sequence[Any] = ()) -> Path:
    """Train the adapter of `config.train`, or finish what was begun; returns its folder. Ray must be connected.

    `callbacks` are Ray Train's. Raises ray.train.TrainingFailedError where a worker fails more often than allowed.
    """
    files, key, settings = RunFiles(config.directory), adapter_key(config.train), config.train
    (least, most), storage = settings.workers, files.checkpoints(key)
    checkpoints.begin(storage)
    layout.forget(files.progress / f"{key}.json")  # an interrupted one's would be shown until the first step
    trainer = TorchTrainer(
        worker,
        train_loop_config={"config": configuration.to_dict(config)},
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=dict(demands.training(config).one),
        ),
        run_config=RunConfig(
            name=key,
            storage_path=remote.storage_path(storage.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.num_to_keep),
            callbacks=list(callbacks),
        ),
    )
    _interruptibly(trainer.fit)
    checkpoints.discard(storage)
    return files.adapters / key


def room_for(config: Config, cluster: Cluster, driver_cpus: float = 0.0) -> int:
    """How many trainings the cluster has room for at once; ConfigError, at once, where it never could run one."""
    return cluster.room(demands.training(config, driver_cpus))


def _interruptibly(function: Callable[[], Any]) -> None:
    """Call from another thread: in the main one Ray Train would replace our handler of Ctrl-C by its own, for good."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def worker(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    # Imported here, so that the processes that only launch and watch a training do not load the model's libraries.
    from pipelines.training import run

    run(configuration.from_dict(loop_config["config"]))
