"""Tiny pipelines of every family with random adapters, and annealed importance guidance written out by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL
from families import BUILDERS, SIDE
from models import add_random_adapter
from PIL import Image
from torch import nn

PROMPT = "a photo of a red cat"
STEPS = 4


def tuned(family: str, *names: str, channels: int = 4) -> Any:
    """The family's pipeline, frozen, with these adapters of random weights; the last one is active."""
    return copy.deepcopy(_tuned(family, names, channels))


@functools.cache
def _tuned(family: str, names: tuple[str, ...], channels: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[family]()
        if channels != pipe.vae.config.latent_channels:
            pipe.vae = AutoencoderKL.from_config(pipe.vae.config, latent_channels=channels)
            pipe.transformer = type(pipe.transformer).from_config(
                pipe.transformer.config, in_channels=channels, out_channels=channels
            )
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    model = denoiser(pipe)
    for seed, name in enumerate(names, start=1):
        add_random_adapter(SimpleNamespace(denoiser=model), name, seed=seed, size=0.2)  # type: ignore[arg-type]
    model.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def latents(pipe: Any, steps: int = STEPS, **kwargs: Any) -> torch.Tensor:
    """One image's latents, the same noise every time."""
    sizes = {} if "image" in kwargs and "control_image" not in kwargs else {"height": SIDE, "width": SIDE}
    torch.manual_seed(0)  # what the autoencoder draws when it encodes a control image
    out = pipe(
        PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(3), output_type="latent",
        **{"guidance_scale": 3.0, **sizes, **kwargs},
    )  # fmt: skip
    return out.images


def picture() -> Image.Image:
    noise = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(5))
    return Image.fromarray((noise * 255).to(torch.uint8).numpy())


def by_hand(model: Any, weights: Iterable[float]) -> Any:
    """Replace the forward by one that mixes predictions with adapters off and on, with the next weight each call."""
    inner, levels = model.forward, iter(weights)

    def forward(*args: Any, **kwargs: Any) -> Any:
        w = next(levels)
        model.disable_adapters()
        base = inner(*args, **kwargs)[0]
        model.enable_adapters()
        return ((1 - w) * base + w * inner(*args, **kwargs)[0],)

    model.forward = forward
    return model


def scaled_by_hand(model: Any, name: str, weights: Iterable[float], scale: float = 1.0) -> Any:
    """Replace the forward by one that sets the LoRA's scale, the next weight each call, as `set_adapters` does."""
    inner, levels = model.forward, iter(weights)

    def forward(*args: Any, **kwargs: Any) -> Any:
        w = next(levels)
        for layer in model.modules():
            if name in getattr(layer, "scaling", {}):
                layer.set_scale(name, scale * w)
        return inner(*args, **kwargs)

    model.forward = forward
    return model


def scales(pipe) -> list[dict]:
    """The scales of each LoRA layer."""
    return [dict(module.scaling) for module in denoiser(pipe).modules() if hasattr(module, "scaling")]


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The rows of each forward of the inner denoiser."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        handle.remove()
