"""The guider in diffusers' modular SDXL and SD3 pipelines, against the wrapper in the same blocks."""

from __future__ import annotations

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks, StableDiffusionXLAutoBlocks
from torch._dynamo.utils import counters
from tuned_pipes import PROMPT, SIDE, STEPS, counted, denoiser, picture, scales, tuned

from aig.denoiser import annealed
from aig.guider import AnnealedImportanceGuidance

BLOCKS = {"sdxl": StableDiffusionXLAutoBlocks, "sd3": StableDiffusion3AutoBlocks}
HEUN = {"sdxl": HeunDiscreteScheduler, "sd3": FlowMatchHeunDiscreteScheduler}
every_family = pytest.mark.parametrize("family", BLOCKS)


def modular(family: str, *names: str):
    pipe = BLOCKS[family]().init_pipeline()
    parts = tuned(family, *(names or "a")).components
    pipe.update_components(**{name: part for name, part in parts.items() if part is not None})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, guider=None, **kwargs) -> torch.Tensor:
    if guider is not None:
        pipe.update_components(guider=guider)
    torch.manual_seed(0)  # what image-to-image draws when it encodes the image
    return pipe(
        prompt=PROMPT, negative_prompt="a blue dog", num_inference_steps=STEPS, height=SIDE, width=SIDE,
        generator=torch.Generator().manual_seed(3), output_type="latent", output="latents", **kwargs,
    )  # fmt: skip


def wrapped(pipe, schedule: str, plain: ClassifierFreeGuidance, **kwargs) -> torch.Tensor:
    """The same blocks with the wrapper for the denoiser and diffusers' own guider."""
    out = latents(annealed(pipe, schedule), plain, **kwargs)
    annealed(pipe, None)
    return out


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@every_family
@pytest.mark.parametrize("schedule", ["power:2", "linear@time"])
@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "guidance_rescale": 0.7},
        {"guidance_scale": 3.0, "use_original_formulation": True, "start": 0.3, "stop": 0.8},
    ],
    ids=lambda options: " ".join(options),
)
def test_the_guider_equals_the_wrapper(family, schedule, options):
    pipe = modular(family)
    expected = wrapped(pipe, schedule, ClassifierFreeGuidance(**options))
    ours = latents(pipe, AnnealedImportanceGuidance(schedule, **options, scheduler=pipe))
    assert off(ours, expected) < 1e-5
    assert off(latents(pipe, ClassifierFreeGuidance(**options)), expected) > 1e-2


@every_family
def test_rescaling_after_the_mix_is_not_rescaling_each_prediction(family):
    """So that the equality above proves where it acts: at a fixed step the two differ."""
    torch.manual_seed(0)
    cond, uncond, cond_base, uncond_base = torch.randn(4, 2, 4, 8, 8) * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1, 1)
    guider = AnnealedImportanceGuidance("constant:0.5", guidance_scale=3.0, guidance_rescale=0.7)
    guider.set_state(0, STEPS, torch.tensor(999))
    plain = ClassifierFreeGuidance(3.0, 0.7)
    mixed = plain.forward((cond + cond_base) / 2, (uncond + uncond_base) / 2).pred
    each = (plain.forward(cond, uncond).pred + plain.forward(cond_base, uncond_base).pred) / 2
    ours = guider.forward(cond, uncond, cond_base, uncond_base).pred
    assert off(ours, mixed) < 1e-6
    assert off(ours, each) > 1e-2


@every_family
def test_both_calls_of_a_second_order_step_are_mixed_as_the_wrapper_does(family):
    pipe = modular(family)
    pipe.update_components(scheduler=HEUN[family].from_config(pipe.scheduler.config))
    expected = wrapped(pipe, "linear", ClassifierFreeGuidance(3.0))
    assert off(latents(pipe, AnnealedImportanceGuidance("linear", None, 3.0, scheduler=pipe)), expected) < 1e-5
    with pytest.raises(ValueError, match=r"'linear' at step 4 of 4 needs the scheduler; call guider\.follow"):
        latents(pipe, AnnealedImportanceGuidance("linear", None, 3.0))


@every_family
def test_image_to_image_sees_the_late_weights(family):
    pipe = modular(family)
    late = {"image": picture(), "strength": 0.5}
    expected = wrapped(pipe, "linear", ClassifierFreeGuidance(3.0), **late)
    assert off(latents(pipe, AnnealedImportanceGuidance("linear", None, 3.0, scheduler=pipe), **late), expected) < 1e-5
    assert off(latents(pipe, AnnealedImportanceGuidance("linear", None, 3.0), **late), expected) > 1e-3


