"""HPSv2 and v2.1: the human preference score (Wu et al. 2023, arXiv 2306.09341). Their scores are not comparable.

Reports follow open_clip's transform with `image_resize_mode='longest'`: PIL's bicubic resize, black padding before the
normalization, float32. The authors' package pads the same way, but resizes the float tensor (antialiased since
torchvision 0.17, before that not) and runs under autocast: its figures differ by as much as those two do.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from aig.rewards.clip import ClipReward
from aig.rewards.spec import RewardSpec
from aig.vision import Source, load_clip

REPOSITORY, ARCHITECTURE = "xswu/HPSv2", "ViT-H-14"
# name: (checkpoint file, range of its scores)
VERSIONS = {
    "hpsv2": ("HPS_v2_compressed.pt", (20.0, 32.0)),
    "hpsv2.1": ("HPS_v2.1_compressed.pt", (15.0, 35.0)),
}


def sources(spec: RewardSpec) -> list[Source]:
    """A checkpoint file with the weights under `state_dict`."""
    if spec.processor is not None:
        raise ValueError(f"{spec.user}: HPSv2 goes through open_clip and takes no processor; leave it out")
    return [Source(spec.user, spec.weights or REPOSITORY, (VERSIONS[spec.name][0],))]


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> ClipReward:
    """100 cosines of image and prompt; the image's longest side is resized to the tower's 224 px, black around it."""
    clip = load_clip(spec.architecture or ARCHITECTURE, sources(spec), device, dtype)
    padded = replace(clip.preprocess, fit="pad", shortest=None, own=None)
    return ClipReward(spec.column, clip, preprocess=padded, range=VERSIONS[spec.name][1])
