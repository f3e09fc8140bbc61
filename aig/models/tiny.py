"""The embedded world's family: Stable Diffusion's classes at 32x32, with a fixed invertible codec as autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

from aig.models.base import quiet
from aig.models.protocol import Condition, Sampling
from aig.models.sd import StableDiffusionModel
from aig.world.scenes import parse_caption


class TinyModel(StableDiffusionModel):
    """The embedded model; it reads only the captions of its world and raises ValueError for other prompts."""

    defaults = Sampling(steps=10, guidance=3.0, passes=2, fuse=True)  # a copy of its small weights costs nothing

    def open(self, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
        # No progress bars for a second's loading, and no warning that the codec is no AutoencoderKL.
        logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            with quiet():
                return super().open(folder, dtype, variant)
        finally:
            logging.enable_progress_bar()
            transformers_logging.enable_progress_bar()

    def encode(self, prompts: Sequence[str], negative: str = "", distilled: float | None = None) -> Condition:
        for prompt in [*prompts, *([negative] if negative else [])]:
            parse_caption(prompt)
        return super().encode(prompts, negative, distilled)