def test_without_a_scheduler_progress_is_the_loops_own():
    pipe = modular("sdxl")
    with_it = latents(pipe, AnnealedImportanceGuidance("power:2", scheduler=pipe))
    assert torch.equal(latents(pipe, AnnealedImportanceGuidance("power:2")), with_it)
    with pytest.raises(ValueError, match="needs the scheduler"):
        latents(pipe, AnnealedImportanceGuidance("power:2@time"))


@pytest.mark.parametrize(
    ("schedule", "scale", "forwards"),
    [
        ("constant:0.5", 3.0, 4 * STEPS),
        ("constant:0.5", 1.0, 2 * STEPS),
        ("linear", 3.0, 2 + 4 * (STEPS - 1)),
        ("step:0.5", 3.0, 2 * STEPS),
        ("tuned", 1.0, STEPS),
    ],
)
def test_needless_predictions_are_not_made(schedule, scale, forwards):
    pipe = modular("sdxl")
    with counted(pipe.unet) as rows:
        latents(pipe, AnnealedImportanceGuidance(schedule, guidance_scale=scale))
    assert rows == [1] * forwards


@every_family
@pytest.mark.parametrize("schedule", ["ramp:0.25,1.5", "constant:2", "step:0.5"])
@pytest.mark.parametrize("space", ["prediction", "weight"])
def test_the_guider_equals_the_wrapper_above_weight_one_and_in_weight_space(family, schedule, space):
    pipe = modular(family)
    expected = latents(annealed(pipe, schedule, space=space), ClassifierFreeGuidance(3.0))
    annealed(pipe, None)
    guider = AnnealedImportanceGuidance(schedule, guidance_scale=3.0, scheduler=pipe, space=space)
    with counted(denoiser(pipe)) as rows:
        assert off(latents(pipe, guider), expected) < 1e-5
    if space == "weight":
        assert len(rows) == 2 * STEPS
    assert off(latents(pipe, AnnealedImportanceGuidance(schedule, guidance_scale=3.0, space=space)), expected) < 1e-5


def test_the_guiders_weight_multiplies_the_scale_of_a_call():
    pipe = modular("sdxl")
    call = {"cross_attention_kwargs": {"scale": 0.3}}
    expected = latents(annealed(pipe, "linear", space="weight"), ClassifierFreeGuidance(3.0), **call)
    annealed(pipe, None)
    before = scales(pipe)
    ours = latents(pipe, AnnealedImportanceGuidance("linear", guidance_scale=3.0, space="weight"), **call)
    assert off(ours, expected) < 1e-5
    assert scales(pipe) == before
    assert off(latents(pipe), expected) > 1e-3


@pytest.mark.parametrize("space", ["prediction", "weight"])
def test_compiled_blocks_compile_once_for_all_weights(space):
    """At most twice: the base's graph, without the LoRA, is another."""
    pipe, guider = modular("sdxl"), AnnealedImportanceGuidance("ramp:0.1,2", guidance_scale=3.0, space=space)
    own = latents(pipe, guider)
    torch._dynamo.reset()
    counters.clear()
    pipe.unet._repeated_blocks = ["BasicTransformerBlock"]
    pipe.unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert torch.equal(latents(pipe, guider), own)
    assert counters["stats"]["unique_graphs"] == 2


def test_a_denoiser_that_fails_under_the_guider_leaves_no_scale_behind():
    pipe = modular("sdxl")
    before = scales(pipe)
    guider = AnnealedImportanceGuidance("constant:0.5", guidance_scale=3.0, space="weight")
    guider.set_state(0, STEPS, torch.tensor(0))
    for batch in guider.prepare_inputs({"x": (torch.tensor(1), torch.tensor(0))}):
        assert batch is not None
        guider.prepare_models(pipe.unet)
        with pytest.raises(TypeError):
            pipe.unet(None)
        assert scales(pipe) == before
        assert not pipe.unet._forward_hooks
        assert not pipe.unet._forward_pre_hooks


@every_family
def test_weight_zero_is_the_pipe_without_adapters_and_weight_one_the_tuned_pipe_bit_for_bit(family):
    pipe = modular(family)
    own = latents(pipe, ClassifierFreeGuidance(3.0))
    denoiser(pipe).disable_adapters()
    base = latents(pipe)
    denoiser(pipe).enable_adapters()
    assert torch.equal(latents(pipe, AnnealedImportanceGuidance("base", guidance_scale=3.0)), base)
    assert torch.equal(latents(pipe, AnnealedImportanceGuidance("tuned", guidance_scale=3.0)), own)
    assert torch.equal(latents(pipe, ClassifierFreeGuidance(3.0)), own)


