"""A fixed, invertible codec behind the interface of diffusers' autoencoders: 2x2 pixel blocks folded into channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class SpaceToDepth(ModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, 12, H/2, W/2) and back, exactly.

    It has no trainable weights, and its latents are four times cheaper to denoise than pixels. `scaling_factor` brings
    the data to unit variance, as for `AutoencoderKL`: callers multiply after `encode` and divide before `decode`.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, fold: int = 2, scaling_factor: float = 1.8, block_out_channels: tuple[int, ...] = (12, 12)
    ) -> None:
        super().__init__()
        # Without a parameter, ModelMixin cannot say its dtype and device.
        self.anchor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        latents = F.pixel_unshuffle(x, self.config["fold"])
        distribution = SimpleNamespace(sample=lambda generator=None: latents, mode=lambda: latents)
        return SimpleNamespace(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        images = F.pixel_shuffle(z, self.config["fold"])
        return SimpleNamespace(sample=images) if return_dict else (images,)
