from __future__ import annotations

import copy
import gc
import inspect
import pickle
import warnings

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    ControlNetModel,
    DDIMScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    HeunDiscreteScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from models import tiny_with
from peft import LoraConfig
from PIL import Image
from tuned_pipes import SIDE, STEPS, by_hand, counted, denoiser, latents, picture, tuned

import aig
from aig import adapters
from aig.denoiser import AnnealedDenoiser, annealed
from aig.sampler import Arm, Noise, Sampling, sample_arms
from aig.schedules import Schedule

FAMILIES = ["sd", "sd-v", "sdxl", "sd3", "flux"]
LINEAR = [i / STEPS for i in range(STEPS)]
every_family = pytest.mark.parametrize("family", FAMILIES)


def disabled(pipe) -> torch.Tensor:
    denoiser(pipe).disable_adapters()
    try:
        return latents(pipe)
    finally:
        denoiser(pipe).enable_adapters()


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@every_family
def test_weight_zero_is_the_pipe_without_adapters_and_weight_one_the_tuned_pipe_bit_for_bit(family):
    pipe = tuned(family, "a")
    base, own = disabled(pipe), latents(pipe)
    assert off(base, own) > 1e-2
    assert torch.equal(latents(annealed(pipe, "constant:0")), base)
    assert torch.equal(latents(annealed(pipe, "constant:1")), own)
    assert torch.equal(latents(annealed(pipe, None)), own)


@every_family
@pytest.mark.parametrize("passes", [1, 2])
def test_a_schedule_equals_the_loop_written_by_hand(family, passes):
    expected = tuned(family, "a")
    by_hand(denoiser(expected), LINEAR)
    assert off(latents(annealed(tuned(family, "a"), "linear", passes=passes)), latents(expected)) < 1e-5


