"""DINOv2 (Oquab et al. 2023), which agrees better with people's judgement of similarity than Inception does (Stein et
al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from aig.metrics.features.base import Features, in_words
from aig.metrics.features.spec import FeatureSpec
from aig.vision import Source, Views, fetch
from aig.vision.clip_transformers import preprocess_of
from aig.vision.weights import pretrained

WEIGHTS = "facebook/dinov2-base"
FILES = ("config.json", "model.safetensors|model.safetensors.index.json|pytorch_model.bin")
PROCESSOR = ("preprocessor_config.json|processor_config.json",)


def sources(spec: FeatureSpec) -> list[Source]:
    """A folder of `Dinov2Model`, and that of its image processor, by default the same."""
    weights = spec.weights or WEIGHTS
    own = Source(spec.user, spec.processor or weights, PROCESSOR, (), "processor" if spec.processor else "weights")
    return [Source(spec.user, weights, FILES, ("*.json",)), own]


def load(spec: FeatureSpec, device: torch.device, dtype: torch.dtype) -> Features:
    """The class token after the last layer norm, 768 features in the base size.

    Images are resized and cropped by the processor's configuration (published: shortest side to 256 px, bicubic, centre
    crop of 224).
    """
    folder, processor = (fetch(source) for source in sources(spec))
    model = pretrained(Dinov2Model, folder, dtype, spec.user).to(device).eval().requires_grad_(False)
    preprocess = preprocess_of(BitImageProcessorPil.from_pretrained(processor, local_files_only=True), spec.user)

    def extract(views: Views) -> Tensor:
        return model(pixel_values=views.pixels(preprocess).to(device, dtype)).pooler_output

    return Features(extract, spec.title, model.config.hidden_size, preprocess.size, in_words(preprocess))
