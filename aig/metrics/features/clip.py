"""Image embeddings of any CLIP: unit vectors, whose Gaussian kernel distance is CMMD (Jayasumana et al. 2024).

A CLIP that is also a reward is loaded once per process.
"""

from __future__ import annotations

import torch

from aig.metrics.features.base import Features, in_words
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Source, Views, clip_sources, load_clip

WEIGHTS = "openai/clip-vit-large-patch14"


def sources(spec: FeatureSpec) -> list[Source]:
    """A folder of `CLIPModel` with its processor, or, with an architecture, an open_clip checkpoint."""
    return clip_sources(spec.weights or WEIGHTS, spec.architecture, spec.processor, spec.user)


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """Projected and normalized embeddings: 768 features of OpenAI's ViT-L/14, or other weights'."""
    clip = load_clip(spec.architecture, sources(spec), device, dtype)
    blank = Views(torch.zeros(1, 3, *clip.preprocess.size))
    with torch.no_grad():
        dimension = clip.embed_images(blank).shape[1]  # the two libraries have no common name for it
    return Features(clip.embed_images, spec.title, dimension, clip.preprocess.size, in_words(clip.preprocess))
