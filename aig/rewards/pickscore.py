"""PickScore: people's choice of image for a prompt (Kirstain et al. 2023, arXiv 2305.01569).

As its authors compute it, with transformers 4.27.3: PIL resizes the images. By default transformers 5 resizes with
torchvision, whose 8-bit kernels round a few pixels by a level differently.
"""

from __future__ import annotations

from pathlib import Path

import torch

from aig.rewards.clip import ClipReward
from aig.rewards.spec import RewardSpec
from aig.vision import Source, clip_sources, load_clip

WEIGHTS, PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def sources(spec: RewardSpec) -> list[Source]:
    """A folder of `CLIPModel`, and that of its processor: the published weights come without one."""
    if spec.architecture is not None:
        raise ValueError(
            f"{spec.user}: PickScore goes through transformers and takes no architecture; for a checkpoint of "
            "open_clip take the name clip"
        )
    weights = spec.weights or WEIGHTS
    folder = Path(weights).expanduser()
    complete = any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    return clip_sources(weights, None, spec.processor or (weights if complete else PROCESSOR), spec.user)


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> ClipReward:
    """`exp(logit_scale) * cos` of image and prompt, about 17 to 25 for the published weights."""
    clip = load_clip(None, sources(spec), device, dtype)
    return ClipReward(spec.column, clip, clip.logit_scale, range=(15.0, 25.0))
