"""The embedded world's family: Stable Diffusion's classes at 32x32, with a fixed invertible codec for the
autoencoder."""

# diffusers exports its classes lazily, which pyright cannot follow, and annotates its pipelines too narrowly.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from aig.adapters import routed
from aig.models.protocol import Condition, Sampling
from aig.world.scenes import parse_caption


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars for a second's loading, and without the warning that the codec is no AutoencoderKL, which
    it need not be."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


class TinyModel:
    """The tiny model of a diffusers folder, frozen and in eval mode."""

    defaults = Sampling(steps=10, guidance=3.0, passes=2, fuse=True)  # so small that a copy of its weights is nothing

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        with _quiet():
            pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
        pipe.to(device)
        self.name = folder.name
        self.pipe = pipe
        self.denoiser = pipe.unet.requires_grad_(False).eval()
        self.text_encoder = pipe.text_encoder.requires_grad_(False).eval()
        self.scheduler = pipe.scheduler
        self.device, self.dtype = device, dtype
        side = pipe.unet.config.sample_size
        self.latent_shape = (pipe.unet.config.in_channels, side, side)
        self.image_size = (side * pipe.vae_scale_factor, side * pipe.vae_scale_factor)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        for prompt in prompts:
            parse_caption(prompt)
        distinct = sorted(set(prompts))
        tokens = self.pipe.tokenizer([*distinct, ""], padding="max_length", truncation=True, return_tensors="pt")
        # Encoded one by one: a batched encoding of other shape differs in its last bits, and an image may depend on its
        # prompt alone.
        rows = [self.text_encoder(ids[None].to(self.device))[0] for ids in tokens.input_ids]
        table = torch.cat(rows)  # (distinct + 1, L, D)
        return Condition(table[[distinct.index(prompt) for prompt in prompts]], table[-1:])

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, adapters: Sequence[str], guidance: float) -> Tensor:
        if guidance == 1:
            with routed(self.denoiser, adapters):
                return self.denoiser(x_t, t, condition.embeddings, return_dict=False)[0]
        embeddings = torch.cat([condition.unconditional.expand_as(condition.embeddings), condition.embeddings])
        with routed(self.denoiser, [*adapters, *adapters]):
            both = self.denoiser(torch.cat([x_t, x_t]), t, embeddings, return_dict=False)[0]
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def decode(self, latents: Tensor) -> Tensor:
        images = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)
