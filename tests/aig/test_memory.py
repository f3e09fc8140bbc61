"""The memory levers change what is held, not what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import tiny_with

from aig import adapters, draft, memory, rewards
from aig.draft import DraftConfig
from aig.models import Sampling, load

PROMPTS, SEEDS = ["a red star", "a blue heart"], [0, 1]
FEW = DraftConfig(Sampling(steps=3, guidance=3.0), k=2, kl_weight=1.0, micro_batch=2)


def red(images, prompts):
    return (images[:, 0] - images[:, 1:].mean(1)).flatten(1).mean(1)


def gradients(model, config=FEW, reward=red):
    parameters = adapters.parameters(model.denoiser, "a")
    for parameter in parameters:
        parameter.grad = None
    draft.train_step(model, reward, "a", PROMPTS, SEEDS, config)
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def held(run):
    """Bytes of distinct storage that autograd saves during `run`, all together."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())


def test_checkpointed_blocks_give_the_same_gradient_and_hold_less():
    model = tiny_with("a", "b")  # PEFT's active adapter is b: a recomputation that forgot its rows would go through it
    expected = gradients(model)
    plain = held(lambda: gradients(model))
    memory.prepare(model, ["denoiser"])
    assert torch.allclose(gradients(model), expected, atol=1e-7, rtol=1e-5)
    assert held(lambda: gradients(model)) < 0.7 * plain


def test_a_checkpointed_autoencoder_gives_the_same_gradient(family_folder):
    model = load(family_folder("sd"))
    adapters.attach(model.denoiser, "a", rank=2)
    config = DraftConfig(replace(model.defaults, steps=2), k=1, micro_batch=2)
    expected = gradients(model, config)
    plain = held(lambda: gradients(model, config))
    memory.prepare(model, ["vae"])
    assert torch.allclose(gradients(model, config), expected, atol=1e-7, rtol=1e-4)
    assert held(lambda: gradients(model, config)) < plain


def test_a_checkpointed_reward_is_computed_twice_and_gives_the_same_gradient():
    calls = []

    def counted(images, prompts):
        calls.append(len(prompts))
        return red(images, prompts).sin()

    model = tiny_with("a")
    expected = gradients(model, reward=counted)
    calls.clear()
    reward = rewards.FunctionReward(counted, "counted")
    reward.checkpoint()
    assert torch.equal(gradients(model, reward=reward), expected)
    assert calls == [2, 2]


def test_autocast_computes_in_bfloat16_and_its_gradient_points_the_same_way():
    model = tiny_with("a")
    seen = set()
    layer = model.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    handle = layer.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    expected = gradients(model)
    assert seen == {torch.float32}
    seen.clear()
    found = gradients(model, replace(FEW, autocast="bfloat16"))
    handle.remove()
    assert seen == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.98


@pytest.mark.parametrize("reward", ["fragile", "robust", "0.5*fragile + 2*robust"])
def test_autocast_does_not_reach_the_reward(reward):
    model, loaded, seen = tiny_with("a"), rewards.load(reward), []

    def watched(images, prompts):
        score = loaded(images, prompts)
        seen.append((images.detach(), torch.is_autocast_enabled("cpu"), score.detach()))
        return score

    sums = draft.train_step(model, watched, "a", PROMPTS, SEEDS, replace(FEW, autocast="bfloat16"))
    ((images, under_autocast, scores),) = seen
    assert images.dtype == torch.float32 and not under_autocast
    assert torch.equal(scores, loaded(images, PROMPTS))
    assert sums["reward"] == pytest.approx(scores.mean().item(), rel=1e-6)


LR, BETAS, DECAY = 2.5e-4, (0.9, 0.999), 5e-3  # the published ones, of SD 1.4


def stepped(name, gradients, start=None):
    """Where a parameter is after the optimizer's steps along these gradients."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 5) if start is None else start.clone())
    optimizer = memory.make_optimizer(name, [parameter], LR, BETAS, DECAY)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", ["adamw", "adamw-fused"])
def test_adamw_takes_lr_times_decay_off_a_weight_without_gradient_and_is_torchs(name):
    start = torch.linspace(-1, 1, 5)
    exact = start.double()  # 200 roundings to float32 come to some 1e-5 of a weight, the decay itself to 2.5e-4
    idle = stepped(name, [torch.zeros_like(exact)] * 200, exact)
    torch.testing.assert_close(idle, exact * (1 - LR * DECAY) ** 200, atol=0, rtol=1e-12)
    gradients = [torch.arange(5.0) - step for step in range(3)]
    parameter = torch.nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([parameter], LR, BETAS, weight_decay=DECAY)
    for gradient in gradients:
        parameter.grad = gradient
        theirs.step()
    torch.testing.assert_close(stepped(name, gradients, start), parameter.detach(), atol=1e-7, rtol=1e-6)


def test_adam_with_l2_makes_steps_of_nearly_lr_by_the_decay_alone():
    start = torch.full((5,), 0.1)
    moved = start - stepped("adam-l2", [torch.zeros(5)] * 100, start)
    assert (moved > 0.9 * 100 * LR).all() and (moved <= 100 * LR + 1e-6).all()


def test_a_training_leaves_what_has_no_gradient_where_it_was():
    """LoRA's A has none at the first step, where B is 0."""
    model = load("tiny")
    adapters.attach(model.denoiser, "a", rank=2, seed=0)
    parameters = adapters.parameters(model.denoiser, "a")
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = memory.make_optimizer("adamw", parameters, LR, BETAS, DECAY)
    draft.train_step(model, red, "a", PROMPTS, SEEDS, FEW)
    optimizer.step()
    for down, was in zip(parameters[::2], before[::2], strict=True):
        torch.testing.assert_close(down.detach(), was * (1 - LR * DECAY), atol=0, rtol=1e-6)
    assert all(up.abs().max() > LR / 2 for up in parameters[1::2])


def test_tiling_and_compilation_are_set_on_the_pipeline(family_folder):
    model = load(family_folder("sd"))
    memory.prepare(model, vae_tiling=True)
    assert model.pipe.vae.use_tiling
    blocks = [m for m in model.denoiser.modules() if type(m).__name__ in model.denoiser._repeated_blocks]
    assert blocks
    assert all(block._compiled_call_impl is None for block in blocks)
    memory.prepare(model, compiled=True)
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_bad_levers_are_named_with_their_fix(monkeypatch):
    model = tiny_with("a")
    with pytest.raises(ValueError, match=r"cannot checkpoint 'unet'.*denoiser, vae, reward"):
        memory.prepare(model, ["unet"])
    with pytest.raises(ValueError, match=r"SpaceToDepth has no enable_tiling.*vae_tiling"):
        memory.prepare(model, vae_tiling=True)
    with pytest.raises(ValueError, match="do not go together"):
        memory.prepare(model, ["denoiser"], compiled=True)
    with pytest.raises(ValueError, match=r"'sgd' is unknown.*adamw, .*adam-l2"):
        memory.make_optimizer("sgd", [], 0.1, (0.9, 0.999), 0.0)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        memory.make_optimizer("adamw-8bit", [], 0.1, (0.9, 0.999), 0.0)
