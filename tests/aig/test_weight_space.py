"""Weight space in pipelines: the LoRA scaled by the schedule, one prediction a step; and weights above 1."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, HeunDiscreteScheduler, PNDMScheduler
from models import tiny_with
from peft import LoKrConfig, LoraConfig
from torch._dynamo.utils import counters
from tuned_pipes import STEPS, by_hand, counted, denoiser, latents, picture, scaled_by_hand, scales, tuned

from aig import adapters, schedules
from aig.denoiser import AnnealedDenoiser, annealed
from aig.guider import AnnealedImportanceGuidance
from aig.sampler import Arm, Noise, Sampling, sample_arms

FAMILIES = ["sd", "sd-v", "sdxl", "sd3", "flux"]
LINEAR = [i / STEPS for i in range(STEPS)]
RAMP = [0, 0, 0.75, 1.5]
"""The weights of ramp:0.25,1.5 at `STEPS` steps, whose last is at progress 0.75."""
every_family = pytest.mark.parametrize("family", FAMILIES)


def weight(pipe, schedule, adapter=None):
    return annealed(pipe, schedule, adapter, space="weight")


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@every_family
def test_a_step_is_the_pipe_with_its_lora_at_the_schedules_weight(family):
    expected, pipe = tuned(family, "a"), weight(tuned(family, "a"), "ramp:0.25,1.5")
    scaled_by_hand(denoiser(expected), "a", RAMP)
    with counted(denoiser(pipe).inner) as rows:
        ours = latents(pipe)
    assert off(ours, latents(expected)) < 1e-5
    assert len(rows) == STEPS
    assert off(ours, latents(annealed(pipe, "ramp:0.25,1.5"))) > 1e-4  # the other space is another model


@every_family
def test_weight_zero_is_the_base_and_weight_one_the_tuned_pipe_bit_for_bit(family):
    pipe = tuned(family, "a")
    denoiser(pipe).disable_adapters()
    base = latents(pipe)
    denoiser(pipe).enable_adapters()
    own = latents(pipe)
    assert torch.equal(latents(weight(pipe, "base")), base)
    assert torch.equal(latents(weight(pipe, "tuned")), own)
    assert torch.equal(latents(annealed(pipe, None)), own)


@every_family
def test_weights_above_one_go_beyond_the_tuned_prediction(family):
    expected = tuned(family, "a")
    by_hand(denoiser(expected), RAMP)
    assert off(latents(annealed(tuned(family, "a"), "ramp:0.25,1.5")), latents(expected)) < 1e-5


@pytest.mark.parametrize("space", ["prediction", "weight"])
@pytest.mark.parametrize(
    ("scheduler", "options", "weights"),
    [
        (HeunDiscreteScheduler, {}, [0, 0, 0, 0, 0.75, 0.75, 1.5]),
        (PNDMScheduler, {"skip_prk_steps": True}, [0, 0, 0, 0.75, 1.5]),
    ],
)
def test_a_ramp_reaches_its_top_at_the_last_step_of_every_scheduler(space, scheduler, options, weights):
    pipe, expected = tuned("sd", "a"), tuned("sd", "a")
    for p in (pipe, expected):
        p.scheduler = scheduler.from_config(p.scheduler.config, **options)
    if space == "weight":
        scaled_by_hand(expected.unet, "a", weights)
    else:
        by_hand(expected.unet, weights)
    assert off(latents(annealed(pipe, "ramp:0.25,1.5", space=space)), latents(expected)) < 1e-5


def test_image_to_image_sees_the_late_weights():
    pipe, expected = tuned("sd", "a"), tuned("sd", "a")
    scaled_by_hand(expected.unet, "a", RAMP[2:])
    made = AutoPipelineForImage2Image.from_pipe(weight(pipe, "ramp:0.25,1.5"))
    plain = AutoPipelineForImage2Image.from_pipe(expected)
    for p in (made, plain):
        p.set_progress_bar_config(disable=True)
    late = {"image": picture(), "strength": 0.5}
    assert off(latents(made, **late), latents(plain, **late)) < 1e-5


def test_the_latents_are_those_of_sample_arms():
    model = tiny_with("a")
    prompts, seeds = ["a red star", "a blue heart"], [0, 1]
    arm = Arm("arm", "a", 1.0, "ramp:0.2,2", space="weight")
    ours = sample_arms(model, prompts, seeds, [arm], sampling=Sampling(steps=5, guidance=3.0)).latents["arm"]
    model.pipe.set_progress_bar_config(disable=True)
    noise = Noise(prompts, seeds, 0, model.latent_shape).initial()
    theirs = weight(model.pipe, "ramp:0.2,2", "a")(
        prompts, num_inference_steps=5, guidance_scale=3.0, latents=noise, output_type="latent"
    ).images
    assert off(ours, theirs) < 1e-4


@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_the_weight_multiplies_the_scales_of_set_adapters_and_of_a_call(scale):
    pipe, expected = tuned("sd", "a", "b"), tuned("sd", "a", "b")
    for p in (pipe, expected):
        p.set_adapters(["a", "b"], [0.5, 0.8])
    before = scales(pipe)
    scaled_by_hand(expected.unet, "a", LINEAR, 0.5)
    call = {"cross_attention_kwargs": {"scale": scale}}
    assert off(latents(weight(pipe, "linear", "a")), latents(expected)) < 1e-5
    # set_scale is undone by a call's own scale of 0, so that is compared with its closed form: no LoRA at all.
    if scale:
        other = tuned("sd", "a", "b")
        other.set_adapters(["a", "b"], [0.5 * scale, 0.8 * scale])
        scaled_by_hand(other.unet, "a", LINEAR, 0.5 * scale)
        assert off(latents(pipe, **call), latents(other)) < 1e-5
    else:
        base = latents(weight(pipe, "base"))
        assert torch.equal(latents(weight(pipe, "constant:0.5"), **call), base)
    assert scales(pipe) == before


def test_several_active_adapters_are_scaled_together_and_a_named_one_alone():
    pipe, both, one = (tuned("sd", "a", "b") for _ in range(3))
    for p in (pipe, both, one):
        p.set_adapters(["a", "b"], [0.5, 0.3])
    scaled_by_hand(scaled_by_hand(both.unet, "a", LINEAR, 0.5), "b", LINEAR, 0.3)
    scaled_by_hand(one.unet, "b", LINEAR, 0.3)
    assert off(latents(weight(pipe, "linear")), latents(both)) < 1e-5
    assert off(latents(weight(pipe, "linear", "b")), latents(one)) < 1e-5


def test_the_scales_are_the_pipes_own_after_a_run_and_after_one_that_fails():
    pipe = tuned("sd", "a")
    pipe.set_adapters("a", 0.3)
    own, before = latents(pipe), scales(pipe)
    latents(weight(pipe, "constant:0.5"))
    assert scales(pipe) == before
    pipe.unet.inner.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        latents(pipe)
    pipe.unet.inner.conv_out._forward_pre_hooks.clear()
    assert scales(pipe) == before
    assert all(type(value) is float for layer in scales(pipe) for value in layer.values())
    assert torch.equal(latents(annealed(pipe, None)), own)


@pytest.mark.parametrize("way", ["compile", "wrapped", "blocks", "outside"])
def test_a_compiled_denoiser_compiles_once_for_all_weights(way):
    """At most twice: the base's graph at weight 0, without the LoRA, is another."""
    ours = latents(weight(tuned("sd", "a"), "ramp:0.2,2"), 8)
    torch._dynamo.reset()
    counters.clear()
    pipe = tuned("sd", "a")
    if way == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    weight(pipe, "ramp:0.2,2")
    if way == "compile":
        pipe.unet.compile(backend="eager", fullgraph=True)
    if way == "blocks":
        pipe.unet._repeated_blocks = ["BasicTransformerBlock"]
        pipe.unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    if way == "outside":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    latents(pipe, 3)  # weights 0, 0.5 and 2
    graphs = counters["stats"]["unique_graphs"]
    assert graphs
    assert torch.equal(latents(pipe, 8), ours)
    assert counters["stats"]["unique_graphs"] == graphs
    if way != "blocks":
        assert graphs == 2


