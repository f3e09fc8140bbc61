"""Every family against its classic diffusers pipeline, from the same noise."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import huggingface_hub
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FluxPipeline,
    PNDMScheduler,
)
from diffusers.schedulers import scheduling_ddim, scheduling_dpmsolver_multistep
from diffusers.utils import logging
from families import SIDE
from models import add_random_adapter

from aig import adapters
from aig.models import load, resolve
from aig.path import Transitions
from aig.sampler import Arm, Grid, Noise, Sampling, State, advance, encode, sample_arms

PROMPTS, SEEDS = ["a red star", "a photo of a blue cat"], [0, 1]
BASE = Arm("base", None, 1.0, "base")
FAMILIES = ("sd", "sd-v", "sdxl", "sd3", "flux")
LATENT = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "euler": EulerDiscreteScheduler.from_config,
    "dpm": DPMSolverMultistepScheduler.from_config,
}
FLOW = {
    "flow": None,
    "dpm": lambda config: DPMSolverMultistepScheduler.from_config(
        config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=config.shift
    ),
}
USED = {"sd": LATENT, "sd-v": LATENT, "sdxl": LATENT, "sd3": FLOW, "flux": FLOW}
PAIRS = [(family, scheduler) for family, known in USED.items() for scheduler in known]


@pytest.fixture(scope="module")
def family(family_folder):
    """`family("sdxl")`: the model and its classic pipeline, each with weights of its own."""
    logging.disable_progress_bar()

    @cache
    def get(name):
        pipe = DiffusionPipeline.from_pretrained(family_folder(name), use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        return load(family_folder(name)).sized(SIDE, SIDE), pipe

    yield get
    logging.enable_progress_bar()


def classic(name, pipe, model, noise, scheduler=None, output_type="latent", guidance=1.0, negative="", **options):
    """The pipeline's own latents (B, C, H, W) or images, from our noise."""
    own = pipe.scheduler
    if scheduler is not None:
        pipe.scheduler = scheduler(own.config)
    height, width = model.image_size
    x_t = noise.initial().to(model.dtype)
    if name == "flux":
        x_t = FluxPipeline._pack_latents(x_t, *x_t.shape)
        options |= {"true_cfg_scale": guidance, "guidance_scale": 3.5, "negative_prompt": [negative] * len(PROMPTS)}
    else:
        options |= {"guidance_scale": guidance, "negative_prompt": [negative] * len(PROMPTS) if negative else None}
    try:
        out = pipe(
            PROMPTS, height=height, width=width, num_inference_steps=4, latents=x_t, output_type=output_type, **options
        ).images
    finally:
        pipe.scheduler = own
    if name == "flux" and output_type == "latent":
        return FluxPipeline._unpack_latents(out, height, width, pipe.vae_scale_factor)
    return out


def assert_close(ours, theirs, tolerance=1e-5):
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@contextmanager
def replayed(module, noise):
    """Stands in for a scheduler's random numbers: hands out our noise step by step."""
    steps = iter(range(1000))

    def hand_out(shape, generator=None, device=None, dtype=None, layout=None):
        return noise.at_step(next(steps)).to(dtype)

    original, module.randn_tensor = module.randn_tensor, hand_out
    try:
        yield
    finally:
        module.randn_tensor = original


@pytest.mark.parametrize(
    ("guidance", "negative"), [(1.0, ""), (5.0, ""), (5.0, "blurry low quality")], ids=["plain", "guided", "negative"]
)
@pytest.mark.parametrize(("name", "scheduler"), PAIRS)
def test_latents_equal_those_of_the_classic_pipeline(family, name, scheduler, guidance, negative):
    model, pipe = family(name)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    sampling = Sampling(4, guidance, scheduler=scheduler, negative=negative, block=1)
    ours = sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=sampling).latents["base"]
    theirs = classic(name, pipe, model, noise, USED[name][scheduler], guidance=guidance, negative=negative)
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_a_size_that_is_not_square_equal_those_of_the_classic_pipeline(family, name):
    model, pipe = family(name)
    model = model.sized(SIDE, SIDE + 8)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    sampling = replace(model.defaults, steps=4, guidance=3.0)
    ours = model.decode(sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=sampling).latents["base"])
    theirs = classic(name, pipe, model, noise, output_type="pt", guidance=3.0)
    assert ours.shape == (2, 3, SIDE, SIDE + 8)
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl"])
def test_ddim_with_eta_equals_the_classic_pipeline_with_the_same_variance_noise(family, name):
    model, pipe = family(name)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    sampling = Sampling(4, 5.0, eta=0.7, scheduler="ddim", block=1)
    ours = sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=sampling).latents["base"]
    with replayed(scheduling_ddim, noise):
        theirs = classic(name, pipe, model, noise, LATENT["ddim"], guidance=5.0, eta=0.7)
    assert_close(ours, theirs)


