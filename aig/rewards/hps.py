"""HPSv2 and v2.1: the human preference score (Wu et al. 2023, arXiv 2306.09341). Their scores are not comparable.

As in the authors' package (`hpsv2` 1.2.0, `src/open_clip/transform.py` and `evaluation.py`), with torchvision 0.17 or
later: the image as floats, bicubic and antialiased to the tower's longest side, neither rounded nor clamped, black
padding, then the normalization; 100 cosines. On a GPU the package runs under autocast, which rounds its scores to half
precision; here they are in the requested dtype. Its `score` returns the cosine itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from aig.rewards.clip import ClipReward
from aig.rewards.spec import RewardSpec
from aig.vision import Source, Views, load_clip
from aig.vision.inputs import InputError

REPOSITORY, ARCHITECTURE = "xswu/HPSv2", "ViT-H-14"
# name: (checkpoint file, range of its scores)
VERSIONS = {
    "hpsv2": ("HPS_v2_compressed.pt", (20.0, 32.0)),
    "hpsv2.1": ("HPS_v2.1_compressed.pt", (15.0, 35.0)),
}


class HpsReward(ClipReward):
    """100 cosines of image and prompt; the image's longest side is resized to the tower's 224 px, black around it."""

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        """Scores (B,). Raises InputError for images that are not square and whose longest side equals the tower's.

        The package neither resizes nor pads these, and its tower takes squares only.
        """
        (height, width), side = views.images.shape[-2:], max(self.preprocess.size)
        if height != width and max(height, width) == side:
            raise InputError(
                f"reward {self.name!r} has no score for images of {height} x {width} px: their longest side is the "
                f"model's {side} px, which its authors' transform does not pad, and the model takes squares only; "
                "score squares, or images of another size"
            )
        return super().score(views, prompts)


def sources(spec: RewardSpec) -> list[Source]:
    """A checkpoint file with the weights under `state_dict`."""
    if spec.processor is not None:
        raise ValueError(f"{spec.user}: HPSv2 goes through open_clip and takes no processor; leave it out")
    return [Source(spec.user, spec.weights or REPOSITORY, (VERSIONS[spec.name][0],))]


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> HpsReward:
    """The published open_clip ViT-H-14, or another architecture."""
    clip = load_clip(spec.architecture or ARCHITECTURE, sources(spec), device, dtype)
    padded = replace(clip.preprocess, fit="pad", shortest=None, as_tensor=True, own=None)
    return HpsReward(spec.column, clip, preprocess=padded, range=VERSIONS[spec.name][1])
