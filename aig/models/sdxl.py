"""Stable Diffusion XL: two text encoders, a pooled embedding and the image's size as conditions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aig.models.base import LatentModel
from aig.models.protocol import Sampling


class StableDiffusionXLModel(LatentModel):
    """`StableDiffusionXLPipeline`'s models; the defaults are arXiv 2409.06493's.

    The time ids say that the image was neither scaled nor cropped, as the pipeline's do.
    """

    prefix = "unet"
    defaults = Sampling(steps=25, guidance=5.0, block=1, max_rows=8)
    upcast = True

    def readers(self) -> list[tuple[Any, int]]:
        tokenizers = (self.pipe.tokenizer, self.pipe.tokenizer_2)
        return [(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers if tokenizer is not None]

    def read(self, prompt: str) -> dict[str, Tensor]:
        tokens, _, pooled, _ = self.pipe.encode_prompt(prompt, device=self.device, do_classifier_free_guidance=False)
        return self._inputs(tokens, pooled)

    def read_negative(self, negative: str) -> dict[str, Tensor]:
        _, tokens, _, pooled = self.pipe.encode_prompt("", device=self.device, negative_prompt=negative or None)
        return self._inputs(tokens, pooled)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        text = self.pipe.text_encoder_2.config
        tokens = (text.max_position_embeddings, self.denoiser.config.cross_attention_dim)
        return {"encoder_hidden_states": tokens, "text_embeds": (text.projection_dim,), "time_ids": (6,)}

    def _inputs(self, tokens: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        ids = torch.tensor([[*self.image_size, 0, 0, *self.image_size]], dtype=tokens.dtype, device=self.device)
        return {"encoder_hidden_states": tokens, "text_embeds": pooled, "time_ids": ids}

    def denoise(self, x_t: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        added = {name: inputs[name] for name in ("text_embeds", "time_ids")}
        tokens = inputs["encoder_hidden_states"]
        return self.denoiser(x_t, t, tokens, added_cond_kwargs=added, return_dict=False)[0]
