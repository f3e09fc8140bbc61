"""Stable Diffusion 1.x and 2.x, predicting noise or v."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from aig.models.base import LatentModel
from aig.models.protocol import Sampling


class StableDiffusionModel(LatentModel):
    """`StableDiffusionPipeline`'s models; the defaults are arXiv 2409.06493's."""

    prefix = "unet"
    defaults = Sampling(steps=25, guidance=7.5, block=1, max_rows=16)

    # The checker would cost memory, and blank images that a metric then counts.
    without: ClassVar[dict[str, None]] = {"safety_checker": None, "feature_extractor": None}

    def own_defaults(self) -> Sampling:
        # Stable Diffusion 1.x comes with PNDM, which the sampler does not support and the paper did not use.
        own = type(self.scheduler).__name__
        return replace(self.defaults, scheduler="ddim") if own == "PNDMScheduler" else self.defaults

    def readers(self) -> list[tuple[Any, int]]:
        return [(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)]

    def read(self, prompt: str) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self.pipe.encode_prompt(prompt, self.device, 1, False)[0]}

    def read_negative(self, negative: str) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self.pipe.encode_prompt("", self.device, 1, True, negative or None)[1]}

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        length = self.pipe.text_encoder.config.max_position_embeddings
        return {"encoder_hidden_states": (length, self.denoiser.config.cross_attention_dim)}

    def denoise(self, x_t: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return self.denoiser(x_t, t, **inputs, return_dict=False)[0]
