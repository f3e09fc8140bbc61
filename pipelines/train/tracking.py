"""Trackers of a training beside its curve: TensorBoard, Weights & Biases, MLflow.

The two services are Ray's own integrations, called by the worker that validates: there a training has its own steps, a
resumed one goes on in the same run of the service, and `train` and `sweep` are alike. (Ray's callbacks for Tune count
reports, begin a new run at each restart, and do not work outside of Tune.)
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
TEXT = 250  # characters of a setting that are sent; MLflow takes no more of some


def check(config: Config) -> None:
    """ConfigError if the package of a configured service is not installed."""
    for name in SERVICES:
        value = getattr(config.run, name)
        if value is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.{name} is {value!r}, and the package {name} is not installed: run `pip install {name}`, here "
                "and where workers run, or leave the key out"
            )


class Service(Protocol):
    """One training's run in a service."""

    id: str
    """The service's name of the run."""

    def point(self, step: int, values: Mapping[str, float], picture: Path) -> None:
        """Send the numbers and the picture of a validation."""
        ...

    def close(self) -> None: ...


class Tracker:
    """Sends a training's numbers to all trackers of `config.run`; a resumed training goes on in each.

    `step`: where the training begins or goes on. A service gets a validation once, even if it is made again after an
    interruption; in TensorBoard new points hide the earlier ones of later steps.
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
        """Record the numbers of a training step."""
        if self.board is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self.board.add_scalar(f"training/{name}", value, step)

    def validation(self, step: int, values: Mapping[str, float], picture: Path) -> None:
        """Record the numbers of a validation and its picture, a PNG."""
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
        """The services' runs of this training; none if another configuration made the ones on file."""
        digest = hashlib.blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            known = {}
        return known if known.get("settings") == digest else {"settings": digest, "runs": {}}


def _sent(name: str, service: Service, step: int, values: Mapping[str, float], picture: Path) -> bool:
    """Send a validation; if the service fails, for whatever reason, warn and let the training go on."""
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
    """A run in the MLflow experiment that has our run's name."""

    def __init__(self, config: Config, key: str, settings: Mapping[str, Any], known: str | None) -> None:
        from ray.air.integrations.mlflow import setup_mlflow

        if known is not None:
            os.environ["MLFLOW_RUN_ID"] = known  # mlflow's own way to resume a run that Ray starts
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


# By the name of the package, which is also its key in `run`.
SERVICES: dict[str, Any] = {"wandb": WandB, "mlflow": MLflow}


def flat(settings: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    """Nested settings by dotted names: numbers as they are, the rest as short text."""
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{lead}{name}.")
        else:
            flattened[f"{lead}{name}"] = value if isinstance(value, (int, float)) else str(value)[:TEXT]
    return flattened
