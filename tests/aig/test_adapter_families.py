"""Adapters on every family: attached, saved, loaded, as LoRA and as whole copies."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from denoisers import FAMILIES, fresh, part, pipe_of, predict, randomize, tuned
from families import SIDE, build

from aig import adapters

ROWS = ["a", adapters.BASE, "a", adapters.BASE]


@pytest.mark.parametrize("targets", ["attention", "everywhere", ["to_q", "attn.to_v"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_forward_take_their_own_adapters(family, targets):
    if isinstance(targets, list) and family in ("sd", "sdxl"):
        targets = ["to_q", "attn2.to_v"]
    denoiser = tuned(family, targets=targets)
    mixed, base = predict(denoiser, ROWS), predict(fresh(family))
    alone = predict(denoiser, ["a"] * 4)
    assert torch.allclose(mixed[1::2], base[1::2], atol=1e-5)
    assert torch.allclose(mixed[::2], alone[::2], atol=1e-5)
    assert (alone - base).abs().max() > 1e-2


def test_attention_in_every_family_means_its_projections():
    found = {}
    for family in FAMILIES:
        layers = [k.split(".lora_A")[0] for k, _ in tuned(family).named_parameters() if ".lora_A." in k]
        found[family] = {".".join(k.split(".")[-2:]) if k.endswith(".0") else k.split(".")[-1] for k in layers}
    own = {"to_q", "to_k", "to_v", "to_out.0"}
    assert found["sd"] == found["sdxl"] == own
    # The last block of the tiny SD3 drops its text, so one of its two blocks projects it out.
    assert found["sd3"] == found["flux"] == own | {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}


PROGRAM = """
import sys, torch
from diffusers import DiffusionPipeline
for family, folder, adapter, out in zip(*[iter(sys.argv[2:])] * 4):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(adapter)
    images = pipe(["a red star", "a blue cat"], num_inference_steps=2, guidance_scale=3.0, height=int(sys.argv[1]),
                  width=int(sys.argv[1]), generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.save(images, out)
assert not any(name.split(".")[0] == "aig" for name in sys.modules)
"""


def test_a_program_that_never_heard_of_us_makes_the_same_images(tmp_path):
    arguments, ours = [], {}
    for family in FAMILIES:
        denoiser = tuned(family)
        saved = adapters.save(denoiser, "a", tmp_path / family, {})
        arguments += [
            family,
            str(build(family, tmp_path / f"{family} pipeline")),
            str(saved),
            str(tmp_path / f"{family}.pt"),
        ]
        pipe = type(pipe_of(family))(**{**pipe_of(family).components, part(family): denoiser})
        pipe.set_progress_bar_config(disable=True)
        with adapters.routed(denoiser, ["a"] * (2 if family == "flux" else 4)):
            ours[family] = pipe(
                ["a red star", "a blue cat"], num_inference_steps=2, guidance_scale=3.0, height=SIDE, width=SIDE,
                generator=torch.Generator().manual_seed(0), output_type="pt",
            ).images  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(SIDE), *arguments]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=200)
    for family in FAMILIES:
        theirs = torch.load(tmp_path / f"{family}.pt", weights_only=True)
        assert (theirs - ours[family]).abs().max() < 1e-5, family


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_gives_the_same_bits(family, tmp_path):
    denoiser = tuned(family)
    adapters.save(denoiser, "a", tmp_path / "a", {})
    other = fresh(family)
    adapters.load(other, tmp_path / "a", "a")
    assert torch.equal(predict(other, ROWS), predict(denoiser, ROWS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_copy_serves_its_rows_and_leaves_the_base_as_it_was(family):
    denoiser, base = fresh(family), predict(fresh(family))
    adapters.full(denoiser, "a")
    assert torch.equal(predict(denoiser, ["a"] * 4), base)
    randomize(denoiser, "a", 0.02)
    assert torch.equal(predict(denoiser, [adapters.BASE] * 4), base)
    alone = predict(denoiser, ["a"] * 4)
    mixed = predict(denoiser, ROWS)
    assert (alone - base).abs().max() > 1e-2
    assert torch.allclose(mixed[1::2], base[1::2], atol=1e-5)
    assert torch.allclose(mixed[::2], alone[::2], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_copy_is_a_diffusers_model_that_loads_here_and_anywhere(family, tmp_path):
    denoiser = fresh(family)
    adapters.full(denoiser, "a")
    randomize(denoiser, "a", 0.02)
    adapters.save(denoiser, "a", tmp_path / "a", {"step": 3})
    anywhere = type(fresh(family)).from_pretrained(tmp_path / "a")
    assert torch.equal(predict(anywhere.eval()), predict(denoiser, ["a"] * 4))
    other = fresh(family)
    adapters.load(other, tmp_path / "a", "a")
    assert torch.equal(predict(other, ROWS), predict(denoiser, ROWS))
    assert adapters.read_record(tmp_path / "a")["step"] == 3