def test_gradients_reach_the_adapter_through_several_steps():
    """A step's scale must outlive the next step's, for the backward through both."""
    pipe, expected = weight(tuned("sd", "a"), "linear"), tuned("sd", "a")
    scaled_by_hand(expected.unet, "a", [0.25, 0.5])
    pipe.scheduler.set_timesteps(STEPS)

    def through(model) -> list[torch.Tensor]:
        trained = adapters.parameters(getattr(model, "inner", model), "a")
        x = torch.ones(1, 4, 8, 8)
        for i in (1, 2):
            pipe.scheduler._step_index = i
            x = x + model(x, pipe.scheduler.timesteps[i], torch.ones(1, 5, 16))[0]
        return list(torch.autograd.grad(x.square().sum(), trained))

    for mine, theirs in zip(through(pipe.unet), through(expected.unet), strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-7


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_keeps_the_space(copied):
    pipe = weight(tuned("sd", "a"), "linear")
    other = copied(pipe)
    assert other.unet.space == "weight"
    assert torch.equal(latents(other), latents(pipe))


def test_model_offload_keeps_the_space():
    pipe = weight(tuned("sd", "a"), "linear")
    ours = latents(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latents(pipe), ours)
    assert torch.equal(latents(weight(pipe, "linear")), ours)


def test_its_repr_says_the_space():
    assert repr(weight(tuned("sd", "a"), "linear").unet) == (
        "AnnealedDenoiser(UNet2DConditionModel, 'linear', adapter=None, space='weight')"
    )


def test_lower_precision_is_kept():
    pipe = weight(tuned("sd", "a").to(torch.bfloat16), "constant:0.3")
    pipe.scheduler.set_timesteps(STEPS)
    x, text = torch.ones(1, 4, 8, 8, dtype=torch.bfloat16), torch.ones(1, 5, 16, dtype=torch.bfloat16)
    ours = pipe.unet(x, pipe.scheduler.timesteps[0], text).sample
    expected = scaled_by_hand(annealed(pipe, None).unet, "a", [0.3])(x, pipe.scheduler.timesteps[0], text).sample
    assert ours.dtype == torch.bfloat16
    assert off(ours, expected) < 0.02


def test_fused_projections_are_annealed_as_far_as_diffusers_keeps_their_lora():
    pipe, expected = tuned("sd", "a"), tuned("sd", "a")
    unfused = latents(pipe)
    for p in (pipe, expected):
        p.unet.fuse_qkv_projections()
    own = latents(pipe)
    assert off(own, unfused) > 1e-2  # diffusers fuses the base's weights
    assert torch.equal(latents(weight(pipe, "tuned")), own)
    scaled_by_hand(expected.unet, "a", LINEAR)
    assert off(latents(weight(pipe, "linear")), latents(expected)) < 1e-5


def with_dora(pipe):
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q"], use_dora=True, init_lora_weights=False), "d")
    pipe.set_adapters("d")
    return pipe


def with_lokr(pipe):
    pipe.unet.add_adapter(LoKrConfig(target_modules=["to_q"]), "d")
    return pipe


def with_copy(pipe):
    adapters.full(pipe.unet, "d")
    return pipe


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (with_dora, r"'d' is no plain LoRA.*use space = 'prediction'"),
        (with_lokr, r"'d' is no plain LoRA.*use space = 'prediction'"),
        (with_copy, r"'d' is a full copy.*aig\.sample_arms"),
    ],
)
def test_an_adapter_without_a_scale_is_refused_with_its_reason(made, reason):
    pipe = made(tuned("sd"))
    with pytest.raises(ValueError, match=reason):
        weight(pipe, "linear")


