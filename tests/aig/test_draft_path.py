"""The KL penalties of training: their gradients, and the path KL that is the one which evaluation measures."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import count

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from families import SIDE
from models import add_random_adapter

from aig import adapters, draft
from aig.draft import DraftConfig, grid_of, train_step
from aig.models import load
from aig.path import PathMeter, Transitions
from aig.sampler import Arm, Grid, Noise, Sampling, advance, encode

PROMPTS, SEEDS = ["a red star", "a blue heart"], [3, 5]
FEW = Sampling(steps=4, guidance=2.0, block=1)
DDIM = {"scheduler": "ddim", "eta": 1.0}
SDE = {"scheduler": "sde-dpm"}
ARM = Arm("t", "a")


@pytest.fixture(scope="module")
def family(family_folder):
    """`family("sd", dtype)`: the tiny model with an adapter `a`, of random weights; "sd-noisy" is one whose
    DPM-Solver++ ends at the least noise of its schedule instead of none."""

    @cache
    def get(name, dtype=torch.float32):
        if name.endswith("-noisy"):
            model = copy.copy(get(name.removesuffix("-noisy"), dtype))
            model.scheduler = DPMSolverMultistepScheduler.from_config(
                model.scheduler.config, final_sigmas_type="sigma_min"
            )
            return model
        model = (
            load("tiny", dtype=dtype) if name == "tiny" else load(family_folder(name), dtype=dtype).sized(SIDE, SIDE)
        )
        add_random_adapter(model, "a", size=0.1)
        return model

    return get


def nothing(images, prompts):
    """A reward without a preference: what is left of the gradient is the penalty's."""
    return (images * 0).sum(dim=(1, 2, 3))


def gradient(model, config):
    parameters = adapters.parameters(model.denoiser, "a")
    for p in parameters:
        p.grad = None
    sums = train_step(model, nothing, "a", PROMPTS, SEEDS, config)
    return torch.cat([p.grad.flatten() for p in parameters]), sums


FAMILIES = ("tiny", "sd", "sd-noisy", "sd-v", "sd-v-noisy", "sdxl", "sd3", "flux")
SAMPLERS = {
    "own": {}, "ddim": {"scheduler": "ddim"}, "ddim with noise": DDIM, "euler": {"scheduler": "euler"},
    "dpm": {"scheduler": "dpm"}, "sde-dpm": SDE, "flow": {"scheduler": "flow"},
}  # fmt: skip
# Where each of the last steps adds noise: where the schedule of the model's own scheduler does not end without any.
STOCHASTIC = {
    ("sd", "ddim with noise"), ("sd-noisy", "ddim with noise"), ("sd-v", "ddim with noise"),
    ("sd-v-noisy", "ddim with noise"), ("sd-noisy", "sde-dpm"), ("sd-v-noisy", "sde-dpm"),
}  # fmt: skip


def fits(model, sampling):
    try:
        Grid(model, sampling)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_penalty_that_is_not_refused_has_a_gradient(family, name, k):
    model, seen = family(name), []
    for sampler, change in SAMPLERS.items():
        sampling = replace(FEW, **change)
        if not fits(model, sampling):
            continue
        seen.append(sampler)
        for form in ("eps_mse", "path"):
            config = DraftConfig(sampling, k=k, kl_weight=1.0, kl=form)
            if form == "path" and (name, sampler) not in STOCHASTIC:
                with pytest.raises(ValueError, match=f"the last {k} of 4 steps, and .* adds none in .*kl = 'eps_mse'"):
                    gradient(model, config)
                continue
            found, sums = gradient(model, config)
            assert sums["kl"] > 0 and found.norm() > 1e-3 * sums["kl"], (sampler, form)
    assert len(seen) >= 3


