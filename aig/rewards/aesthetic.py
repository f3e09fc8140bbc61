"""LAION's aesthetic predictor (improved-aesthetic-predictor, Schuhmann 2022): 1 to 10, from the image alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aig.rewards.base import LibraryReward
from aig.rewards.head import linear_head, read_state
from aig.rewards.spec import RewardSpec
from aig.vision import Clip, Source, Views, clip_sources, fetch, load_clip

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
ADDRESS = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
BACKBONE = "openai/clip-vit-large-patch14"


class AestheticReward(LibraryReward):
    """A linear head on the unit embedding of a CLIP's image tower; it reads no prompt.

    Images are preprocessed as in OpenAI's package, with which the head was trained: transformers' processor of the same
    CLIP starts the crop a pixel earlier if it has 3, 7, 11, ... pixels to lose.
    """

    range = (1.0, 10.0)
    reads_prompts = False

    def __init__(self, name: str, clip: Clip, head: nn.Module) -> None:
        self.name, self.clip, self.head = name, clip, head
        self.preprocess = replace(clip.preprocess, floor_centre=False, own=None)

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        own = self.clip.preprocess  # if it sees the same pixels, other rewards of this CLIP share its embedding
        same = own.crops_as(self.preprocess, *views.images.shape[-2:])
        embedding = self.clip.embed_images(views, own if same else self.preprocess)  # (B, d)
        return self.head(embedding).squeeze(-1)

    def checkpoint(self) -> None:
        self.clip.checkpoint()


def sources(spec: RewardSpec) -> list[Source]:
    """The head (`weights`), and the CLIP that it was trained on (`architecture`, a hub id or folder)."""
    clip = clip_sources(spec.architecture or BACKBONE, None, spec.processor, spec.user, key="architecture")
    return [Source(spec.user, spec.weights or ADDRESS, (HEAD,)), *clip]


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> AestheticReward:
    """The head in float32 at least, on OpenAI's ViT-L/14 or another CLIP."""
    head_source, *clip_places = sources(spec)
    state = read_state(head_source.file(fetch(head_source)), spec.user)
    clip = load_clip(None, clip_places, device, dtype)
    model: Any = clip.model
    head = linear_head(state, model.config.projection_dim, spec.user).to(
        device, torch.promote_types(dtype, torch.float32)
    )
    return AestheticReward(spec.column, clip, head)
