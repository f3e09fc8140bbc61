"""Tiny denoisers of every family, tuned ones too, and their predictions on fixed inputs."""

from __future__ import annotations

import copy
import tempfile
from functools import cache

import torch
from diffusers import DiffusionPipeline
from families import build

from aig import adapters

FAMILIES = ["sd", "sdxl", "sd3", "flux"]


@cache
def pipe_of(family):
    """The family's tiny pipeline, one for all tests: not to be changed."""
    with tempfile.TemporaryDirectory() as folder:
        return DiffusionPipeline.from_pretrained(build(family, folder))


def part(family):
    """Where a pipeline holds its denoiser, and what its LoRA keys begin with."""
    return "unet" if family in ("sd", "sd-v", "sdxl") else "transformer"


def fresh(family):
    """The family's denoiser, its own copy."""
    return copy.deepcopy(getattr(pipe_of(family), part(family))).requires_grad_(False).eval()


def randomize(denoiser, name, size=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(denoiser, name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    denoiser.requires_grad_(False)


def tuned(family, **settings):
    """The family's denoiser with a LoRA "a" of rank 4 and alpha 2, far from zero."""
    denoiser = fresh(family)
    adapters.attach(denoiser, "a", rank=4, alpha=2, **settings)
    randomize(denoiser, "a")
    return denoiser


def inputs(denoiser, rows=4):
    """Keyword arguments of a forward of this many rows, each of its own."""
    config, generator = denoiser.config, torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(rows, *shape, generator=generator)

    if type(denoiser).__name__ == "FluxTransformer2DModel":
        return {
            "hidden_states": draw(16, config.in_channels), "encoder_hidden_states": draw(5, config.joint_attention_dim),
            "pooled_projections": draw(config.pooled_projection_dim), "timestep": torch.full((rows,), 0.5),
            "guidance": torch.full((rows,), 3.0), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
        }  # fmt: skip
    if type(denoiser).__name__ == "SD3Transformer2DModel":
        return {
            "hidden_states": draw(4, 8, 8), "encoder_hidden_states": draw(5, config.joint_attention_dim),
            "pooled_projections": draw(config.pooled_projection_dim), "timestep": torch.full((rows,), 500.0),
        }  # fmt: skip
    given = {
        "sample": draw(4, 8, 8), "timestep": torch.tensor(500),
        "encoder_hidden_states": draw(5, config.cross_attention_dim),
    }  # fmt: skip
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": draw(pooled), "time_ids": draw(6).abs() * 100}
    return given


def cast(given, dtype):
    """Inputs with their floating-point tensors in another precision."""
    if isinstance(given, dict):
        return {name: cast(each, dtype) for name, each in given.items()}
    return given.to(dtype) if given.is_floating_point() else given


@torch.no_grad()
def predict(denoiser, rows=None, dtype=torch.float32):
    given = cast(inputs(denoiser), dtype)
    if rows is None:
        return denoiser(**given, return_dict=False)[0]
    with adapters.routed(denoiser, rows):
        return denoiser(**given, return_dict=False)[0]
