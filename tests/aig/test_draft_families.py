"""DRaFT on every family: its gradient through scheduler, autoencoder and reward against finite differences."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from families import SIDE
from models import add_random_adapter

from aig import adapters, draft
from aig.draft import DraftConfig, train_step
from aig.models import load
from aig.sampler import Arm, Grid, Noise, Sampling, encode

PROMPTS, SEEDS = ["a red star", "a photo of a blue cat"], [3, 5]
FAMILIES = ("sd", "sd-v", "sdxl", "sd3", "flux")
FEW = Sampling(steps=3, guidance=2.0, block=1)


def smooth_reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A smooth function that prefers some places to others, so that its gradient is nowhere trivial."""
    h = torch.linspace(0, 3, images.shape[-1], dtype=images.dtype)
    return (torch.sin(3 * images) * torch.cos(h)).mean(dim=(1, 2, 3)) * 10


@pytest.fixture(scope="module")
def family(family_folder):
    """`family("sdxl", dtype)`: the tiny model with an adapter `a`, of random weights."""

    @cache
    def get(name, dtype=torch.float32):
        model = load(family_folder(name), dtype=dtype).sized(SIDE, SIDE)
        add_random_adapter(model, "a", size=0.1)
        return model

    return get


@pytest.mark.parametrize(
    "change",
    [{"k": 1}, {"k": 3}, {"lv": 2}, {"k": 2, "kl_weight": 1.0}],
    ids=["k1", "k3", "lv", "eps_mse"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_train_every_family(family, name, change):
    model, config = family(name), DraftConfig(FEW, micro_batch=1, **change)
    parameters = adapters.parameters(model.denoiser, "a")
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    rewards = []
    for step in range(2):
        optimizer.zero_grad()
        sums = train_step(model, smooth_reward, "a", PROMPTS, SEEDS, config, seed=step)
        assert ("kl_weight" in change) == (sums["kl"] > 0)
        optimizer.step()
        rewards.append(sums["reward"])
    assert all(torch.isfinite(p).all() for p in parameters)
    assert any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)


@pytest.mark.parametrize(
    ("name", "scheduler", "k"),
    [("sd", None, 3), ("sd", "euler", 1), ("sd", "dpm", 1), ("sd-v", None, 1), ("sdxl", None, 1), ("sdxl", "ddim", 2),
     ("sd3", None, 1), ("sd3", "dpm", 1), ("flux", None, 1)],
)  # fmt: skip
def test_the_gradient_equals_finite_differences_on_every_family(family, name, scheduler, k):
    model = family(name, torch.float64)
    config = DraftConfig(replace(FEW, scheduler=scheduler), k=k)
    parameters = adapters.parameters(model.denoiser, "a")
    for p in parameters:
        p.grad = None
    sums = train_step(model, smooth_reward, "a", PROMPTS, SEEDS, config)
    ours = [p.grad.clone() for p in parameters]
    grid, condition = Grid(model, config.sampling), encode(model, PROMPTS, config.sampling)
    # The steps before the last K carry no gradient: their outcome is held fixed, as in the truncated objective.
    noise, arm = Noise(PROMPTS, SEEDS, 0, model.latent_shape), Arm("t", "a")
    x = draft.rollout(model, condition, noise, arm, config, grid)

    @torch.no_grad()
    def loss() -> float:
        final, _ = draft.last_steps(model, condition, x, arm, config, grid, None)
        return -smooth_reward(model.decode(final), PROMPTS).mean().item()

    @torch.no_grad()
    def shift(amount: float) -> None:
        for p, g in zip(parameters, ours, strict=True):
            p.add_(g, alpha=amount / length)

    assert loss() == pytest.approx(sums["loss"], rel=1e-9)
    # Along the gradient itself the slope is its length. h is so small that hardly a pixel crosses the clamp to [0, 1],
    # but for the transformers, whose RMS norms count in float32 whatever they are given.
    length, h = torch.cat([g.flatten() for g in ours]).norm().item(), 1e-5 if model.prefix == "unet" else 3e-4
    shift(h)
    up = loss()
    shift(-2 * h)
    down = loss()
    shift(h)
    assert length > 1e-3
    assert (up - down) / (2 * h) == pytest.approx(length, rel=1e-3)


def test_gradients_of_a_multistep_scheduler_flow_through_its_history(family):
    """K = 3 of DPM-Solver++ at float32 state: the slope over a wider step."""
    model = family("sd", torch.float64)
    sampling = replace(FEW, scheduler="dpm", steps=4, guidance=1.0)
    config = DraftConfig(sampling, k=3)
    parameters = adapters.parameters(model.denoiser, "a")
    for p in parameters:
        p.grad = None
    train_step(model, smooth_reward, "a", PROMPTS, SEEDS, config)
    ours = [p.grad.clone() for p in parameters]
    length, h = torch.cat([g.flatten() for g in ours]).norm().item(), 3e-3
    grid, condition = Grid(model, sampling), encode(model, PROMPTS, sampling)
    noise, arm = Noise(PROMPTS, SEEDS, 0, model.latent_shape), Arm("t", "a")
    x = draft.rollout(model, condition, noise, arm, config, grid)
    losses = []
    with torch.no_grad():
        for amount in (h, -2 * h, h):
            for p, g in zip(parameters, ours, strict=True):
                p.add_(g, alpha=amount / length)
            final, _ = draft.last_steps(model, condition, x, arm, config, grid, None)
            losses.append(-smooth_reward(model.decode(final), PROMPTS).mean().item())
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(length, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "scheduler"), [("sd", "ddim"), ("sd", "dpm"), ("sd", "euler"), ("sd3", "flow"), ("sd3", "dpm")]
)
def test_lv_draws_its_noise_at_the_last_steps_level(family, name, scheduler):
    """x_0 noised anew is where the forward process of the scheduler's kind puts it."""
    x_0, z = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    grid = Grid(family(name), replace(FEW, scheduler=scheduler))
    sigma = None if scheduler == "ddim" else grid.scheduler.sigmas[2]
    if scheduler == "euler":
        alpha = 1.0  # the variance explodes
    elif name == "sd3":
        alpha = 1 - sigma
    else:
        alpha = grid.scheduler.alphas_cumprod[int(grid.times[2])] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
    assert torch.allclose(grid.add_noise(2, x_0, z), alpha * x_0 + sigma * z, atol=1e-5)
