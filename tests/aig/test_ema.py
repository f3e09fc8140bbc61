"""The exponential moving average of tuned weights, alone and as what a training keeps."""

from __future__ import annotations

from dataclasses import replace

import bare_training
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from aig import adapters
from aig.ema import Ema
from pipelines.runs.directory import RunDir
from pipelines.study.trainings import adapter_key, best_folder
from pipelines.train import records, worker
from pipelines.train.guard import Explosions

DECAY = 0.5  # of so few steps: each of them shows


def test_the_average_is_that_of_its_closed_form_and_of_torch():
    path = torch.randn(8, 5, dtype=torch.float64)  # the parameter at the start and after each of seven steps
    parameter = nn.Parameter(path[0].float())
    average, theirs = Ema([parameter], 0.9), [path[0].float()]
    for n, point in enumerate(path[1:], start=1):
        parameter.data = point.float()
        average.update()
        get_ema_multi_avg_fn(0.9)(theirs, [parameter.detach()], n)
    weights = torch.tensor([0.9**7, *(0.1 * 0.9 ** (7 - k) for k in range(1, 8))], dtype=torch.float64)
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(average.means[0].double(), weights @ path, atol=1e-6, rtol=0)
    torch.testing.assert_close(average.means[0], theirs[0], atol=1e-6, rtol=0)


def test_parameters_and_averages_change_places_and_come_back_bit_for_bit():
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 2))]
    average = Ema(parameters, 0.9)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.1)
    average.update()
    was, means = ([tensor.detach().clone() for tensor in tensors] for tensors in (parameters, average.means))
    with pytest.raises(KeyError), average.in_place():
        assert all(torch.equal(a, b) for a, b in zip(parameters, means, strict=True))
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(parameters, was, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(average.means, means, strict=True))


@pytest.mark.parametrize("decay", [0, 1, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        Ema([], decay)


def configured(model, storage, **more):
    return bare_training.configured(model, storage, **{"train__snapshot_every": 1, "train__keep_best": "true", **more})


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """A training without an average: its snapshots are the path that the other's averages follow."""
    single = configured(model, tmp_path_factory.mktemp("plain"))
    bare_training.run(single)
    return single


@pytest.fixture(scope="module")
def averaged(model, tmp_path_factory):
    single = configured(model, tmp_path_factory.mktemp("averaged"), train__ema=DECAY)
    bare_training.run(single)
    return single


def kept(single, step):
    """The adapter that a training kept of a step."""
    name = adapter_key(single.train) + ("" if step == single.train.steps else f"@{step}")
    return load_file(RunDir.of(single).adapters / name / adapters.WEIGHTS)


def test_snapshots_and_the_last_adapter_are_averages_of_the_steps_and_training_goes_on_as_without(
    plain, averaged, tmp_path
):
    started = worker.Training(plain, is_first=False)
    adapters.save(started.model.denoiser, worker.ADAPTER, tmp_path / "start", {})
    expected = load_file(tmp_path / "start" / adapters.WEIGHTS)
    for step in range(1, plain.train.steps + 1):
        path, found = kept(plain, step), kept(averaged, step)
        expected = {name: DECAY * mean + (1 - DECAY) * path[name] for name, mean in expected.items()}
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    assert any((found[name] - path[name]).abs().max() > 1e-4 for name in found)


def test_the_average_is_what_is_validated_and_the_best_of_it_kept(averaged, plain):
    curves = [bare_training.left(single)[1] for single in (averaged, plain)]
    assert curves[0][0] == curves[1][0] | {"skipped": 0.0}  # at the start they are the same
    assert all(mine["held_out"] != other["held_out"] for mine, other in zip(*(c[1:] for c in curves), strict=True))
    folder = RunDir.of(averaged).adapters / best_folder(averaged.train)
    best, at_step = load_file(folder / adapters.WEIGHTS), kept(averaged, adapters.read_record(folder)["step"])
    assert all(torch.equal(tensor, at_step[name]) for name, tensor in best.items())


def test_its_decay_is_in_the_adapters_record(averaged):
    record = adapters.read_record(RunDir.of(averaged).adapters / adapter_key(averaged.train))
    assert record["train"]["ema"] == DECAY
    assert not records.is_finished(replace(averaged, train=replace(averaged.train, ema=None)))


def test_a_killed_training_leaves_the_bits_of_an_undisturbed_one(averaged, model, tmp_path):
    single = configured(model, tmp_path, train__ema=DECAY)
    with pytest.raises(bare_training.Killed):
        bare_training.run(single, dies_after=2)
    bare_training.run(single)
    (weights, curve), (expected, wanted) = bare_training.left(single), bare_training.left(averaged)
    assert curve == wanted and weights.keys() == expected.keys()
    assert all(torch.equal(weights[name][k], tensor) for name in expected for k, tensor in expected[name].items())


def test_what_a_guard_held_is_the_average_of_its_step(averaged, model, tmp_path):
    path = {row["step"]: row["path"] for row in bare_training.left(averaged)[1]}
    assert path[2] < path[4]
    limit = {"train__stop_path": (path[2] + path[4]) / 2}  # stops at step 4, and step 2 is what remains
    single = configured(model, tmp_path, train__ema=DECAY, **limit)
    bare_training.run(single)
    folder = RunDir.of(single).adapters / adapter_key(single.train)
    assert adapters.read_record(folder)["step"] == 2
    found, expected = load_file(folder / adapters.WEIGHTS), kept(averaged, 2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_step_that_is_left_out_is_not_averaged(model, tmp_path):
    single = configured(model, tmp_path, train__ema=DECAY, train__on_nan="skip")
    started = worker.Training(single, is_first=False)
    started.advance(0, 1)
    before = [mean.clone() for mean in started.ema.means]
    started.guard.explosions = Explosions(1000, 0, [(100.0 + i, 1e-9) for i in range(20)])
    started.advance(0, 1)
    assert started.step == 2 and all(torch.equal(a, b) for a, b in zip(before, started.ema.means, strict=True))
