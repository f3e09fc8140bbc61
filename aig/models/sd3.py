"""Stable Diffusion 3: a flow-matching transformer that reads two CLIP encoders and optionally T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aig.models.base import LatentModel
from aig.models.flow import dynamic_shift
from aig.models.protocol import Sampling


class StableDiffusion3Model(LatentModel):
    """`StableDiffusion3Pipeline`'s models; the prediction is a velocity, the defaults are the pipeline's."""

    prefix = "transformer"
    defaults = Sampling(steps=28, guidance=7.0, block=1, max_rows=8)
    patch = 2
    text_length = 256
    """T5's number of tokens."""

    def largest(self) -> int | None:
        places = self.denoiser.config.pos_embed_max_size
        return places * self.patch * self.pipe.vae_scale_factor if places else None

    def readers(self) -> list[tuple[Any, int]]:
        clip = [
            (tokenizer, self.pipe.tokenizer_max_length) for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2)
        ]
        return clip if self.pipe.text_encoder_3 is None else [*clip, (self.pipe.tokenizer_3, self.text_length)]

    def read(self, prompt: str) -> dict[str, Tensor]:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )  # fmt: skip
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def read_negative(self, negative: str) -> dict[str, Tensor]:
        # This pipeline reads a missing negative prompt as an empty one.
        return self.read(negative)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        config, clip = self.denoiser.config, self.pipe.tokenizer_max_length
        # Without T5 the pipeline appends as many zeros as CLIP has tokens.
        length = clip + (clip if self.pipe.text_encoder_3 is None else self.text_length)
        tokens = (length, config.joint_attention_dim)
        return {"encoder_hidden_states": tokens, "pooled_projections": (config.pooled_projection_dim,)}

    def denoise(self, x_t: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return self.denoiser(x_t, timestep=t.expand(len(x_t)), **inputs, return_dict=False)[0]

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        _, height, width = self.latent_shape
        sequence = (height // self.patch) * (width // self.patch)
        shift = dynamic_shift(scheduler, sequence)
        scheduler.set_timesteps(steps, device=self.device, **shift)
