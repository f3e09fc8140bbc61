"""As much of the package mlflow as Ray's integration and ours call, recorded; the server's state is a folder."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

from recording import record

__version__ = "3.0"
_uri = ""
_active = None


def set_tracking_uri(uri):
    global _uri
    _uri = uri
    record("set_tracking_uri", uri=uri)


def set_registry_uri(uri):
    pass


def get_experiment_by_name(name):
    path = Path(_uri, "experiment.json")
    known = json.loads(path.read_text()) if path.exists() else None
    return SimpleNamespace(experiment_id=known["id"]) if known and known["name"] == name else None


def create_experiment(name, artifact_location=None):
    Path(_uri).mkdir(parents=True, exist_ok=True)
    Path(_uri, "experiment.json").write_text(json.dumps({"name": name, "id": "7"}))
    record("create_experiment", name=name)
    return "7"


def start_run(run_name=None, experiment_id=None, tags=None):
    global _active
    known = os.environ.get("MLFLOW_RUN_ID")
    _active = SimpleNamespace(info=SimpleNamespace(run_id=known or f"run {os.getpid()}"))
    record("start_run", name=run_name, experiment=experiment_id, known=known, id=_active.info.run_id)
    return _active


def active_run():
    return _active


def log_param(key, value):
    record("log_param", key=key, value=value)


def log_metrics(values, step):
    if os.environ.get("STAND_IN_DOWN"):
        raise ConnectionError("the server is down")
    record("log_metrics", step=step, values=values)


def log_artifact(path, folder):
    record("log_artifact", path=path, folder=folder)


def end_run():
    global _active
    _active = None
    record("end_run")