def test_a_named_adapter_is_annealed_while_the_others_stay():
    pipe = modular("sdxl", "a", "b")
    pipe.unet.set_adapters(["a", "b"], [0.5, 0.3])
    expected = latents(annealed(pipe, "linear", "a"), ClassifierFreeGuidance(3.0))
    annealed(pipe, None)
    assert off(latents(pipe, AnnealedImportanceGuidance("linear", "a", 3.0, scheduler=pipe)), expected) < 1e-5


def test_the_number_of_conditions_before_a_run_says_whether_unconditional_inputs_are_needed():
    assert AnnealedImportanceGuidance("power:2", guidance_scale=3.0).num_conditions == 2
    assert AnnealedImportanceGuidance("power:2", guidance_scale=1.0).num_conditions == 1
    guider = AnnealedImportanceGuidance("linear", guidance_scale=3.0)
    counts = []
    for i in range(STEPS):
        guider.set_state(i, STEPS, torch.tensor(0))
        counts.append(guider.num_conditions)
    assert counts == [2, 4, 4, 4]


def test_conditional_batches_are_told_apart_base_and_tuned():
    pipe = modular("sdxl")
    guider = AnnealedImportanceGuidance("constant:0.5", guidance_scale=3.0)
    guider.set_state(0, STEPS, torch.tensor(0))
    conditional = []
    for batch in guider.prepare_inputs({"x": (torch.tensor(1), torch.tensor(0))}):
        guider.prepare_models(pipe.unet)
        conditional.append((bool(batch.x), guider.is_conditional))
        guider.cleanup_models(pipe.unet)
    assert [a == b for a, b in conditional] == [True] * 4
    assert [a for a, _ in conditional] == [True, False, True, False]


def test_a_failing_denoiser_leaves_the_adapters_on():
    pipe = modular("sdxl")
    own = latents(pipe, ClassifierFreeGuidance(3.0))
    guider = AnnealedImportanceGuidance("constant:0.5", guidance_scale=3.0)
    guider.set_state(0, STEPS, torch.tensor(0))
    guider.prepare_models(pipe.unet)
    with pytest.raises(TypeError):
        pipe.unet(None)
    assert torch.equal(latents(pipe, ClassifierFreeGuidance(3.0)), own)
    assert not pipe.unet._forward_hooks


def public(guider) -> dict:
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


def test_its_configuration_comes_back(tmp_path):
    guider = AnnealedImportanceGuidance(
        "join:base|0.5|power:2@time", "a", 4.0, 0.2, True, 0.1, 0.9, False, space="weight"
    )
    guider.save_pretrained(tmp_path)
    for other in (
        AnnealedImportanceGuidance.from_pretrained(tmp_path),
        AnnealedImportanceGuidance.from_config(guider.config),
        guider.new(),
    ):
        assert public(other) == public(guider)
        assert (other.schedule.name, other.schedule.domain) == (guider.schedule.name, "time")
        assert (other.adapter, other.guidance_scale, other._enabled, other.space) == ("a", 4.0, False, "weight")
    assert guider.new(schedule="linear").schedule.name == "linear"


def test_a_changed_copy_follows_the_same_scheduler():
    pipe = modular("sdxl")
    guider = AnnealedImportanceGuidance("linear", scheduler=pipe)
    assert guider.new(guidance_scale=2.0).clock is guider.clock
    assert "scheduler" not in guider.config


def test_bad_input_is_refused_with_its_reason_and_fix():
    pipe = modular("sdxl")
    with pytest.raises(ValueError, match="did you mean 'power'"):
        AnnealedImportanceGuidance("powr:2")
    with pytest.raises(ValueError, match="'tuned' is not loaded"):
        latents(pipe, AnnealedImportanceGuidance("power:2", "tuned"))
    with pytest.raises(ValueError, match=r"annealed already.*annealed\(pipe, None\)"):
        latents(annealed(pipe, "linear"), AnnealedImportanceGuidance("power:2"))
    annealed(pipe, None).unet.unload_lora()
    with pytest.raises(ValueError, match="load a LoRA first"):
        latents(pipe, AnnealedImportanceGuidance("power:2"))