def test_stochastic_dpm_equals_the_classic_pipeline_with_the_same_noise(family):
    model, pipe = family("sd")
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    sampling = Sampling(4, 5.0, scheduler="sde-dpm", block=1)
    ours = sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=sampling).latents["base"]

    def scheduler(config):
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")

    with replayed(scheduling_dpmsolver_multistep, noise):
        theirs = classic("sd", pipe, model, noise, scheduler, guidance=5.0)
    assert_close(ours, theirs)


def test_distilled_guidance_is_an_input_of_flux_beside_true_guidance(family):
    model, pipe = family("flux")
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)

    def ours(distilled):
        sampling = Sampling(4, 1.0, distilled=distilled, block=1)
        return sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=sampling).latents["base"]

    assert_close(ours(None), classic("flux", pipe, model, noise))
    assert torch.equal(ours(None), ours(3.5))
    packed = FluxPipeline._pack_latents(noise.initial(), *noise.initial().shape)
    theirs = pipe(
        PROMPTS, height=SIDE, width=SIDE, num_inference_steps=4, latents=packed, guidance_scale=1.5,
        output_type="latent",
    ).images  # fmt: skip
    assert_close(ours(1.5), FluxPipeline._unpack_latents(theirs, SIDE, SIDE, pipe.vae_scale_factor))
    assert not torch.allclose(ours(1.5), ours(3.5), rtol=1e-3)


def test_flux_without_guidance_embedding_refuses_a_distilled_scale(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("flux"), tmp_path / "schnell")
    pipe = DiffusionPipeline.from_pretrained(folder)
    config = dict(pipe.transformer.config) | {"guidance_embeds": False}
    type(pipe.transformer).from_config(config).save_pretrained(folder / "transformer")
    model = load(folder).sized(SIDE, SIDE)
    assert (model.defaults.steps, model.defaults.distilled, model.text_length) == (4, None, 256)
    assert sample_arms(model, PROMPTS[:1], [0], [BASE]).latents["base"].isfinite().all()
    with pytest.raises(ValueError, match=r"sampling\.distilled"):
        model.encode(PROMPTS, distilled=3.5)


def test_stable_diffusion_3_without_t5_equals_the_classic_pipeline(family_folder, tmp_path):
    without = {"text_encoder_3": None, "tokenizer_3": None}
    DiffusionPipeline.from_pretrained(family_folder("sd3"), **without).save_pretrained(tmp_path)
    model, pipe = load(tmp_path).sized(SIDE, SIDE), DiffusionPipeline.from_pretrained(tmp_path, **without)
    pipe.set_progress_bar_config(disable=True)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    ours = sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=Sampling(4, 3.0, block=1)).latents["base"]
    assert_close(ours, classic("sd3", pipe, model, noise, guidance=3.0))


@pytest.fixture(scope="module")
def tuned(family_folder):
    """`tuned("sdxl")`: the model with a random adapter `a`."""

    @cache
    def get(name):
        model = load(family_folder(name)).sized(SIDE, SIDE)
        add_random_adapter(model, "a", size=0.2)
        return model

    return get


ARMS = [BASE, Arm("tuned", "a"), *(Arm(s, "a", 1.0, s) for s in ("linear", "power:2", "step:0.6", "linear@time"))]


