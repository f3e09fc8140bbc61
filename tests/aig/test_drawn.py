"""KL penalties at drawn steps: unbiased, with the gradient of finite differences, the same in any batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from models import tiny_with

from aig import adapters
from aig.draft import DraftConfig, last_steps, rollout, train_step
from aig.drawn import DrawnStates
from aig.objective import grid_of
from aig.path import PathMeter
from aig.sampler import Arm, Noise, Sampling, advance, encode

PROMPTS, SEEDS = ["a red star", "a blue heart", "a green cross"], [3, 5, 7]
FEW = Sampling(steps=4, guidance=3.0, block=1)
NOISY = replace(FEW, scheduler="ddim", eta=1.0)  # adds no noise in its last step
ARM = Arm("t", "a")


@pytest.fixture(scope="module")
def model():
    return tiny_with("a")


def nothing(images, prompts):
    """A reward without a preference: what is left of the gradient is the penalty's."""
    return (images * 0).sum(dim=(1, 2, 3))


def gradient(model, config, prompts=PROMPTS, seeds=SEEDS, **keywords):
    parameters = adapters.parameters(model.denoiser, "a")
    for p in parameters:
        p.grad = None
    sums = train_step(model, nothing, "a", prompts, seeds, config, **keywords)
    return torch.cat([p.grad.flatten() for p in parameters]), sums


def choose(monkeypatch, step):
    """Let every image draw this step, if it is among those that are drawn from."""
    monkeypatch.setattr(Noise, "choose", lambda self, tag, steps: [step] * len(self.keys))


def meter_of(model, config):
    """Path length and nats of each step of whole trajectories, summed over the images: what evaluation measures."""
    grid, noise = grid_of(model, replace(config, kl_weight=0.0)), Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    meter, steps = PathMeter(grid, 1, len(PROMPTS), model.device), []

    def observe(*step):
        before = [0.0 if total is None else total.sum().item() for total in (meter.length, meter.kl)]
        meter(*step)
        after = [0.0 if total is None else total.sum().item() for total in (meter.length, meter.kl)]
        steps.append([b - a for a, b in zip(before, after, strict=True)])

    with torch.no_grad():
        advance(
            model, encode(model, PROMPTS, config.sampling), grid.start(noise.initial(), model), [ARM], config.sampling,
            grid=grid, noise=noise.at_step, with_base=True, observe=observe,
        )  # fmt: skip
    return steps


@pytest.mark.parametrize(("kl_steps", "k"), [("early", 1), ("early", 3), ("all", 1), ("all", 3)])
def test_the_mean_over_all_draws_is_the_mean_path_length_of_these_steps(model, monkeypatch, kl_steps, k):
    config = DraftConfig(FEW, k=k, kl_weight=1.0, kl_steps=kl_steps, micro_batch=2)
    steps = range(4 - k) if kl_steps == "early" else range(4)
    found = []
    for step in steps:
        choose(monkeypatch, step)
        found.append(gradient(model, config)[1]["kl"])
    measured = meter_of(model, config)
    expected = sum(measured[i][0] for i in steps) * 4 / len(steps) / len(PROMPTS)  # lengths are over all four steps
    assert sum(found) / len(found) == pytest.approx(expected, rel=1e-4)
    assert max(found) > 1.05 * min(found) or len(found) == 1


def test_the_mean_over_all_draws_of_the_path_kl_is_the_sum_of_the_nats(model, monkeypatch):
    config = DraftConfig(NOISY, kl_weight=1.0, kl="path", kl_steps="early")
    found = []
    for step in range(3):
        choose(monkeypatch, step)
        found.append(gradient(model, config)[1]["kl"])
    expected = sum(nats for _, nats in meter_of(model, config)) / len(PROMPTS)
    assert sum(found) / 3 == pytest.approx(expected, rel=1e-4)


def test_draws_are_uniform_and_depend_on_the_image_alone():
    images = list(range(3000))
    noise = Noise(["a"] * len(images), images, 0, (1, 1, 1))
    drawn = noise.choose("kl 0", range(2, 5))
    counts = Counter(drawn)
    assert set(counts) == {2, 3, 4} and all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())
    assert Noise(["a"] * 2, [7, 5], 0, (1, 1, 1)).choose("kl 0", range(2, 5)) == [drawn[7], drawn[5]]
    assert noise.choose("kl 1", range(2, 5)) != drawn


