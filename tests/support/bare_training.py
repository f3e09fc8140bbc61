"""A training worker's own code without Ray around it: its reports become checkpoints in storage, as Ray Train makes
them, or end it, as a kill does."""

import json
import shutil
from types import SimpleNamespace

import pytest
import ray.train
import torch
from pipeline_toys import overrides
from pyarrow import fs
from safetensors.torch import load_file

from aig import adapters
from pipelines import config as configuration
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study.trainings import adapter_key
from pipelines.train import worker


class Killed(BaseException):
    """The end of a training that is not its own."""


def configured(model, storage, **more):
    """A training of six steps: a checkpoint every other one, validations and snapshots between them."""
    common = {"train__steps": 6, "train__snapshot_every": 3, "train__validate_every": 2}
    return configuration.load("smoke", None, overrides(model, storage, **{**common, **more}))


def left(single):
    """Weights by folder and curve, without the clock."""
    files = RunDir.of(single)
    weights = {path.parent.name: load_file(path) for path in files.adapters.glob(f"*/{adapters.WEIGHTS}")}
    rows = (files.curves / f"{adapter_key(single.train)}.jsonl").read_text().splitlines()
    return weights, [{**json.loads(row), "seconds": 0} for row in rows]


def check_same(single, other):
    """Two trainings have left the same; returns the weights by folder and the curve."""
    (weights, curve), (expected, expected_curve) = left(single), left(other)
    assert weights.keys() == expected.keys() and curve == expected_curve
    assert all(torch.equal(weights[name][k], tensor) for name in expected for k, tensor in expected[name].items())
    return weights, curve


def run(single, dies_after=None):
    """Train in this process; with `dies_after`, die once so many checkpoints have been written."""
    files = RunDir.of(single)
    storage = files.checkpoints(adapter_key(single.train))
    written = sum(name.startswith("checkpoint_") for name in files.names(storage))

    def report(metrics, checkpoint=None, **_):
        nonlocal written
        if checkpoint is None:
            return
        written += 1
        filesystem, target = files.place(storage / f"checkpoint_{written:03d}")
        filesystem.create_dir(target, recursive=True)
        fs.copy_files(checkpoint.path, target, destination_filesystem=filesystem, use_threads=False)
        shutil.rmtree(checkpoint.path)
        if dies_after is not None and written >= dies_after:
            raise Killed

    identity.claim_directory(single)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(ray.train, "report", report)
        patch.setattr(ray.train, "get_all_reported_checkpoints", lambda *_, **__: [])
        patch.setattr(worker, "broadcast_from_rank_zero", lambda data: data)
        worker.run(single)
    return storage


def instead_of_ray_train(monkeypatch):
    """Let the commands of this process train in it."""

    def train(single):
        run(single)
        return RunDir.of(single).adapters / adapter_key(single.train)

    monkeypatch.setattr("pipelines.train.launch.train", train)