@pytest.mark.parametrize("kl_steps", ["early", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_penalty_at_drawn_steps_that_is_not_refused_has_a_gradient(family, name, kl_steps):
    model, seen = family(name), []
    for sampler, change in SAMPLERS.items():
        sampling = replace(FEW, **change)
        for form in ("eps_mse", "path") if fits(model, sampling) else ():
            config = DraftConfig(sampling, kl_weight=1.0, kl=form, kl_steps=kl_steps)
            try:
                grid = grid_of(model, config)
            except ValueError:
                assert form == "path"
                continue
            found, sums = gradient(model, config)
            assert sums["kl"] > 0 and found.norm() > 1e-3 * sums["kl"], (sampler, form)
            assert form == "eps_mse" or (grid.order == 1 and sampler == "ddim with noise")
            seen.append((sampler, form))
    assert len(seen) >= 3
    # Unlike the last step, the early ones add noise whatever the noise level at which the schedule ends.
    with_noise = ("ddim with noise", "path") in seen
    assert with_noise == (
        name not in ("sd3", "flux") and (kl_steps == "early" or (name, "ddim with noise") in STOCHASTIC)
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["tiny", "sd", "sdxl", "sd3", "flux"])
def test_rows_of_one_forward_may_be_at_different_times(family, name, guidance):
    model = family(name, torch.float64)
    grid, condition = Grid(model, FEW), encode(model, PROMPTS, FEW)
    x = Noise(PROMPTS, SEEDS, 0, model.latent_shape).initial().to(model.dtype)
    routes = [adapters.key("a")] * 2
    with torch.no_grad():
        both = model.predict(x, grid.times[[0, 2]], condition, routes, guidance)
        apart = [
            model.predict(x[row : row + 1], grid.times[i], condition[[row]], routes[:1], guidance)
            for row, i in enumerate((0, 2))
        ]
        same = model.predict(x, grid.times[0], condition, routes, guidance)
    torch.testing.assert_close(both, torch.cat(apart), rtol=1e-6, atol=1e-8)
    assert (both[1] - same[1]).abs().max() > 1e-4


def test_draws_of_the_last_step_have_a_path_kl_too(family):
    config = DraftConfig(replace(FEW, **DDIM), lv=2, kl_weight=1.0, kl="path")
    found, sums = gradient(family("sd"), config)
    assert sums["kl"] > 0 and found.norm() > 1e-3 * sums["kl"]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sd", {}, r"with its own scheduler \(DDIMScheduler, eta = 0\) adds none in step 4: take sampling.scheduler = "
         r"'ddim' with sampling.eta > 0, or kl = 'eps_mse'$"),
        ("sd", SDE, r"with sde-dpm \(DPMSolverMultistepScheduler, eta = 0\) adds none in step 4: take sampling.sched"),
        ("sd-noisy", {"scheduler": "dpm"}, r"take sampling.scheduler = 'ddim' with .*, or sampling.scheduler = 'sde-"),
        ("tiny", DDIM, r"eta = 1\) adds none in step 4: take kl = 'eps_mse'$"),
        ("sd3", SDE, r"adds none in step 4: take kl = 'eps_mse'$"),
    ],
)  # fmt: skip
def test_a_path_kl_without_noise_is_refused_with_what_would_do(family, name, change, said):
    config = DraftConfig(replace(FEW, **change), kl_weight=1000.0, kl="path")
    with pytest.raises(ValueError, match=said):
        grid_of(family(name), config)
    assert grid_of(family(name), replace(config, kl_weight=0.0)) is not None


def last_steps_of_the_meter(model, config):
    """The mean path KL of the last K steps of whole trajectories, as evaluation measures it."""
    grid, sampling = Grid(model, config.sampling), config.sampling
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    meter, before = PathMeter(grid, 1, len(PROMPTS), model.device), []

    def observe(i, a, state, mixed, base):
        if i == len(grid) - config.k:
            before.append(meter.kl.clone())
        meter(i, a, state, mixed, base)

    with torch.no_grad():
        advance(
            model, encode(model, PROMPTS, sampling), grid.start(noise.initial(), model), [ARM], sampling, grid=grid,
            noise=noise.at_step, with_base=True, observe=observe,
        )  # fmt: skip
    return (meter.kl - before[0]).mean().item()


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "change"), [("sd", DDIM), ("sd-v", {**DDIM, "eta": 0.6}), ("sd-noisy", SDE), ("sd-v-noisy", SDE)]
)
def test_the_kl_of_training_is_what_the_meter_finds_over_the_same_steps(family, name, change, k):
    model, config = family(name), DraftConfig(replace(FEW, **change), k=k, kl_weight=1.0, kl="path", micro_batch=1)
    assert gradient(model, config)[1]["kl"] == pytest.approx(last_steps_of_the_meter(model, config), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "h", "within"),
    [("sd", DDIM, 1e-5, 1e-4), ("sd-noisy", SDE, 1e-3, 1e-2)],
    ids=["ddim", "sde-dpm"],
)
def test_the_gradient_of_the_path_kl_equals_finite_differences(family, name, change, h, within):
    """DPM-Solver++ holds its state in float32, and so asks for a wider step."""
    model, config = family(name, torch.float64), DraftConfig(replace(FEW, **change), k=3, kl_weight=1.0, kl="path")
    ours, sums = gradient(model, config)
    parameters = adapters.parameters(model.denoiser, "a")
    grid, condition = grid_of(model, config), encode(model, PROMPTS, config.sampling)
    noise, before = Noise(PROMPTS, SEEDS, 0, model.latent_shape), Transitions(grid)
    # What came before the last K steps carries no gradient, nor do the base's predictions: both are held fixed.
    x = draft.rollout(model, condition, noise, ARM, config, grid, before)
    held, predict, calls = [], model.predict, count()

    def with_held_base(x_t, t, condition, names, guidance):
        if set(names) != {adapters.BASE}:
            return predict(x_t, t, condition, names, guidance)
        i = next(calls) % config.k
        if i == len(held):
            held.append(predict(x_t, t, condition, names, guidance))
        return held[i]

    model.predict = with_held_base

    @torch.no_grad()
    def loss():
        path = before[slice(None)]
        return draft.last_steps(model, condition, x, ARM, config, grid, noise.at_step, path)[1].mean().item()

    def shift(amount):
        with torch.no_grad():
            for p, g in zip(parameters, ours.split([p.numel() for p in parameters]), strict=True):
                p.add_(g.view_as(p), alpha=amount / ours.norm().item())

    try:
        assert loss() == pytest.approx(sums["kl"], rel=1e-6)
        shift(h)
        up = loss()
        shift(-2 * h)
        down = loss()
        shift(h)
    finally:
        model.predict = predict
    assert (up - down) / (2 * h) == pytest.approx(ours.norm().item(), rel=within)