DRAWN = {
    f"{form}, {kl_steps}{', lv' * (lv > 1)}": DraftConfig(
        sampling, k=k, lv=lv, kl_weight=1.0, kl=form, kl_steps=kl_steps, micro_batch=2
    )
    for form, sampling, kl_steps, k, lv in [
        ("eps_mse", FEW, "early", 1, 1), ("eps_mse", FEW, "all", 2, 1), ("eps_mse", FEW, "early", 1, 2),
        ("eps_mse", FEW, "all", 1, 2), ("path", NOISY, "early", 2, 1), ("path", NOISY, "early", 1, 2),
    ]
}  # fmt: skip
drawn_kls = pytest.mark.parametrize("config", DRAWN.values(), ids=DRAWN)


@drawn_kls
def test_every_kl_at_drawn_steps_has_a_gradient(model, config):
    found, sums = gradient(model, config)
    assert sums["kl"] > 0 and found.norm() > 1e-3 * sums["kl"]


@drawn_kls
def test_shares_of_two_workers_and_micro_batches_add_up_to_the_whole_batch(model, config):
    whole, sums = gradient(model, replace(config, micro_batch=3))
    first, a = gradient(model, config, PROMPTS[:1], SEEDS[:1], total=3)
    second, b = gradient(model, config, PROMPTS[1:] + PROMPTS[:1], SEEDS[1:] + SEEDS[:1], total=3, padding=1)
    assert (first + second - whole).abs().max() < 1e-4 * whole.abs().max()
    assert a["kl"] + b["kl"] == pytest.approx(sums["kl"], rel=1e-4)


@pytest.mark.parametrize(
    ("form", "sampling", "kl_steps", "k"),
    [("eps_mse", FEW, "early", 1), ("eps_mse", FEW, "all", 3), ("path", NOISY, "early", 2)],
)
def test_the_gradient_equals_finite_differences_at_the_drawn_states(form, sampling, kl_steps, k):
    model = tiny_with("a", dtype=torch.float64)
    config = DraftConfig(sampling, k=k, kl_weight=2.0, kl=form, kl_steps=kl_steps)
    ours, sums = gradient(model, config)
    parameters = adapters.parameters(model.denoiser, "a")
    grid, condition = grid_of(model, config), encode(model, PROMPTS, sampling)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    drawn = DrawnStates(model, condition, ARM, config, grid, noise)
    whole = drawn.observe(slice(None))
    with torch.no_grad():  # the states are held fixed
        x = rollout(model, condition, noise, ARM, config, grid, observe=whole)
        last_steps(model, condition, x, ARM, config, grid, noise.at_step, observe=whole)

    @torch.no_grad()
    def kl_along(amount):
        for p, g in zip(parameters, ours.split([p.numel() for p in parameters]), strict=True):
            p.add_(g.view_as(p), alpha=amount / ours.norm().item())
        return drawn.kl([0, 1, 2]).mean().item()

    h = 1e-5
    assert kl_along(0) == pytest.approx(sums["kl"], rel=1e-8)
    up, down = kl_along(h), kl_along(-2 * h)
    assert 2 * (up - down) / (2 * h) == pytest.approx(ours.norm().item(), rel=1e-4)


def test_a_kl_without_early_steps_is_refused():
    with pytest.raises(ValueError, match=r"draft\.kl_steps = 'early' must be .* not early if k is sampling\.steps"):
        DraftConfig(FEW, k=4, kl_weight=1.0, kl_steps="early")
    assert not DraftConfig(FEW, k=4, kl_steps="early").drawn


@pytest.mark.parametrize(
    ("sampling", "kl_steps", "said"),
    [
        (FEW, "early", r"in each of the first 3 of 4 steps, .* adds none in steps 1, 2, 3: take .*'ddim' with "),
        (NOISY, "all", r"in each of all 4 steps, .* adds none in step 4: take kl = 'eps_mse'$"),
        (replace(FEW, scheduler="sde-dpm"), "early", r"one prediction for kl_steps = 'early', .* reads 2: take .*ddim"),
    ],
)
def test_a_path_kl_at_drawn_steps_that_have_none_is_refused_with_what_would_do(model, sampling, kl_steps, said):
    with pytest.raises(ValueError, match=said):
        grid_of(model, DraftConfig(sampling, kl_weight=1.0, kl="path", kl_steps=kl_steps))