def test_a_schedule_from_a_file_anneals_as_its_text_does(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text('{"name": "fading", "knots": [[0, 0], [0.5, 1], [1, 0.4]]}')
    expected = latents(annealed(tuned("sd", "a"), "piecewise:0=0|0.5=1|1=0.4"))
    assert torch.equal(latents(annealed(tuned("sd", "a"), f"file:{path}")), expected)
    by_hand(denoiser(other := tuned("sd", "a")), [0, 0.5, 1, 0.7])
    assert off(latents(other), expected) < 1e-5


CONTROLNET_PIPELINES = {
    "sd": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
    "sd3": StableDiffusion3ControlNetPipeline,
    "flux": FluxControlNetPipeline,
}


def controlnet(family: str, pipe):
    """The family's ControlNet pipeline on this pipeline's parts, with a ControlNet whose outputs are not zero."""
    model = getattr(denoiser(pipe), "inner", denoiser(pipe))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if family in ("sd", "sdxl"):
            net = ControlNetModel.from_unet(
                model, load_weights_from_unet=False, conditioning_embedding_out_channels=(8, 16)
            )
        else:
            cls = SD3ControlNetModel if family == "sd3" else FluxControlNetModel
            known = inspect.signature(cls.__init__).parameters
            net = cls(**{name: value for name, value in model.config.items() if name in known})
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    extra = {"requires_safety_checker": False} if family == "sd" else {}
    made = CONTROLNET_PIPELINES[family](**pipe.components, controlnet=net.eval(), **extra)
    made.set_progress_bar_config(disable=True)
    return made


def run(task: str, family: str, pipe) -> torch.Tensor:
    if task == "control":
        key = "image" if family in ("sd", "sdxl") else "control_image"
        return latents(controlnet(family, pipe), **{key: picture()})
    made = (AutoPipelineForImage2Image if task == "image" else AutoPipelineForInpainting).from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    half = Image.new("L", (SIDE, SIDE))
    half.paste(255, (0, 0, SIDE // 2, SIDE))
    mask = {"mask_image": half} if task == "inpaint" else {}
    return latents(made, image=picture(), strength=0.75, height=SIDE, width=SIDE, **mask)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("task", ["image", "inpaint", "control"])
def test_image_to_image_inpainting_and_controlnet_pipelines_made_from_a_wrapped_one_are_annealed(family, task):
    wide = 16 if (family, task) == ("sd3", "inpaint") else 4  # diffusers insists on it there
    pipe, expected = tuned(family, "a", channels=wide), tuned(family, "a", channels=wide)
    by_hand(denoiser(expected), LINEAR if task == "control" else LINEAR[1:])
    assert off(run(task, family, annealed(pipe, "linear")), run(task, family, expected)) < 1e-5


def test_both_calls_of_a_second_order_step_are_mixed_alike():
    pipe, expected = tuned("sd", "a"), tuned("sd", "a")
    for p in (pipe, expected):
        p.scheduler = HeunDiscreteScheduler.from_config(p.scheduler.config)
    by_hand(denoiser(expected), [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75])
    assert off(latents(annealed(pipe, "linear")), latents(expected)) < 1e-5


def test_the_latents_are_those_of_sample_arms():
    model = tiny_with("a")
    prompts, seeds = ["a red star", "a blue heart"], [0, 1]
    arm = Arm("arm", "a", 1.0, "power:2")
    ours = sample_arms(model, prompts, seeds, [arm], sampling=Sampling(steps=5, guidance=3.0)).latents["arm"]
    model.pipe.set_progress_bar_config(disable=True)
    noise = Noise(prompts, seeds, 0, model.latent_shape).initial()
    theirs = annealed(model.pipe, "power:2", "a")(
        prompts, num_inference_steps=5, guidance_scale=3.0, latents=noise, output_type="latent"
    ).images
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize(
    ("schedule", "passes", "rows"),
    [
        ("linear", 1, [2, 4, 4, 4]),  # guidance makes two rows an image
        ("linear", 2, [2, 2, 2, 2, 2, 2, 2]),
        ("step:0.5", 1, [2, 2, 2, 2]),
        ("constant:0.5", 1, [4, 4, 4, 4]),
    ],
)
def test_one_forward_makes_both_predictions_and_one_prediction_is_made_where_the_other_has_no_weight(
    schedule, passes, rows
):
    pipe = annealed(tuned("sd", "a"), schedule, passes=passes)
    with counted(pipe.unet.inner) as seen:
        latents(pipe)
    assert seen == rows


@pytest.mark.parametrize("passes", [1, 2])
def test_the_scale_of_set_adapters_holds(passes):
    pipe, expected = tuned("sd", "a"), tuned("sd", "a")
    by_hand(expected.unet, LINEAR)
    expected.set_adapters("a", 0.4)
    annealed(pipe, "linear", passes=passes).set_adapters("a", 0.4)
    assert off(latents(pipe), latents(expected)) < 1e-5


@pytest.mark.parametrize("passes", [1, 2])
def test_the_scale_of_a_call_holds(passes):
    pipe, expected = tuned("sd", "a"), tuned("sd", "a")
    by_hand(expected.unet, LINEAR)
    scale = {"cross_attention_kwargs": {"scale": 0.3}}
    assert off(latents(annealed(pipe, "linear", passes=passes), **scale), latents(expected, **scale)) < 1e-5


def test_several_active_adapters_take_two_passes_and_are_annealed_together():
    pipe, expected = tuned("sd", "a", "b"), tuned("sd", "a", "b")
    by_hand(expected.unet, LINEAR)
    expected.set_adapters(["a", "b"], [0.5, 0.3])
    annealed(pipe, "linear").set_adapters(["a", "b"], [0.5, 0.3])
    with counted(pipe.unet.inner) as rows:
        ours = latents(pipe)
    assert off(ours, latents(expected)) < 1e-5
    assert rows == [2] * 7


def test_a_named_adapter_is_annealed_while_the_others_stay_in_both_predictions():
    pipe = tuned("sd", "a", "b")
    pipe.set_adapters("b", 0.3)
    style = latents(pipe)
    pipe.set_adapters(["a", "b"], [0.5, 0.3])
    both = latents(pipe)
    assert torch.equal(latents(annealed(pipe, "constant:0", "a")), style)
    assert torch.equal(latents(annealed(pipe, "constant:1", "a")), both)
    mixed = latents(annealed(pipe, "constant:0.5", "a"))
    assert min(off(mixed, style), off(mixed, both)) > 1e-3


def test_switched_off_adapters_leave_the_base():
    pipe = tuned("sd", "a")
    base = disabled(pipe)
    annealed(pipe, "linear").disable_lora()
    assert torch.equal(latents(pipe), base)


def test_an_adapter_loaded_after_wrapping_is_annealed(tmp_path):
    folder = adapters.save(tuned("sd", "a").unet, "a", tmp_path / "a", {})
    pipe, expected = annealed(tuned("sd", "b"), "linear"), tuned("sd", "a")
    by_hand(expected.unet, LINEAR)
    theirs = latents(expected)
    for _ in range(2):  # the same name again is another adapter
        pipe.load_lora_weights(folder, adapter_name="late")
        pipe.set_adapters("late")
        assert off(latents(pipe), theirs) < 1e-5
        pipe.delete_adapters("late")


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_gradients_reach_adapter_and_input_as_by_hand(family, passes):
    pipe = tuned(family, "a")
    model = denoiser(pipe)
    trained = adapters.parameters(model, "a")
    pipe.scheduler = DDIMScheduler() if family == "sd" else pipe.scheduler
    arguments = inputs(family)
    grid = {"mu": 1.0} if family == "flux" else {}
    pipe.scheduler.set_timesteps(4, **grid)
    pipe.scheduler._step_index = 2
    t = pipe.scheduler.timesteps[2] / (1000 if family == "flux" else 1)
    x = next(iter(arguments.values())).requires_grad_(True)
    arguments = {**arguments, "timestep": t.expand(len(x))}

    ours = AnnealedDenoiser(model, "linear", "a", pipe, passes)(**arguments, return_dict=False)[0]
    mine = torch.autograd.grad(ours.square().sum(), [x, *trained])
    model.disable_adapters()
    base = model(**arguments)[0]
    model.enable_adapters()
    mixed = 0.5 * base + 0.5 * model(**arguments)[0]
    theirs = torch.autograd.grad(mixed.square().sum(), [x, *trained])
    assert off(ours, mixed) < 1e-5
    assert any(g.abs().max() > 1e-3 for g in theirs[1:])
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-7


def inputs(family: str) -> dict[str, torch.Tensor]:
    """A denoiser's arguments for two images; Flux's two text tokens and four patches are no rows."""
    torch.manual_seed(0)
    if family == "sd":
        return {"sample": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 16)}
    return {
        "hidden_states": torch.randn(2, 4, 16),
        "encoder_hidden_states": torch.randn(2, 2, 32),
        "pooled_projections": torch.randn(2, 16),
        "guidance": torch.full([2], 3.0),
        "txt_ids": torch.zeros(2, 3),
        "img_ids": torch.tensor([[0.0, i // 2, i % 2] for i in range(4)]),
    }


def test_which_tensors_train_is_left_as_it_was():
    pipe = tuned("sd", "a")
    before = {name: p.requires_grad for name, p in pipe.unet.named_parameters()}
    assert not any(before.values())
    latents(annealed(pipe, "linear", passes=2))
    assert {name: p.requires_grad for name, p in pipe.unet.named_parameters()} == before


def test_both_forms_of_output_hold_the_mix():
    pipe = tuned("sd", "a")
    pipe.scheduler.set_timesteps(4)
    model = annealed(pipe, "constant:0.5").unet
    arguments = (torch.ones(1, 4, 8, 8), pipe.scheduler.timesteps[1], torch.ones(1, 5, 16))
    assert torch.equal(model(*arguments).sample, model(*arguments, return_dict=False)[0])


def test_it_has_the_inner_denoisers_class_names_configuration_and_dtype():
    pipe = tuned("sdxl", "a")
    inner, names = pipe.unet, [name for name, _ in pipe.unet.named_parameters()]
    unet = annealed(pipe, "linear").unet
    assert type(unet) is AnnealedDenoiser
    assert isinstance(unet, UNet2DConditionModel)
    assert unet.config is inner.config
    assert unet.dtype == torch.float32
    assert unet.add_embedding is inner.add_embedding
    assert [name for name, _ in unet.named_parameters()] == names
    assert list(unet.state_dict()) == list(inner.state_dict())
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")
    unet.encoder_hid_proj = None  # what unload_ip_adapter does
    assert inner.encoder_hid_proj is None
    assert pipe.to(torch.float64).unet.dtype == inner.dtype == torch.float64
    assert not unet.eval().training
    with pytest.raises(AttributeError, match="absent"):
        _ = unet.absent


def test_a_second_schedule_replaces_the_first_and_none_puts_the_original_back():
    pipe = tuned("sd", "a")
    inner = pipe.unet
    assert annealed(pipe, "linear") is pipe
    annealed(pipe, "power:4")
    assert pipe.unet.inner is inner
    assert pipe.unet.schedule.name == "power:4"
    assert annealed(pipe, None).unet is inner
    assert annealed(pipe, None).unet is inner


def test_a_pipeline_made_from_another_may_outlive_it():
    pipe = annealed(tuned("sd", "a"), "linear")
    pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    gc.collect()
    pipe.set_progress_bar_config(disable=True)
    assert latents(pipe, image=picture()).isfinite().all()


def test_an_own_schedule_works():
    pipe = tuned("sd", "a")
    own = latents(annealed(pipe, Schedule("mine", lambda u: u * (1 - u))))
    assert off(own, latents(annealed(pipe, "constant:0"))) > 1e-3


def test_a_function_anneals_as_the_schedule_of_the_same_formula_does():
    pipe = tuned("sd", "a")
    square = latents(annealed(pipe, "power:2"))
    assert torch.equal(latents(annealed(pipe, lambda u: u**2)), square)
    assert torch.equal(latents(annealed(pipe, "math:sqrt")), latents(annealed(pipe, "power:0.5")))
    with pytest.raises(ValueError, match="give a function"):
        annealed(pipe, lambda u: 65 * u)
    assert torch.equal(latents(pipe), latents(annealed(pipe, "power:0.5")))  # a refused curve changes nothing


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copied_pipeline_follows_its_own_scheduler(copied):
    pipe = annealed(tuned("sd", "a"), "linear")
    ours = latents(pipe)
    other = copied(pipe)
    assert other.unet.clock.scheduler is other.scheduler is not pipe.scheduler
    assert other.unet.inner is not pipe.unet.inner
    assert torch.equal(latents(other, STEPS), ours)


def test_saving_a_wrapped_pipeline_saves_the_base_model_and_says_so(tmp_path):
    pipe = tuned("sd", "a")
    base = disabled(pipe)
    with pytest.warns(UserWarning, match=r"without its adapters \(a\)"):
        annealed(pipe, "linear").save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents(loaded), base)


def test_a_fused_adapter_is_refused_until_it_is_unfused(tmp_path):
    pipe = annealed(tuned("sd", "a"), "linear")
    ours = latents(pipe)
    pipe.fuse_lora(components=["unet"])
    for fails in (lambda: latents(pipe), lambda: pipe.save_pretrained(tmp_path), lambda: annealed(pipe, "linear")):
        with pytest.raises(RuntimeError, match=r"base is gone; call pipe\.unfuse_lora"):
            fails()
    pipe.unfuse_lora(components=["unet"])
    assert off(latents(pipe), ours) < 1e-4


def test_model_offload_hooks_survive_wrapping_and_unwrapping():
    pipe, plain = tuned("sd", "a"), annealed(tuned("sd", "a"), "linear")
    ours = latents(plain)
    pipe.enable_model_cpu_offload(device="cpu")
    annealed(pipe, "linear")
    assert hasattr(pipe.unet, "_hf_hook")
    assert not hasattr(pipe.unet.inner, "_hf_hook")
    for _ in range(2):
        assert torch.equal(latents(pipe), ours)
    assert hasattr(annealed(pipe, None).unet, "_hf_hook")
    pipe.remove_all_hooks()
    assert torch.equal(latents(annealed(pipe, "linear")), ours)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latents(pipe), ours)


def test_a_compiled_denoiser_is_annealed_and_a_wrapped_one_compiles_inside():
    ours = latents(annealed(tuned("sd", "a"), "linear"))
    pipe = annealed(tuned("sd", "a"), "linear")
    pipe.unet.compile(backend="eager")
    assert torch.equal(latents(pipe), ours)
    pipe = tuned("sd", "a")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert torch.equal(latents(annealed(pipe, "linear")), ours)


def test_an_adapter_on_a_text_encoder_is_warned_of():
    pipe = tuned("sd", "a")
    pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"]), "t")
    with pytest.warns(UserWarning, match="text_encoder has an adapter"):
        annealed(pipe, "linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        annealed(pipe, None)


def test_bad_input_is_refused_with_its_reason_and_fix():
    bare, pipe = tuned("sd"), tuned("sd", "a", "b")
    with pytest.raises(ValueError, match=r"no adapter.*load a LoRA first"):
        annealed(bare, "linear")
    with pytest.raises(ValueError, match=r"'tuned' is not loaded \(loaded: a, b\).*adapter_name='tuned'"):
        annealed(pipe, "linear", "tuned")
    with pytest.raises(ValueError, match=r"'a' is not active \(active: b\).*set_adapters\('a'\)"):
        annealed(pipe, "linear", "a")
    with pytest.raises(ValueError, match="did you mean 'power'"):
        annealed(pipe, "powr:2")
    with pytest.raises(ValueError, match="passes = 3 must be 1 or 2"):
        annealed(pipe, "linear", passes=3)
    with pytest.raises(ValueError, match="neither a unet nor a transformer"):
        annealed(object(), "linear")
    with pytest.raises(ValueError, match="scheduler=pipe"):
        AnnealedDenoiser(pipe.unet, "linear", "b")
    with pytest.raises(ValueError, match="annealed already"):
        AnnealedDenoiser(annealed(pipe, "linear").unet, "linear", "b", pipe)
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match="load a LoRA first"):
        latents(pipe)


def test_the_names_stand_at_the_top():
    assert aig.annealed is annealed
    assert aig.AnnealedDenoiser is AnnealedDenoiser
