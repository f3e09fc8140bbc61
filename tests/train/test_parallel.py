"""Several workers make the step of one: DDP of a LoRA, FSDP2 of full fine-tuning, any batch."""

import multiprocessing
from types import SimpleNamespace

import pytest
import torch
import two_workers
from pipeline_toys import overrides
from safetensors.torch import load_file
from torch import nn

from aig import adapters
from pipelines import config as configuration
from pipelines.config import Train
from pipelines.train import parallel, worker

KEY = "pipeline_toys-red-k1-kl1-s0"


def arguments(model, storage, method):
    """Five images a step, which two workers cannot share evenly, and a KL term, which asks for the base.

    Adam's step is as long as lr however small the gradient, so that rounding shows at a hundredth of lr: full
    fine-tuning, which has gradients of all sizes, has the smaller lr that it is used with.
    """
    more = {"train__batch": 5, "train__micro_batch": 2, "train__kl_weight": 1, "train__method": method}
    more |= {"train__ema": 0.5}
    if method == "full":
        more |= {"train__lr": 1e-4, "train__checkpointing": "[denoiser]"}
    return overrides(model, storage, **more)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """What two processes leave that have trained a LoRA and a whole copy."""
    folder = tmp_path_factory.mktemp("two")
    cases = {method: arguments(model, folder / method, method) for method in ("lora", "full")}
    for method in cases:
        (folder / method).mkdir()
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=two_workers.work, args=(rank, cases, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    return folder


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, folder, model, tmp_path_factory):
    """A few steps of one worker, the states of two that have shared them, and the folders of both."""
    method, own = request.param, tmp_path_factory.mktemp("one")
    alone = worker.Training(configuration.load("smoke", None, arguments(model, own, method)), is_first=True)
    alone.begin()
    for _ in range(two_workers.STEPS):
        alone.advance(0, 1)
        alone.keep()
    names = ("before", "after", "resumed")
    states = {name: torch.load(folder / method / f"{name}.pt", weights_only=True) for name in names}
    return SimpleNamespace(method=method, alone=alone, states=states, one=own, two=folder / method)


def tensors(state):
    moments = [row[name] for row in state["optimizer"]["state"].values() for name in ("exp_avg", "exp_avg_sq")]
    return [*state["parameters"], *state["ema"], *moments]


@pytest.mark.timeout(280)
def test_two_workers_make_the_steps_of_one(trained):
    before, after = trained.states["before"], trained.states["after"]
    for one, two in zip(tensors(trained.alone.state()), tensors(after), strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    assert not torch.equal(after["parameters"][-1], before["parameters"][-1])
    assert not torch.equal(after["ema"][-1], before["ema"][-1])


def test_a_step_that_two_workers_replay_from_a_checkpoint_gives_the_same_bits(trained):
    after, resumed = (tensors(trained.states[name]) for name in ("after", "resumed"))
    assert all(torch.equal(a, b) for a, b in zip(after, resumed, strict=True))


def test_what_two_workers_save_is_the_adapter_of_one(trained):
    name = adapters.WEIGHTS if trained.method == "lora" else adapters.FULL_WEIGHTS
    folders = [where / "smoke" / "adapters" / f"{KEY}@2" for where in (trained.one, trained.two)]
    one, two = (load_file(folder / name) for folder in folders)
    assert one.keys() == two.keys()
    for path, tensor in one.items():
        torch.testing.assert_close(two[path], tensor, atol=1e-5, rtol=0)
    assert adapters.read_record(folders[0]) == adapters.read_record(folders[1])
    settings = [(folder / "config.json").read_text() for folder in folders if trained.method == "full"]
    assert len(set(settings)) < 2


def test_each_worker_of_full_fine_tuning_holds_its_part_of_what_is_trained(folder):
    held = [int((folder / "full" / f"held{rank}").read_text()) for rank in range(2)]
    total = sum(tensor.numel() for tensor in torch.load(folder / "full" / "after.pt", weights_only=True)["parameters"])
    assert sum(held) == total
    assert max(held) < 0.6 * total


def test_what_is_sharded_beside_a_bfloat16_base_is_float32_and_makes_adams_steps(folder, model):
    before, after = (torch.load(folder / f"half-{when}.pt", weights_only=True) for when in ("before", "after"))
    assert {tensor.dtype for tensor in tensors(after)} == {torch.float32}
    lr = configuration.load("smoke", None, arguments(model, folder, "full")).train.lr
    steps = [(b - a).abs() / lr for a, b in zip(before["parameters"], after["parameters"], strict=True)]
    together = torch.cat([step.flatten() for step in steps])
    assert (together > 0.5).float().mean() > 0.9 and together.max() < 1.01  # AdamW's first step is lr where there is


def test_a_worker_without_an_image_keeps_none_waiting_and_changes_nothing(folder, model, tmp_path):
    single = configuration.load("smoke", None, [*arguments(model, tmp_path, "lora"), "train.batch=1"])
    alone = worker.Training(single, is_first=False)
    alone.advance(0, 1)
    found = torch.load(folder / "idle.pt", weights_only=True)["parameters"]
    assert all(torch.equal(one, two) for one, two in zip(alone.state()["parameters"], found, strict=True))


def test_shares_partition_the_batch_and_those_of_sharded_workers_are_filled_up_to_one_size():
    for world in (1, 2, 3, 5):
        ddp, fsdp = ([parallel.share(how, rank, world, 5) for rank in range(world)] for how in ("ddp", "fsdp"))
        assert sorted(row for rows, _ in ddp for row in rows) == list(range(5))
        assert {padding for _, padding in ddp} == {0}
        assert len({len(rows) for rows, _ in fsdp}) == 1
        assert sorted(row for rows, padding in fsdp for row in rows[: len(rows) - padding]) == list(range(5))


@pytest.mark.parametrize(
    ("given", "world", "how"),
    [
        ({}, 1, "alone"), ({}, 2, "ddp"), ({"method": "full"}, 2, "fsdp"), ({"method": "full"}, 1, "alone"),
        ({"method": "full", "parallel": "ddp"}, 2, "ddp"),
    ],
)  # fmt: skip
def test_the_configuration_and_the_number_of_workers_say_how_they_share(given, world, how):
    assert parallel.strategy(Train(**given), world) == how


def test_padding_changes_neither_gradient_nor_sums(model, tmp_path):
    single = configuration.load("smoke", None, arguments(model, tmp_path, "lora"))
    one, padded = (worker.Training(single, is_first=False) for _ in range(2))
    prompts, seeds = worker.draw(one.prompts, 0, 0, 3)
    found = [
        worker.train_step(
            each.model, each.reward, worker.ADAPTER, prompts + prompts[:n], seeds + seeds[:n], each.draft, total=5,
            padding=n,
        )
        for each, n in ((one, 0), (padded, 1))
    ]  # fmt: skip
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    for a, b in zip(one.parameters, padded.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_clipping_is_that_of_torch():
    ours, theirs = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    for parameter in (ours, theirs):
        parameter.grad = torch.tensor([3.0, 0.0, -4.0, 1.0])
    assert torch.equal(parallel.clip([ours], 2.0), nn.utils.clip_grad_norm_([theirs], 2.0))
    assert torch.equal(ours.grad, theirs.grad)
