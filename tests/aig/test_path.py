"""Path KL and path length to the base: closed forms on a linear-Gaussian model, Monte Carlo, and identities."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from models import tiny_with
from peft.tuners.lora import Linear, LoraConfig
from torch import nn

from aig import adapters, schedules
from aig.models.protocol import Condition
from aig.path import PathMeter
from aig.sampler import Arm, Grid, Noise, Sampling, State, advance, encode, sample_arms, tuned_length

BASE_MAP = torch.tensor([[0.9, 0.2], [-0.1, 0.6]])
CHANGE = torch.tensor([[0.15, -0.1], [0.05, 0.2]])  # what the adapter adds
SHIFT = torch.tensor([0.3, -0.2])
ARMS = [Arm("base", None, 1.0, "base"), Arm("tuned", "a"), Arm("linear", "a", 1.0, "linear")]
DDIM = Sampling(steps=5, guidance=1.0, eta=1.0, block=1, max_rows=2**16)
SDE = replace(DDIM, eta=0.0, scheduler="sde-dpm")
STOCHASTIC = [DDIM, replace(DDIM, eta=0.6), SDE]
IMAGES = 3000


class LinearModel:
    """eps = W x + b at every time, on latents of two values: each transition of a trajectory is linear and Gaussian."""

    name, device, dtype, latent_shape = "linear", torch.device("cpu"), torch.float32, (2, 1, 1)
    scheduler = DDIMScheduler(num_train_timesteps=100, beta_start=1e-3, beta_end=0.1, clip_sample=False)

    def __init__(self) -> None:
        layer = nn.Linear(2, 2)
        self.denoiser = nn.Sequential(Linear(layer, "a", config=LoraConfig(), r=2, lora_alpha=2)).requires_grad_(False)
        lora = self.denoiser[0]
        layer.weight.data, layer.bias.data = BASE_MAP, SHIFT
        lora.lora_A["a"].weight.data, lora.lora_B["a"].weight.data = torch.eye(2), CHANGE

    def encode(self, prompts, negative="", distilled=None):
        return Condition({"encoder_hidden_states": torch.zeros(len(prompts), 1, 1)}, {})

    def predict(self, x_t, t, condition, names, guidance):
        with adapters.routed(self.denoiser, names):
            return self.denoiser(x_t.flatten(1)).view_as(x_t)

    def set_timesteps(self, scheduler, steps):
        scheduler.set_timesteps(steps)


@pytest.fixture(scope="module")
def model():
    return LinearModel()


@pytest.fixture(scope="module")
def tiny():
    return tiny_with("a")


def ddim_steps(eta):
    """(factor of x, factor of eps, sigma) of each step: Song et al. 2020, equations (12) and (16), in float64."""
    bar = torch.cumprod(1 - torch.linspace(1e-3, 0.1, 100, dtype=torch.float64), 0)
    steps = []
    for t in range(80, -1, -20):
        now, after = bar[t], bar[t - 20] if t else torch.ones((), dtype=torch.float64)
        sigma = eta * ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
        steps.append(((after / now).sqrt(), (1 - after - sigma**2).sqrt() - (after * (1 - now) / now).sqrt(), sigma))
    return steps


@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize("arm", ARMS[1:], ids=lambda arm: arm.name)
def test_the_mean_kl_is_the_closed_form_of_two_linear_gaussian_processes(model, arm, eta):
    weights = schedules.weights(schedules.parse(arm.schedule), range(5), 100)
    change, base, shift = CHANGE.double(), BASE_MAP.double(), SHIFT.double()
    mean, covariance, wanted = torch.zeros(2).double(), torch.eye(2).double(), 0.0
    for (of_x, of_eps, sigma), w in zip(ddim_steps(eta), weights, strict=True):
        if sigma > 0:
            # E ||of_eps w C x||^2 / (2 sigma^2) for x ~ N(mean, covariance)
            second = covariance + torch.outer(mean, mean)
            wanted += float((of_eps * w / sigma) ** 2 / 2 * torch.trace(change @ second @ change.T))
        step = of_x * torch.eye(2) + of_eps * (base + w * change)
        mean, covariance = step @ mean + of_eps * shift, step @ covariance @ step.T + sigma**2 * torch.eye(2)
    kl = sample_arms(
        model, ["p"] * IMAGES, range(IMAGES), [arm], sampling=replace(DDIM, eta=eta), measure_path=True
    ).kl[arm.name].double()  # fmt: skip
    error = float(kl.std()) / IMAGES**0.5
    assert 4 * error < 0.2 * wanted
    assert abs(float(kl.mean()) - wanted) < 4 * error


def log_density(path, w, sampling, grid):
    """log p of trajectories path (T + 1, G, 2) given x_T under eps = (W + w_i C) x + b, up to what all models share."""
    total = torch.zeros(path.shape[1], dtype=torch.float64)
    memory = None
    sigmas = grid.scheduler.sigmas.double() if sampling.scheduler else None
    for i, (x, after) in enumerate(pairwise(path)):
        eps = x @ (BASE_MAP + w[i] * CHANGE).double().T + SHIFT.double()
        if sigmas is None:
            of_x, of_eps, sigma = ddim_steps(sampling.eta)[i]
            mean = of_x * x + of_eps * eps
        else:  # SDE-DPM-Solver++(2M), Lu et al. 2022, with sigma = sigma_t / alpha_t
            alpha = (1 + sigmas[i : i + 2] ** 2).rsqrt()
            h = (sigmas[i] / sigmas[i + 1]).log()
            x_0 = x / alpha[0] - sigmas[i] * eps
            slope = 0.0 if memory is None else (x_0 - memory) * h / (sigmas[i - 1] / sigmas[i]).log()
            sigma = alpha[1] * sigmas[i + 1] * (1 - (-2 * h).exp()).sqrt()
            mean = alpha[1] * sigmas[i + 1] / (alpha[0] * sigmas[i]) * (-h).exp() * x
            mean = mean + alpha[1] * (1 - (-2 * h).exp()) * (x_0 + slope / 2)
            memory = x_0
        if sigma > 0:
            total -= (after - mean).square().sum(1) / (2 * sigma**2)
    return total


@pytest.mark.parametrize("sampling", STOCHASTIC, ids=["ddim", "ddim-0.6", "sde-dpm"])
@pytest.mark.parametrize("arm", ARMS[1:], ids=lambda arm: arm.name)
def test_the_mean_kl_is_that_of_the_log_ratio_of_the_two_models_along_trajectories(model, arm, sampling):
    grid = Grid(model, sampling)
    torch.manual_seed(0)
    images = 20_000
    noise = torch.randn(6, images, 2, 1, 1)
    meter, seen = PathMeter(grid, 1, images, model.device), []

    def observe(i, a, state, mixed, base):
        seen.append(state.x.flatten(1))
        meter(i, a, state, mixed, base)

    condition = encode(model, ["p"] * images, sampling)
    with torch.no_grad():
        final = advance(
            model, condition, noise[5], [arm], sampling, grid=grid, noise=lambda i: noise[i], with_base=True,
            observe=observe,
        )[0].x.flatten(1)  # fmt: skip
    path = torch.stack([*seen, final]).double()
    ratio = log_density(path, grid.weights(arm.schedule), sampling, grid) - log_density(path, [0] * 5, sampling, grid)
    kl = meter.kl[0].double()
    error = float((ratio - kl).std()) / images**0.5
    assert 4 * error < 0.2 * float(kl.mean())
    assert abs(float((ratio - kl).mean())) < 4 * error


@pytest.mark.parametrize("sampling", STOCHASTIC, ids=["ddim", "ddim-0.6", "sde-dpm"])
def test_a_mixed_prediction_at_the_same_place_has_w_squared_of_the_tuned_ones_kl(tiny, sampling):
    grid = Grid(tiny, sampling)
    torch.manual_seed(0)
    meter = PathMeter(grid, 2, 4, tiny.device)
    for i in range(4):
        x, base, tuned = (torch.randn(4, *tiny.latent_shape) for _ in range(3))
        meter(i, 0, State(x), tuned, base)
        meter(i, 1, State(x), schedules.mix(base, tuned, 0.3), base)
    assert torch.allclose(meter.kl[1], 0.09 * meter.kl[0], rtol=1e-4)
    assert meter.kl[0].min() > 0


@pytest.mark.parametrize("sampling", [DDIM, SDE], ids=["ddim", "sde-dpm"])
def test_an_arms_kl_is_the_one_of_the_arm_sampled_alone(tiny, sampling):
    sampling = replace(sampling, block=8)
    prompts, seeds = ["a red star", "a blue heart"], [0, 1]
    arms = [*ARMS, Arm("power", "a", 1.0, "power:2"), Arm("half", "a", 0.5)]
    together = sample_arms(tiny, prompts, seeds, arms, sampling=sampling, measure_path=True)
    for arm in arms:
        alone = sample_arms(tiny, prompts, seeds, [arm], sampling=sampling, measure_path=True)
        # A prediction's last bit may depend on how many rows share its forward.
        assert torch.allclose(together.kl[arm.name], alone.kl[arm.name], rtol=1e-4), arm.name
    assert together.kl["base"].abs().max() == 0
    assert together.kl["power"].min() > 0 and (together.kl["power"] < together.kl["tuned"]).all()


def test_deterministic_sampling_has_a_path_length_and_no_kl(tiny):
    sampling = Sampling(steps=3, guidance=1.0)
    samples = sample_arms(tiny, ["a red star"], [0], ARMS, sampling=sampling, measure_path=True)
    assert samples.kl == {}
    assert samples.path["tuned"].min() > 0


def test_one_step_to_the_end_of_the_noise_has_no_kl_either(model):
    samples = sample_arms(model, ["p"], [0], ARMS, sampling=replace(DDIM, steps=1), measure_path=True)
    assert samples.kl == {}
    assert samples.path["tuned"].min() > 0


def test_a_path_without_the_bases_predictions_is_refused(tiny):
    grid = Grid(tiny, DDIM)
    x = torch.zeros(1, *tiny.latent_shape)
    with pytest.raises(ValueError, match="with_base=True"):
        PathMeter(grid, 1, 1, tiny.device)(0, 0, State(x), x, None)


def test_the_length_of_an_adapter_is_the_root_mean_square_of_what_it_adds():
    model, prompts = LinearModel(), ["a", "b"]
    pairs = [(prompt, seed) for prompt in prompts for seed in range(50)]
    x = Noise([p for p, _ in pairs], [s for _, s in pairs], 0, (2, 1, 1)).initial().flatten(1)
    expected = (x @ CHANGE.T).square().mean().sqrt()
    one_step = replace(DDIM, eta=0.0, steps=1)
    assert tuned_length(model, "a", prompts, seeds=50, sampling=one_step) == pytest.approx(float(expected), rel=1e-5)
