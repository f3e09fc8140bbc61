"""Pretrained vision models for rewards and features: their weights, how they see an image, CLIP's two towers."""

from aig.vision.clip import Clip, clip_sources, load_clip
from aig.vision.preprocess import Preprocess, Views
from aig.vision.weights import Source, digest, fetch, missing

__all__ = ["Clip", "Preprocess", "Source", "Views", "clip_sources", "digest", "fetch", "load_clip", "missing"]
