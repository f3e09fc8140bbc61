"""Where a training's numbers and pictures go beside its curve: TensorBoard, Weights & Biases, MLflow.

The two services are Ray's own integrations, for the worker that validates: there a training has its own steps, a
resumed one goes on in the same run of the service, and `train` and `sweep` are alike. (Ray's callbacks for Tune count
reports, begin a new run at each restart, and know nothing of a training outside of Tune.)
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import secrets
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pipelines.config import Config, ConfigError
from pipelines.runs.directory import RunDir
from pipelines.study import trainings

FLUSH_SECONDS = 10
TEXT = 250  # characters of a setting that a service is told; MLflow takes no more of some


def check(config: Config) -> None:
    """ConfigError where a package that the configuration asks for is not installed."""
    for name in SERVICES:
        wanted = getattr(config.run, name)
        if wanted is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.{name} is {wanted!r}, and the package {name} is not installed: run `pip install {name}`, here "
                "and where workers run, or leave the key out"
            )


class Service(Protocol):
    """One training's run in a service."""

    id: str
    """By which the service knows the run."""

    def point(self, step: int, values: Mapping[str, float], picture: Path) -> None:
        """The numbers and the picture of a validation."""
        ...

    def close(self) -> None: ...


class Tracker:
    """Every place that a training's numbers go to, as `config.run` says; a training that is resumed goes on in each.

    `step` is where the training begins or goes on. A service gets a validation once, though it may be made again after
    an interruption; what TensorBoard was told of later steps is hidden by what it is told now.
    """

    def __init__(self, config: Config, record: Mapping[str, Any], step: int) -> None:
        files, key = RunDir.of(config), trainings.adapter_key(config.train)
        self.run_directory, self.board, self.folder = files, None, files.tensorboard / key
        if config.run.tensorboard:
            from tensorboardX import SummaryWriter  # a second that other processes need not wait for

            self.board = SummaryWriter(
                str(self.folder), purge_step=step + (step > 0), flush_secs=FLUSH_SECONDS,
                filename_suffix=f".{time.time_ns()}",  # beside host and second, which a quick restart may share
            )  # fmt: skip
        self.path = files.tracking / f"{key}.json"
        self.settings = {name: record[name] for name in ("train", "model")}
        self.known = self._known()
        self.services: dict[str, Service] = {}
        for name, kind in SERVICES.items():
            if getattr(config.run, name) is not None:
                known = self.known["runs"].get(name)
                self.services[name] = service = kind(config, key, self.settings, known and known["id"])
                self.known["runs"][name] = known or {"id": service.id, "step": -1}

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a training step."""
        if self.board is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self.board.add_scalar(f"training/{name}", value, step)

    def validation(self, step: int, values: Mapping[str, float], picture: Path) -> None:
        """The numbers of a validation and its picture, a PNG."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name if "/" in name else f"validation/{name}", value, step)
            with Image.open(picture) as image:
                self.board.add_image("validation/images", np.asarray(image.convert("RGB")), step, dataformats="HWC")
            self.board.flush()
            self.run_directory.push(self.folder)
        for name, service in self.services.items():
            run = self.known["runs"][name]
            if step > run["step"] and _sent(name, service, step, values, picture):
                run["step"] = step
        if self.services:
            self.run_directory.write_json(self.path, self.known)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
            self.run_directory.push(self.folder)
        for service in self.services.values():
            service.close()

    def _known(self) -> dict[str, Any]:
        """What services know this training as; nothing yet where another configuration made what is there."""
        digest = hashlib.blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            found = {}
        return found if found.get("settings") == digest else {"settings": digest, "runs": {}}


def _sent(name: str, service: Service, step: int, values: Mapping[str, float], picture: Path) -> bool:
    """Send a validation; a service that cannot take it, whatever its reason, does not cost the training."""
    try:
        service.point(step, values, picture)
    except Exception as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"run.{name}: the validation of step {step} was not sent ({reason[:TEXT]})", stacklevel=2)
        return False
    return True


class WandB:
    """A run of Weights & Biases."""

    def __init__(self, config: Config, key: str, settings: Mapping[str, Any], known: str | None) -> None:
        from ray.air.integrations.wandb import setup_wandb

        self.wandb, self.id = importlib.import_module("wandb"), known or secrets.token_hex(6)
        self.run = setup_wandb(
            flat(settings), rank_zero_only=False, project=config.run.wandb, group=config.run.name, trial_id=self.id,
            trial_name=f"{config.run.name} {key}", resume="allow",
        )  # fmt: skip

    def point(self, step: int, values: Mapping[str, float], picture: Path) -> None:
        self.run.log({**values, "images": self.wandb.Image(str(picture))}, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of an MLflow server's experiment, which is named as ours."""

    def __init__(self, config: Config, key: str, settings: Mapping[str, Any], known: str | None) -> None:
        from ray.air.integrations.mlflow import setup_mlflow

        if known is not None:
            os.environ["MLFLOW_RUN_ID"] = known  # mlflow's own way to go on with a run that Ray starts
        self.mlflow: Any = setup_mlflow(
            {} if known else flat(settings), tracking_uri=config.run.mlflow, experiment_name=config.run.name,
            run_name=key, create_experiment_if_not_exists=True, rank_zero_only=False,
        )  # fmt: skip
        self.id = self.mlflow.active_run().info.run_id

    def point(self, step: int, values: Mapping[str, float], picture: Path) -> None:
        self.mlflow.log_metrics(dict(values), step=step)
        self.mlflow.log_artifact(str(picture), "validation")

    def close(self) -> None:
        self.mlflow.end_run()


# By the package's name, which is that of its key in `run`, too.
SERVICES: dict[str, Any] = {"wandb": WandB, "mlflow": MLflow}


def flat(settings: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    """Settings by names with points, numbers as they are and the rest as a short text."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{lead}{name}.")
        else:
            found[f"{lead}{name}"] = value if isinstance(value, (int, float)) else str(value)[:TEXT]
    return found
