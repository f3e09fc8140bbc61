"""Trains one adapter: a Ray Train `TorchTrainer` around the worker of `pipelines.train.worker`.

Everything random comes from (seed, step, index of the sample in the global batch), so a replayed step gives the same
bits and any number of workers the same adapter. A worker that dies is replaced and goes on from the last checkpoint;
an error that would repeat itself ends the training. The same command resumes an interrupted one.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from pipelines import config as configuration
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster
from pipelines.config import Config
from pipelines.runs.directory import RunDir
from pipelines.study.trainings import adapter_key
from pipelines.train import checkpoints

# Errors of a worker's own code about its input and numbers. A replayed step gives the same bits, so it would raise
# them again; errors of files, stores, devices and other processes (OSError, RuntimeError) may be gone the next time.
REPEATABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


# Exceptions travel between processes without their tracebacks; this attribute has one as text.
TRACEBACK = "_in_worker"


class InWorkerError(Exception):
    """A worker's traceback, as the cause of its error."""


class EndAtOnce(UserCallback):
    """Ends a training at once on an error that would repeat itself; retries are for dead workers.

    Ray Train takes an error of a callback for one of its controller, which it does not retry.
    """

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, BaseException]) -> None:
        raised = list(worker_exceptions.values())
        # If another worker has died, the others may fail in any way.
        if all(isinstance(error, Exception) and not _of_ray(error) for error in raised):
            for error in raised:
                if isinstance(error, REPEATABLE):
                    raise error


def _of_ray(error: BaseException) -> bool:
    return any(kind.__module__.startswith("ray.") for kind in type(error).__mro__)


def train(config: Config, callbacks: Sequence[Any] = ()) -> Path:
    """Train the adapter of `config.train`, or finish its training; returns its folder. Ray must be connected.

    `callbacks` are Ray Train's. Raises a worker's own error if it is one of `REPEATABLE`, and
    ray.train.TrainingFailedError if workers fail in other ways more often than allowed.
    """
    files, key, settings = RunDir.of(config), adapter_key(config.train), config.train
    (least, most), storage = settings.workers, files.checkpoints(key)
    checkpoints.begin(files, storage)
    files.forget(files.progress / f"{key}.json")  # an interrupted one's would be shown until the first step
    trainer = TorchTrainer(
        worker,
        train_loop_config={"config": configuration.to_dict(config)},
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=dict(resources.training(config).one),
        ),
        run_config=RunConfig(
            name=key,
            storage_path=files.storage_path(storage.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.num_to_keep),
            callbacks=[*callbacks, EndAtOnce()],
        ),
    )
    try:
        _interruptibly(trainer.fit)
    except ControllerError as error:
        failure = error.controller_failure
        if isinstance(failure, REPEATABLE):
            text = failure.__dict__.get(TRACEBACK)
            raise failure from (None if text is None else InWorkerError(f"\n{text}"))
        raise
    checkpoints.discard(files, storage)
    return files.adapters / key


def room_for(config: Config, cluster: Cluster, driver_cpus: float = 0.0) -> int:
    """The number of trainings that fit into the cluster at once; ConfigError if it could never run one."""
    return cluster.room(resources.training(config, driver_cpus))


def _interruptibly(function: Callable[[], Any]) -> None:
    """Call from another thread: in the main one Ray Train would replace our Ctrl-C handler by its own, for good."""
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
    """The function that Ray Train runs in each worker."""
    # Imported here: processes that only launch and watch a training need no model libraries.
    from pipelines.train.worker import run

    try:
        run(configuration.from_dict(loop_config["config"]))
    except REPEATABLE as error:
        error.__dict__[TRACEBACK] = traceback.format_exc()
        raise
