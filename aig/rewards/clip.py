"""CLIP score (Hessel et al. 2021): 100 cosines of image and prompt, preprocessed as transformers or open_clip does.

Unlike torchmetrics' CLIPScore it is not clipped at 0; the paper's scale is 2.5, its prompts begin "A photo depicts".
"""

from __future__ import annotations

import torch
from torch import Tensor

from aig.rewards.base import LibraryReward
from aig.rewards.spec import RewardSpec
from aig.vision import Clip, Preprocess, Source, Views, clip_sources, load_clip

WEIGHTS = "openai/clip-vit-large-patch14"


class ClipReward(LibraryReward):
    """`scale` times the cosine between a CLIP's embeddings of image and prompt."""

    def __init__(
        self,
        name: str,
        clip: Clip,
        scale: float | Tensor = 100.0,
        preprocess: Preprocess | None = None,
        range: tuple[float, float] = (10.0, 40.0),
    ) -> None:
        self.name, self.clip, self.scale, self.range = name, clip, scale, range
        self.preprocess = clip.preprocess if preprocess is None else preprocess

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        image = self.clip.embed_images(views, self.preprocess)  # (B, d)
        text = self.clip.embed_texts(prompts)  # (B, d)
        return self.scale * (image * text).sum(dim=-1)

    def checkpoint(self) -> None:
        self.clip.checkpoint()


def sources(spec: RewardSpec) -> list[Source]:
    """A folder of `CLIPModel` with its processor, or, with an architecture, an open_clip checkpoint."""
    return clip_sources(spec.weights or WEIGHTS, spec.architecture, spec.processor, spec.user)


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> ClipReward:
    """OpenAI's CLIP ViT-L/14, or other weights."""
    clip = load_clip(spec.architecture, sources(spec), device, dtype)
    return ClipReward(spec.column, clip)