@pytest.mark.parametrize(("name", "scheduler"), [*PAIRS, ("sd", "sde-dpm")])
def test_shared_trajectories_equal_separate_ones_under_every_scheduler(tuned, name, scheduler):
    """A state that forks takes its own history along, which a multistep scheduler would otherwise share."""
    model, sampling = tuned(name), Sampling(5, 3.0, scheduler=scheduler, block=1)
    together = sample_arms(model, PROMPTS, SEEDS, ARMS, sampling=sampling)
    assert together.cost.predictions < together.cost.separate < together.cost.published
    for arm in ARMS[2:5]:
        alone = sample_arms(model, PROMPTS, SEEDS, [arm], sampling=sampling)
        assert_close(together.latents[arm.name], alone.latents[arm.name])
        assert not torch.allclose(alone.latents[arm.name], together.latents["base"], rtol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_forward_two_passes_and_fused_weights_give_the_same_latents(tuned, name):
    model, one = tuned(name), Sampling(3, 3.0, block=1)
    routed = sample_arms(model, PROMPTS, SEEDS, ARMS[:4], sampling=one).latents
    for other in (replace(one, passes=2), replace(one, passes=2, fuse=True), replace(one, block=4)):
        for arm, latents in sample_arms(model, PROMPTS, SEEDS, ARMS[:4], sampling=other).latents.items():
            assert_close(latents, routed[arm], 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_loads_into_the_familys_pipeline_and_gives_the_same_latents(family, tuned, name, tmp_path):
    model, (_, pipe) = tuned(name), family(name)
    adapters.save(model.denoiser, "a", tmp_path / "a", {})
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    sampling = Sampling(4, 3.0, block=1)
    ours = sample_arms(model, PROMPTS, SEEDS, ARMS[:2], sampling=sampling).latents
    pipe.load_lora_weights(tmp_path / "a")
    try:
        theirs = classic(name, pipe, model, noise, guidance=3.0)
    finally:
        pipe.unload_lora_weights()
    assert_close(ours["tuned"], theirs, 1e-4)
    assert not torch.allclose(ours["tuned"], ours["base"], rtol=1e-2)


def test_progress_is_the_step_fraction_and_time_counts_what_is_left(family):
    for name, scheduler in PAIRS:
        model, _ = family(name)
        grid = Grid(model, Sampling(4, 1.0, scheduler=scheduler))
        assert grid.weights("linear") == [0, 0.25, 0.5, 0.75]
        assert grid.weights("linear@time") == pytest.approx([1 - float(t) / 1000 for t in grid.times])


@pytest.mark.parametrize("name", FAMILIES)
def test_without_guidance_no_unconditional_half_is_made(family, name, monkeypatch):
    model, _ = family(name)
    rows = []
    handle = model.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        for guidance in (1.0, 2.0):
            sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=Sampling(1, guidance, block=1))
    finally:
        handle.remove()
    assert rows == [2, 4]


def test_rows_of_a_condition_are_chosen_together(family):
    for name in FAMILIES:
        condition = family(name)[0].encode(PROMPTS)
        one = condition[[1, 1, 0]]
        assert len(one) == 3
        for key, tensor in condition.conditional.items():
            assert torch.equal(one.conditional[key], tensor[[1, 1, 0]])
            assert condition.unconditional[key].shape == (1, *tensor.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_gives_what_the_classic_pipeline_gives_in_it(family, family_folder, name, dtype):
    model = load(family_folder(name), dtype=dtype).sized(SIDE, SIDE)
    assert {p.dtype for p in model.denoiser.parameters()} == {dtype}
    sampling = replace(model.defaults, steps=4, guidance=2.0)
    latents = sample_arms(model, PROMPTS, SEEDS, [BASE], sampling=sampling).latents["base"]
    model.pipe.set_progress_bar_config(disable=True)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    assert latents.dtype == dtype
    assert_close(latents.float(), classic(name, model.pipe, model, noise, guidance=2.0).float(), 0.02)
    full, _ = family(name)
    assert (model.decode(latents).float() - full.decode(latents.float())).abs().mean() < 0.02
    assert not any(p.requires_grad for m in (model.pipe.vae, model.pipe.text_encoder) for p in m.parameters())


def test_sdxl_decodes_in_float32_where_its_autoencoder_overflows_in_float16(family_folder):
    assert load(family_folder("sdxl"), dtype=torch.float16).pipe.vae.dtype == torch.float32
    assert load(family_folder("sdxl"), dtype=torch.bfloat16).pipe.vae.dtype == torch.bfloat16


def test_latents_are_unscaled_by_mean_and_deviation_where_the_autoencoder_has_them(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("sdxl"), tmp_path / "x")
    path = folder / "vae" / "config.json"
    mean, std = [1.0, -2.0, 0.5, 0.0], [8.0, 5.0, 5.0, 3.0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latents_mean": mean, "latents_std": std}))
    model, pipe = load(folder).sized(SIDE, SIDE), DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = Noise(PROMPTS, SEEDS, 0, model.latent_shape)
    latents = classic("sdxl", pipe, model, noise)
    assert_close(model.decode(latents), classic("sdxl", pipe, model, noise, output_type="pt"))


def test_a_prompt_that_is_too_long_is_cut_with_one_warning(family):
    model, _ = family("sdxl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        long = model.encode(["red " * 40, "blue " * 40])
    assert ["is cut there" in str(w.message) for w in caught] == [True]
    assert torch.equal(long.embeddings[0], model.encode(["red " * 14]).embeddings[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(PROMPTS, "blurry")


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [("sd", (16, 17), "width = 17 .* use 16 or 18"), ("sd3", (18, 16), "height = 18 .* use 16 or 20"),
     ("flux", (16, 2), "width = 2 .* use 4 or 8"), ("sd3", (16, 128), "width = 128 .* at most 64")],
)  # fmt: skip
def test_a_size_that_the_model_cannot_take_is_refused_with_one_that_it_can(family, name, size, said):
    with pytest.raises(ValueError, match=said):
        family(name)[0].sized(*size)


def test_a_model_has_the_size_that_its_denoiser_was_made_for(family_folder):
    sizes = {name: load(family_folder(name)).image_size for name in FAMILIES}
    assert sizes == {**dict.fromkeys(FAMILIES, (SIDE, SIDE)), "flux": (256, 256)}


def test_a_scheduler_that_is_not_known_is_refused_by_name(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("sd"), tmp_path / "pndm")
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    model = load(folder).sized(SIDE, SIDE)
    with pytest.raises(ValueError, match=r"PNDMScheduler.*sampling\.scheduler to one of ddim"):
        Grid(model, Sampling(4, 1.0))
    assert model.defaults.scheduler == "ddim"
    assert isinstance(Grid(model, model.defaults).scheduler, DDIMScheduler)


def test_a_latent_consistency_model_is_refused(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("sd"), tmp_path / "lcm")
    unet = DiffusionPipeline.from_pretrained(folder).unet
    type(unet).from_config(dict(unet.config) | {"time_cond_proj_dim": 8}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="latent consistency model"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [("sd", {"scheduler": "flow"}, "'flow' does not fit a model that predicts noise"),
     ("sd3", {"scheduler": "euler"}, "'euler' does not fit a model that predicts a velocity"),
     ("sdxl", {"eta": 0.5}, "eta = 0.5 needs DDIM, not EulerDiscreteScheduler"),
     ("flux", {"eta": 0.5}, "eta = 0.5 needs DDIM, not FlowMatchEulerDiscreteScheduler")],
)  # fmt: skip
def test_a_scheduler_that_does_not_fit_is_refused_with_those_that_do(family, name, change, said):
    with pytest.raises(ValueError, match=said):
        Grid(family(name)[0], Sampling(4, 1.0, **change))


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("sd", Sampling(5, 1.0, eta=0.8)), ("sd-v", Sampling(5, 1.0, eta=0.8)),
     ("sd", Sampling(5, 1.0, scheduler="sde-dpm")), ("sd-v", Sampling(5, 1.0, scheduler="sde-dpm")),
     ("sd3", Sampling(5, 1.0, scheduler="sde-dpm"))],
)  # fmt: skip
def test_a_transitions_kl_is_that_of_a_stochastic_schedulers_gaussians(family, name, sampling):
    grid = Grid(family(name)[0], sampling)
    torch.manual_seed(0)
    x, v, w, m, n = (torch.randn(1, 3, dtype=torch.float64) for _ in range(5))
    for i in (1, 3):
        mine, other = ((each,) * min(i, 2) if sampling.scheduler else () for each in (m, n))
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        ours = Transitions(grid, mine, other).step(i, x, v, w).item()
        mean, other = grid.move(i, v, State(x, mine), zero).x, grid.move(i, w, State(x, other), zero).x
        deviation = (grid.move(i, v, State(x, mine), one).x - mean)[0, 0]
        gaussians = [torch.distributions.Normal(mu, deviation) for mu in (mean, other)]
        assert ours == pytest.approx(torch.distributions.kl_divergence(*gaussians).sum().item(), rel=1e-4)


@pytest.mark.parametrize(("name", "scheduler"), PAIRS)
def test_penalized_predictions_are_those_of_eps_or_velocity(family, name, scheduler):
    """eps_scale against the definition: predictions that differ by d, seen as noises of the same x_t."""
    grid = Grid(family(name)[0], Sampling(4, 1.0, scheduler=scheduler))
    if name != "sd-v":
        assert grid.eps_scale(2) == 1
        return
    t = int(grid.times[2]) if scheduler != "euler" else float(grid.times[2])
    # v = sqrt(a) eps - sqrt(1 - a) x_0 of x_t = sqrt(a) x_0 + sqrt(1 - a) eps gives eps = sqrt(a) v + sqrt(1 - a) x_t.
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    low, high = int(t), min(int(t) + 1, 999)
    sigma = [((1 - bar[j]) / bar[j]) ** 0.5 for j in (low, high)]
    between = sigma[0] + (t - low) * (sigma[1] - sigma[0])
    assert grid.eps_scale(2) == pytest.approx(float(1 / (1 + between**2)), rel=1e-4)


def test_a_rollout_that_is_stopped_and_goes_on_is_the_whole_one(family):
    """What a multistep scheduler remembers goes along in the state."""
    for name, scheduler in (("sd", "dpm"), ("flux", "dpm"), ("sdxl", "euler")):
        model, _ = family(name)
        sampling = Sampling(5, 1.0, scheduler=scheduler, block=1)
        grid, condition = Grid(model, sampling), encode(model, PROMPTS, sampling)
        start = grid.start(Noise(PROMPTS, SEEDS, 0, model.latent_shape).initial(), model)
        with torch.no_grad():
            whole = advance(model, condition, start, [BASE], sampling, grid=grid)[0].x
            half = advance(model, condition, start, [BASE], sampling, grid=grid, last=3)[0]
            rest = [advance(model, condition[[r]], half[[r]], [BASE], sampling, grid=grid, first=3)[0] for r in (0, 1)]
        assert_close(torch.cat([state.x for state in rest]), whole)


def test_a_model_that_is_none_of_the_families_is_refused_with_what_was_found(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("sd"), tmp_path / "x")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtAlphaPipeline"}))
    with pytest.raises(ValueError, match=r"PixArtAlphaPipeline.*known: .*StableDiffusionXLPipeline.*FluxPipeline"):
        load(folder)


def test_pickled_weights_are_refused(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("sd"), tmp_path / "x")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"unet: holds no \*\.safetensors.*safe_serialization"):
        load(folder)
    with pytest.raises(ValueError, match=r"holds no \*\.fp16\.safetensors"):
        load(family_folder("sd"), variant="fp16")


def test_a_hub_id_is_read_from_the_local_cache(family_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--somebody--tiny-sd", "0" * 40
    shutil.copytree(family_folder("sd"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = load("somebody/tiny-sd")
    assert (model.name, model.image_size) == ("somebody/tiny-sd", (SIDE, SIDE))
    assert resolve("somebody/tiny-sd", revision=commit) == repository / "snapshots" / commit
    with pytest.raises(ValueError, match="hf download somebody/tiny-sd"):
        resolve("somebody/tiny-sd", revision="other")


def test_a_model_that_is_nowhere_is_refused_with_where_it_was_sought(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder, .*`hf download nobody/nothing`"):
        load("nobody/nothing")
    with pytest.raises(ValueError, match="neither 'tiny', nor a diffusers folder"):
        resolve(tmp_path)
    with pytest.raises(ValueError, match="nor a hub id"):
        resolve("tinny")
