"""What is tuned is held in float32, whatever the frozen weights are in: its weights, gradients, moments and files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from denoisers import FAMILIES, fresh, predict, randomize
from models import tiny_with
from pipeline_toys import overrides, red
from safetensors.torch import load_file

from aig import adapters, draft, memory
from aig.adapters.base import tensors_of
from aig.draft import DraftConfig
from aig.models import load
from aig.sampler import Arm, Sampling, sample_arms
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.study import models
from pipelines.train import worker

PROMPTS, SEEDS = ["a red star", "a blue heart"], [0, 1]
FEW = Sampling(steps=2, guidance=3.0, passes=2)
ARMS = [Arm("a", "a"), Arm("base", None, 1.0, "base")]
# Each preset on a small model of its family; the embedded one's are on its untrained twin.
PRESETS = {
    "demo": None, "demo-full": None, "map": None, "nats": None, "smoke": None,
    "sd14": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux",
}  # fmt: skip


def dtypes(tensors):
    return {tensor.dtype for tensor in tensors}


def small(preset, method, model, family_folder, storage, *more):
    """A preset's training, as it is but for its size: one step of two images, the model of its family a small one."""
    family = PRESETS[preset]
    folder = model if family is None else family_folder(family)
    given = [*overrides(folder, storage), f"train.method={method}", "train.batch=2", "train.micro_batch=1"]
    given += ["model.steps=2", "train.prompts=['a red star', 'a blue heart']", *more]
    if family is not None:
        given += ["model.variant=null", "model.height=16", "model.width=16"]
    return configuration.load(preset, None, given)


def test_every_preset_is_tried():
    assert set(PRESETS) == set(configuration.presets())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_trains_is_float32_and_the_rest_as_configured(preset, method, model, family_folder, tmp_path):
    found = small(preset, method, model, family_folder, tmp_path)
    frozen = models.DTYPES[found.model.dtype]
    started = worker.Training(found, is_first=False)
    before = [parameter.detach().clone() for parameter in started.parameters]
    for _ in range(2):  # LoRA's A has a gradient at the second step
        started.advance(0, 1)
    assert dtypes(started.parameters) == dtypes(p.grad for p in started.parameters) == {torch.float32}
    moments = [s[name] for s in started.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert len(moments) == 2 * len(started.parameters) and dtypes(moments) == {torch.float32}
    assert (started.ema is not None) == (found.train.ema is not None)
    assert dtypes(started.ema.means if started.ema else before) == {torch.float32}
    trained = {id(parameter) for parameter in started.parameters}
    own = tensors_of(started.model.denoiser).values()
    assert not trained & {id(tensor) for tensor in own} and dtypes(own) == {frozen}
    moved = [not torch.equal(a, b) for a, b in zip(started.parameters, before, strict=True)]
    assert sum(moved) > 0.5 * len(moved)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_beside_any_base_changes_nothing_yet_and_is_loaded_bit_for_bit(family, dtype, method, tmp_path):
    denoiser, other = (fresh(family).to(dtype) for _ in range(2))
    alone, base = ["a"] * 4, predict(denoiser, None, dtype)
    attach = adapters.full if method == "full" else adapters.attach
    attach(denoiser, "a")
    assert torch.equal(predict(denoiser, alone, dtype), base)  # cast to the base's precision, a copy is the base
    randomize(denoiser, "a", 0.02)
    tuned = predict(denoiser, alone, dtype)
    assert torch.equal(predict(denoiser, [adapters.BASE] * 4, dtype), base) and tuned.dtype == dtype
    assert (tuned - base).abs().max() > 1e-3
    assert dtypes(adapters.parameters(denoiser, "a")) == {torch.float32}
    folder = adapters.save(denoiser, "a", tmp_path, {})
    buffers = dict(denoiser.named_buffers())  # SD3 saves its places' embedding, which nothing trains
    saved = load_file(adapters.weights_file(folder))
    assert dtypes(tensor for name, tensor in saved.items() if name not in buffers) == {torch.float32}
    adapters.load(other, folder, "x")
    assert dtypes(adapters.parameters(other, "x")) == {torch.float32}
    assert torch.equal(predict(other, ["x"] * 4, dtype), tuned)


def test_a_copy_beside_a_bfloat16_base_is_what_the_denoiser_is_and_saves(tmp_path):
    denoiser = fresh("sd").to(torch.bfloat16)
    adapters.full(denoiser, "a")
    randomize(denoiser, "a", 0.02)
    assert torch.equal(predict(denoiser, None, torch.bfloat16), predict(denoiser, ["a"] * 4, torch.bfloat16))
    half = adapters.scaled(denoiser, "a", 0.5)
    assert predict(denoiser, [half] * 4, torch.bfloat16).dtype == torch.bfloat16
    with torch.no_grad(), adapters.fusing(denoiser) as fuser:
        fuser.switch("a")
        folded = predict(denoiser, [adapters.BASE] * 4, torch.bfloat16)
    assert torch.equal(folded, predict(denoiser, ["a"] * 4, torch.bfloat16))


def test_nearly_all_entries_move_in_a_step_where_in_bfloat16_few_would():
    settings = configuration.load("flux").train  # the smallest of the presets' rates
    model = load("tiny", dtype=torch.bfloat16)
    adapters.attach(model.denoiser, "a", rank=4, alpha=4, targets="attention", seed=0)
    parameters = adapters.parameters(model.denoiser, "a")
    optimizer = memory.make_optimizer("adamw", parameters, settings.lr, worker.BETAS, settings.weight_decay)
    before = torch.zeros(0)
    for step in range(3):
        before = torch.cat([parameter.detach().flatten() for parameter in parameters[::2]])  # LoRA's A
        optimizer.zero_grad()
        draft.train_step(model, red, "a", PROMPTS, SEEDS, DraftConfig(FEW, micro_batch=2), seed=step)
        optimizer.step()
    moved = torch.cat([parameter.detach().flatten() for parameter in parameters[::2]]) - before
    assert (moved != 0).float().mean() > 0.99
    coarse = before.bfloat16()
    assert (coarse + moved.bfloat16() != coarse).float().mean() < 0.5


def test_a_small_adapter_is_not_folded_into_weights_that_would_round_it_away():
    model = tiny_with(dtype=torch.bfloat16)
    adapters.attach(model.denoiser, "a", rank=4, alpha=4, targets="everywhere")
    with torch.no_grad():
        for up in adapters.parameters(model.denoiser, "a")[1::2]:
            up.fill_(1e-3)
    routed, folded = (
        sample_arms(model, PROMPTS, SEEDS, ARMS, sampling=replace(FEW, fuse=fuse)).latents for fuse in (False, True)
    )
    assert torch.equal(folded["a"], routed["a"]) and not torch.equal(routed["a"], routed["base"])


def test_training_in_float16_is_refused_before_anything_is_computed(model, tmp_path, capsys):
    half = load("tiny", dtype=torch.float16)
    adapters.attach(half.denoiser, "a")
    with pytest.raises(ValueError, match=r"float16.*loss scaler.*bfloat16 or float32"):
        draft.train_step(half, red, "a", PROMPTS, SEEDS, DraftConfig(FEW))
    given = [*overrides(model, tmp_path), "model.dtype=float16"]
    for more in ([], ["--dry-run"]):
        assert main(["train", "--preset", "smoke", *more, *given]) == 2
        assert "loss scaler, and there is none: train it in bfloat16 or float32" in capsys.readouterr().err
