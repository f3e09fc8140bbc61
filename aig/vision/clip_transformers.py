"""CLIP through transformers: a folder of `CLIPModel` with its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from aig.vision.clip import Clip, cast
from aig.vision.preprocess import Preprocess
from aig.vision.weights import pretrained


def load(folder: Path, processor: Path, device: torch.device, dtype: torch.dtype, user: str = "CLIP") -> Clip:
    """Load the towers in `dtype`, whatever the checkpoint's, in eval mode and frozen.

    Raises ValueError if the folder's weights leave a parameter unset.
    """
    model = pretrained(CLIPModel, folder, torch.promote_types(dtype, torch.float32), user)
    cast(model.eval().requires_grad_(False), device, dtype)
    tokenizer = AutoTokenizer.from_pretrained(processor, local_files_only=True)
    context = model.config.text_config.max_position_embeddings

    def tokenize(prompts: list[str]) -> tuple[Tensor, list[int]]:
        lengths = [len(ids) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
        batch = tokenizer(prompts, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
        return batch["input_ids"], lengths

    return Clip(
        model,
        preprocess_of(CLIPImageProcessorPil.from_pretrained(processor, local_files_only=True), user),
        lambda pixels: features_of(model.get_image_features(pixel_values=pixels)),
        lambda tokens: features_of(model.get_text_features(input_ids=tokens)),
        tokenize,
        lambda: checkpoint_layers(model.vision_model.encoder.layers),
    )


def features_of(output: Any) -> Tensor:
    """The projected features (B, d), which transformers returns up to 4.x, and wraps in an object from 5.0 on."""
    return output if isinstance(output, Tensor) else output.pooler_output


def checkpoint_layers(layers: Any) -> None:
    """Make transformers' encoder layers recompute their activations in the backward pass.

    The library does so in train mode only. The flag is set on the layers themselves: their dropouts stay in eval mode.
    """

    def recompute(function: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, **kwargs)

    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, recompute
        layer.training = True


def preprocess_of(processor: Any, user: str = "CLIP") -> Preprocess:
    """The differentiable form of a transformers image processor like CLIP's.

    Raises ValueError for steps that have no counterpart here.
    """
    names = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    plain = processor.do_resize and processor.do_rescale and processor.do_normalize and processor.resample in names
    if not plain or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError(
            f"{user}: the image processor {type(processor).__name__} does not resize (bicubic or bilinear), rescale by "
            "1/255 and normalize; give the processor of a CLIP"
        )
    shortest = size.get("shortest_edge")
    if shortest is not None and processor.do_center_crop:
        final, fit = (crop["height"], crop["width"]), "crop"
    elif shortest is None and size.get("height") and size.get("width") and not processor.do_center_crop:
        final, fit = (size["height"], size["width"]), "stretch"
    else:
        raise ValueError(
            f"{user}: the image processor's size {size} with do_center_crop={processor.do_center_crop} is not "
            "understood; it needs shortest_edge with a centre crop, or height and width without one"
        )

    def own(picture: Image.Image) -> Tensor:
        return processor(picture, return_tensors="pt")["pixel_values"][0]

    return Preprocess(
        final, fit, tuple(processor.image_mean), tuple(processor.image_std), names[processor.resample], shortest,
        floor_centre=True, own=own,
    )  # fmt: skip
