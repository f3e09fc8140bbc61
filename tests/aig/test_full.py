"""A whole copy beside the frozen base: trained, mixed, folded, scaled, offloaded."""

from __future__ import annotations

import pytest
import torch
from denoisers import fresh, predict, randomize
from models import tiny_with

from aig import adapters
from aig.draft import DraftConfig, train_step
from aig.sampler import Arm, Sampling, sample_arms

PROMPTS, SEEDS = ["a red star", "a blue heart"], [0, 1]
FEW = Sampling(steps=3, guidance=3.0)
ARMS = [
    Arm("base", None, 1.0, "base"), Arm("tuned", "a"), Arm("mixed", "a", 1.0, "linear"), Arm("half", "a", 0.5),
]  # fmt: skip


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def latents(model, sampling=FEW, arms=ARMS):
    return sample_arms(model, PROMPTS, SEEDS, arms, sampling=sampling).latents


@pytest.fixture
def model():
    model = tiny_with()
    adapters.full(model.denoiser, "a")
    randomize(model.denoiser, "a", 0.01)
    return model


def test_a_draft_step_moves_the_copy_and_leaves_the_base_bit_for_bit():
    model = tiny_with()
    before = latents(model, arms=ARMS[:1])["base"]
    adapters.full(model.denoiser, "a")
    parameters = adapters.parameters(model.denoiser, "a")
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sums = train_step(model, brightness, "a", PROMPTS, SEEDS, DraftConfig(FEW, k=2, kl_weight=10.0))
        optimizer.step()
    assert sums["kl"] > 0  # the second step's copy has left the base
    after = latents(model)
    assert torch.equal(after["base"], before)
    assert (after["tuned"] - before).abs().max() > 1e-3
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in tiny_with().denoiser.parameters())


def test_folding_and_two_passes_give_the_images_of_one(model):
    one = latents(model)
    for sampling in (Sampling(3, 3.0, passes=2), Sampling(3, 3.0, passes=2, fuse=True)):
        other = latents(model, sampling)
        for name, found in one.items():
            assert (other[name] - found).abs().max() < 1e-4, name
    assert (one["tuned"] - one["base"]).abs().max() > 1e-2


def test_a_scaled_copy_lies_between_and_follows_the_training(model):
    assert adapters.scaled(model.denoiser, "a", 0) == adapters.BASE
    half = adapters.scaled(model.denoiser, "a", 0.5)
    halved = latents(model)["half"]
    randomize(model.denoiser, "a", 0.01, seed=5)
    moved = latents(model)["half"]
    assert half in adapters.names(model.denoiser)
    assert (moved - halved).abs().max() > 1e-3
    by_hand = tiny_with()
    with torch.no_grad():
        tuned = adapters.parameters(model.denoiser, "a")
        for p, q in zip(by_hand.denoiser.parameters(), tuned, strict=True):
            p.lerp_(q, 0.5)
    assert (latents(by_hand, arms=ARMS[:1])["base"] - moved).abs().max() < 1e-5


def test_a_base_on_the_cpu_predicts_the_same_and_stays_there(model):
    denoiser, offloaded = fresh("sd"), fresh("sd")
    for each, offload in ((denoiser, False), (offloaded, True)):
        adapters.full(each, "a", offload=offload)
        randomize(each, "a", 0.02)
    rows = ["a", adapters.BASE, adapters.BASE, "a"]
    assert torch.equal(predict(offloaded, rows), predict(denoiser, rows))
    # Moving the denoiser moves the copy, not the base that was left behind; without offload it moves both.
    for each, kept in ((offloaded.to("meta"), "cpu"), (denoiser.to("meta"), "meta")):
        assert {v.device.type for v in each.conv_in.weights[adapters.BASE].values()} == {kept}
        assert {p.device.type for p in adapters.parameters(each, "a")} == {"meta"}


def test_a_lora_and_two_copies_share_a_forward(tmp_path):
    denoiser, base = fresh("sd"), predict(fresh("sd"))
    adapters.attach(denoiser, "lora", rank=2)
    randomize(denoiser, "lora")
    alone = {"lora": predict(denoiser, ["lora"] * 4)}
    for seed, name in enumerate(("a", "b")):
        adapters.full(denoiser, name)
        randomize(denoiser, name, 0.02, seed)
        alone[name] = predict(denoiser, [name] * 4)
    rows = ["b", "lora", adapters.BASE, "a"]
    mixed = predict(denoiser, rows)
    for i, name in enumerate(rows):
        assert torch.allclose(mixed[i], alone.get(name, base)[i], atol=1e-5), name
    with torch.no_grad(), adapters.fusing(denoiser) as fuser:
        for name, expected in alone.items():
            fuser.switch(name)
            assert torch.allclose(predict(denoiser, [adapters.BASE] * 4), expected, atol=1e-5), name
    for name in ("lora", "a"):
        adapters.load(loaded := fresh("sd"), adapters.save(denoiser, name, tmp_path / name, {}), "x")
        assert torch.allclose(predict(loaded, ["x"] * 4), alone[name], atol=1e-6), name


def test_what_lies_outside_of_layers_is_refused_by_name():
    denoiser = fresh("sd")
    denoiser.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=r"UNet2DConditionModel\.extra"):
        adapters.full(denoiser, "a")
    assert adapters.names(denoiser) == []
