"""Reward smoothing: the loss scores noisy images, whose noise is of the image's own seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import tiny_with

from aig import adapters
from aig.draft import DraftConfig, last_steps, rollout, train_step
from aig.objective import grid_of
from aig.sampler import Arm, Noise, Sampling, encode

PROMPTS, SEEDS = ["a red star", "a blue heart", "a green cross"], [3, 5, 7]
FEW = Sampling(steps=4, guidance=3.0, block=1)
SMOOTH = DraftConfig(FEW, reward_smoothing=0.1, smoothing_draws=2, micro_batch=2)
ARM = Arm("t", "a")


@pytest.fixture(scope="module")
def model():
    return tiny_with("a")


def curved(images, prompts):
    """A smooth function that prefers some places to others, and bends, so that noise changes its mean."""
    h = torch.linspace(0, 3, images.shape[-1], dtype=images.dtype)
    return (torch.sin(3 * images) * torch.cos(h) - images**2).mean(dim=(1, 2, 3)) * 10


def gradient(model, config, prompts=PROMPTS, seeds=SEEDS, reward=curved, **keywords):
    parameters = adapters.parameters(model.denoiser, "a")
    for p in parameters:
        p.grad = None
    sums = train_step(model, reward, "a", prompts, seeds, config, **keywords)
    return torch.cat([p.grad.flatten() for p in parameters]), sums


def test_the_gradient_equals_finite_differences_with_the_noise_held_fixed():
    model = tiny_with("a", dtype=torch.float64)
    ours, sums = gradient(model, SMOOTH)
    parameters = adapters.parameters(model.denoiser, "a")
    grid, condition = grid_of(model, SMOOTH), encode(model, PROMPTS, FEW)
    x = rollout(model, condition, Noise(PROMPTS, SEEDS, 0, model.latent_shape), ARM, SMOOTH, grid)
    noise = Noise(PROMPTS, SEEDS, 0, (3, 32, 32))
    drawn = [noise.draw(f"smoothing 0 {m}").double() for m in range(2)]

    @torch.no_grad()
    def loss_along(amount):
        for p, g in zip(parameters, ours.split([p.numel() for p in parameters]), strict=True):
            p.add_(g.view_as(p), alpha=amount / ours.norm().item())
        pictures = model.decode(last_steps(model, condition, x, ARM, SMOOTH, grid, None)[0])
        return -torch.stack([curved((pictures + 0.1 * z).clamp(0, 1), PROMPTS) for z in drawn]).mean().item()

    h = 1e-5
    assert loss_along(0) == pytest.approx(sums["loss"], rel=1e-6)  # the noise is drawn in float32
    up, down = loss_along(h), loss_along(-2 * h)
    assert (up - down) / (2 * h) == pytest.approx(ours.norm().item(), rel=1e-3)


@pytest.mark.parametrize("lv", [1, 2])
def test_the_smoothed_reward_adds_noise_of_the_given_size_and_new_noise_in_each_draw(model, monkeypatch, lv):
    """Grey images, whose noise no clamp touches: the mean square around grey is the noise's variance."""
    monkeypatch.setattr(
        model, "decode", lambda latents: 0.5 + 0 * latents.mean() + torch.zeros(len(latents), 3, 32, 32)
    )
    scored = []

    def square(images, prompts):
        scored.append(images.detach())
        return (images - 0.5).square().mean(dim=(1, 2, 3))

    config = DraftConfig(FEW, lv=lv, reward_smoothing=0.05, smoothing_draws=4)
    assert gradient(model, config, reward=square)[1]["reward"] == pytest.approx(0.05**2, rel=0.05)
    rows = torch.cat(scored).flatten(1)
    assert len(rows) == 3 * 4 * lv
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.1


def test_images_are_scored_in_the_range_that_rewards_take(model):
    def strict(images, prompts):
        assert images.min() >= 0 and images.max() <= 1
        return curved(images, prompts)

    gradient(model, replace(SMOOTH, reward_smoothing=2.0), reward=strict)


def test_shares_of_two_workers_and_micro_batches_add_up_to_the_whole_batch(model):
    whole, sums = gradient(model, replace(SMOOTH, micro_batch=3))
    first, a = gradient(model, SMOOTH, PROMPTS[:1], SEEDS[:1], total=3)
    second, b = gradient(model, SMOOTH, PROMPTS[1:] + PROMPTS[:1], SEEDS[1:] + SEEDS[:1], total=3, padding=1)
    assert (first + second - whole).abs().max() < 1e-4 * whole.abs().max()
    assert a["reward"] + b["reward"] == pytest.approx(sums["reward"], rel=1e-4)


@pytest.mark.parametrize(
    "change", [{"reward_smoothing": -0.1}, {"reward_smoothing": float("nan")}, {"smoothing_draws": 0}]
)
def test_smoothing_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=rf"draft\.{next(iter(change))} = "):
        DraftConfig(FEW, **change)