def test_dora_loaded_later_is_refused_at_the_next_call():
    pipe = weight(tuned("sd", "a"), "linear")
    with pytest.raises(ValueError, match=r"'d' is no plain LoRA"):
        latents(with_dora(pipe))
    assert latents(annealed(pipe, "linear")).isfinite().all()


@pytest.mark.parametrize("space", ["prediction", "weight"])
def test_curves_that_progress_alone_does_not_give_are_refused(space):
    pipe = tuned("sd", "a")
    for curve, reason in (
        ("coin:linear", r"image's own seed.*aig\.sample_arms"),
        ("ramp:0.5,auto", r"aig\.schedules\.fitted\(schedule, length\).*tuned_length"),
    ):
        with pytest.raises(ValueError, match=reason):
            annealed(pipe, curve, space=space)
        with pytest.raises(ValueError, match=reason):
            AnnealedImportanceGuidance(curve, space=space)
    assert latents(annealed(pipe, schedules.fitted("ramp:0.5,auto", 0.1), space=space)).isfinite().all()


def test_another_space_is_refused():
    for make in (
        lambda: annealed(tuned("sd", "a"), "linear", space="latent"),
        lambda: AnnealedImportanceGuidance("linear", space="latent"),
        lambda: AnnealedDenoiser(tuned("sd", "a").unet, "linear", "a", space="latent"),
    ):
        with pytest.raises(ValueError, match="'latent' must be one of prediction, weight"):
            make()
