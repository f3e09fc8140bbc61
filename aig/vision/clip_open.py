"""CLIP through open_clip: an architecture by name or config file, and a checkpoint file."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.transform import image_transform
from torch import Tensor, nn

from aig.vision.clip import Clip, cast
from aig.vision.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

FITS = {"shortest": "crop", "longest": "pad", "squash": "stretch"}  # open_clip's resize modes


def load(architecture: str, weights: Path, device: torch.device, dtype: torch.dtype, user: str = "CLIP") -> Clip:
    """Load the towers in `dtype`, in eval mode (open_clip builds them in train mode) and frozen.

    Raises ValueError for an architecture that is neither known nor a file, and for weights that do not fit it.
    """
    config, preprocessing = configuration(architecture, user)
    model = build(config)
    try:
        open_clip.load_checkpoint(model, str(weights), strict=True, weights_only=True)
    except (RuntimeError, UnpicklingError, KeyError, OSError) as error:
        raise ValueError(
            f"{user}: the checkpoint {weights} does not fit the architecture {architecture!r} "
            f"({str(error).strip().splitlines()[0]}); give the architecture that it was trained with"
        ) from error
    cast(model.eval().requires_grad_(False), device, dtype)
    size = model.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    tokenizer = tokenizer_of(architecture, config)

    def tokenize(prompts: list[str]) -> tuple[Tensor, list[int]]:
        return tokenizer(prompts), [untruncated(tokenizer, prompt) for prompt in prompts]

    return Clip(
        model,
        preprocess_of(size, preprocessing),
        model.encode_image,
        model.encode_text,
        tokenize,
        lambda: model.visual.set_grad_checkpointing(True),
    )


def configuration(architecture: str, user: str = "CLIP") -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and the preprocessing's configuration, by name or from a JSON file with or without both parts."""
    path = Path(architecture).expanduser()
    if path.is_file():
        content = json.loads(path.read_text())
        return content.get("model_cfg", content), content.get("preprocess_cfg", {})
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(
            f"{user}: the architecture {architecture!r} is neither a model of open_clip (open_clip.list_models() names "
            "them) nor the path of a config JSON"
        )
    return config, {}


def build(config: dict[str, Any]) -> Any:
    """The model of a configuration, with random weights and without downloads."""
    config = deepcopy(config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    model_class: type[nn.Module] = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return model_class(**config)


def tokenizer_of(architecture: str, config: dict[str, Any]) -> Any:
    """The tokenizer of an open_clip model, or of a custom configuration."""
    if not Path(architecture).expanduser().is_file():
        return open_clip.get_tokenizer(architecture)
    text = config["text_cfg"]
    context, more = text.get("context_length", 77), text.get("tokenizer_kwargs", {})
    if text.get("hf_tokenizer_name"):
        return open_clip.tokenizer.HFTokenizer(text["hf_tokenizer_name"], context_length=context, **more)
    return open_clip.SimpleTokenizer(context_length=context, **more)


def untruncated(tokenizer: Any, prompt: str) -> int:
    """The number of a prompt's tokens, with the two at its ends."""
    if hasattr(tokenizer, "tokenizer"):  # transformers', in open_clip's wrapper
        return len(tokenizer.tokenizer(prompt, verbose=False)["input_ids"])
    return len(tokenizer.encode(prompt)) + 2


def preprocess_of(size: tuple[int, int], settings: dict[str, Any]) -> Preprocess:
    """The steps of open_clip's evaluation transform; by default OpenAI's mean and standard deviation, centre crop."""
    mean, std = tuple(settings.get("mean", CLIP_MEAN)), tuple(settings.get("std", CLIP_STD))
    mode = settings.get("resize_mode", "shortest")
    interpolation = "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic"
    own = _transform(size, mean, std, mode, interpolation)
    return Preprocess(size, FITS[mode], mean, std, interpolation, own=own)


@lru_cache  # so that two models with one preprocessing share the transform and its pixels
def _transform(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], mode: str, interpolation: str
) -> Any:
    return image_transform(size[0] if size[0] == size[1] else size, False, mean, std, mode, interpolation)
