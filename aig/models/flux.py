"""Flux.1: a flow-matching transformer over packed latents, with guidance distilled into an input of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from aig.models.base import LatentModel
from aig.models.flow import dynamic_shift
from aig.models.protocol import Condition, Sampling


class FluxModel(LatentModel):
    """`FluxPipeline`'s models; the prediction is a velocity, the defaults are those of FLUX.1-dev or -schnell.

    `Sampling.guidance` is true classifier-free guidance, off by default; `Sampling.distilled` is the scale that
    FLUX.1-dev was distilled to read. The latents are images as everywhere; the 2x2 packing is internal to the denoiser.
    """

    prefix = "transformer"
    defaults = Sampling(steps=28, guidance=1.0, block=1, max_rows=4)
    patch = 2
    distilled = 3.5

    def own_defaults(self) -> Sampling:
        if self.reads_guidance:
            return replace(self.defaults, distilled=self.distilled)
        return replace(self.defaults, steps=4)

    @property
    def reads_guidance(self) -> bool:
        return self.denoiser.config.guidance_embeds

    @property
    def text_length(self) -> int:
        """T5's number of tokens; schnell was trained on 256."""
        return 512 if self.reads_guidance else 256

    def own_latent_size(self) -> tuple[int, int]:
        return self.pipe.default_sample_size, self.pipe.default_sample_size

    def latent_channels(self) -> int:
        return self.denoiser.config.in_channels // self.patch**2

    def readers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer, self.pipe.tokenizer_max_length), (self.pipe.tokenizer_2, self.text_length)]

    def read(self, prompt: str) -> dict[str, Tensor]:
        tokens, pooled, _ = self.pipe.encode_prompt(prompt, device=self.device, max_sequence_length=self.text_length)
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def read_negative(self, negative: str) -> dict[str, Tensor]:
        return self.read(negative)

    def encode(self, prompts: Sequence[str], negative: str = "", distilled: float | None = None) -> Condition:
        if not self.reads_guidance:
            return super().encode(prompts, negative, distilled)
        condition = super().encode(prompts, negative)
        scale = torch.tensor([self.distilled if distilled is None else distilled], device=self.device)
        return Condition(
            {**condition.conditional, "guidance": scale.expand(len(condition))},
            {**condition.unconditional, "guidance": scale},
        )

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser.config
        tokens = (self.text_length, config.joint_attention_dim)
        shapes = {"encoder_hidden_states": tokens, "pooled_projections": (config.pooled_projection_dim,)}
        return {**shapes, "guidance": ()} if self.reads_guidance else shapes

    def denoise(self, x_t: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        batch, channels, height, width = x_t.shape
        tokens = inputs["encoder_hidden_states"]
        image_ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, x_t.device, x_t.dtype)
        velocity = self.denoiser(
            hidden_states=FluxPipeline._pack_latents(x_t, batch, channels, height, width),
            timestep=t.expand(batch).to(x_t.dtype) / 1000,  # the transformer's own scale of time
            img_ids=image_ids,
            txt_ids=torch.zeros(tokens.shape[1], 3, dtype=x_t.dtype, device=x_t.device),
            return_dict=False,
            **inputs,
        )[0]
        return FluxPipeline._unpack_latents(velocity, height, width, 1)

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        _, height, width = self.latent_shape
        shift = dynamic_shift(scheduler, (height // 2) * (width // 2))
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, device=self.device, **shift)
        else:
            scheduler.set_timesteps(device=self.device, sigmas=np.linspace(1.0, 1 / steps, steps), **shift)
