from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from models import add_random_adapter, tiny_with

from aig import adapters, world
from aig.sampler import Arm, Noise, Sampling, sample

PROMPTS = ["a red star", "a blue heart"]
FEW = Sampling(steps=4, guidance=3.0)


@pytest.fixture
def model():
    return tiny_with("a")


def test_a_new_adapter_changes_nothing():
    model = tiny_with()
    adapters.attach(model.denoiser, "fresh", targets="everywhere")
    assert torch.equal(
        sample(model, PROMPTS, Arm("tuned", "fresh"), sampling=FEW),
        sample(model, PROMPTS, Arm("base", None, 1, "base"), sampling=FEW),
    )


def test_a_saved_adapter_loads_with_the_same_bits_and_its_record(model, tmp_path):
    adapters.save(model.denoiser, "a", tmp_path / "x", {"step": 7})
    other = tiny_with()
    adapters.load(other.denoiser, tmp_path / "x", "loaded")
    assert torch.equal(
        sample(model, PROMPTS, Arm("t", "a"), sampling=FEW), sample(other, PROMPTS, Arm("t", "loaded"), sampling=FEW)
    )
    assert adapters.read_record(tmp_path / "x")["step"] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_a_program_that_knows_only_diffusers_gets_the_same_image(model, tmp_path):
    adapters.save(model.denoiser, "a", tmp_path / "x", {})
    pipe = StableDiffusionPipeline.from_pretrained(world.weights.folder("tiny"))
    pipe.load_lora_weights(tmp_path / "x")
    pipe.set_progress_bar_config(disable=True)
    noise = Noise(PROMPTS, [0, 1], 0, model.latent_shape).initial()
    theirs = pipe(PROMPTS, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="pt").images
    assert (theirs - sample(model, PROMPTS, Arm("t", "a"), sampling=FEW)).abs().max() < 1e-4


def test_scaling_is_linear_in_the_weights_contribution(model):
    half = tiny_with("a")
    with torch.no_grad():
        for layer in half.denoiser.modules():
            if hasattr(layer, "lora_B") and "a" in layer.lora_B:
                layer.lora_B["a"].weight *= 0.5
    scaled = sample(model, PROMPTS, Arm("s", "a", 0.5), sampling=FEW)
    assert (scaled - sample(half, PROMPTS, Arm("t", "a"), sampling=FEW)).abs().max() < 1e-5


def test_a_scaled_adapter_shares_its_weights(model):
    before = sum(p.numel() for p in model.denoiser.parameters())
    assert adapters.scaled(model.denoiser, "a", 0.5) == adapters.scaled(model.denoiser, "a", 0.5)
    assert sum(p.numel() for p in model.denoiser.parameters()) == before
    assert adapters.scaled(model.denoiser, "a", 0) == adapters.BASE


def test_names_with_dots_are_held_and_found(model):
    add_random_adapter(model, "fragile-kl0.5")
    assert sample(model, PROMPTS, Arm("t", "fragile-kl0.5"), sampling=FEW).isfinite().all()


def test_only_the_adapters_own_parameters_train(model):
    add_random_adapter(model, "b")
    own = adapters.parameters(model.denoiser, "b")
    assert {id(p) for p in model.denoiser.parameters() if p.requires_grad} == {id(p) for p in own}


def test_a_name_in_use_a_bad_rank_and_an_unknown_adapter_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="in use"):
        adapters.attach(model.denoiser, "a")
    with pytest.raises(ValueError, match="rank"):
        adapters.attach(model.denoiser, "b", rank=0)
    with pytest.raises(ValueError, match="not loaded"):
        adapters.save(model.denoiser, "b", tmp_path / "b", {})
    with pytest.raises(ValueError, match="no such adapter"):
        adapters.load(model.denoiser, tmp_path / "absent", "c")


def test_a_corrupt_adapter_is_refused_by_name(model, tmp_path):
    folder = adapters.save(model.denoiser, "a", tmp_path / "x", {})
    weights = folder / adapters.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="corrupt"):
        adapters.load(model.denoiser, folder, "b")
    (folder / adapters.RECORD).write_text("{")
    with pytest.raises(ValueError, match="record"):
        adapters.read_record(folder)


def test_the_file_says_its_rank_and_alpha_as_diffusers_does(model, tmp_path):
    from safetensors import safe_open

    folder = adapters.save(model.denoiser, "a", tmp_path / "x", {})
    with safe_open(folder / adapters.WEIGHTS, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(key.startswith("unet.") for key in file.keys())  # noqa: SIM118
    assert (header["unet.r"], header["unet.lora_alpha"]) == (4, 4)
