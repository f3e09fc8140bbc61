"""CLIP's two towers behind one interface, through transformers or open_clip; loaded once per process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aig.vision.preprocess import Preprocess, Views
from aig.vision.shared import ByPrompt, shared
from aig.vision.weights import Source, fetch

CLIP_FILES = ("config.json", "model.safetensors|model.safetensors.index.json|pytorch_model.bin")
PROCESSOR_FILES = ("preprocessor_config.json|processor_config.json", "tokenizer.json|vocab.json")
OPEN_CLIP_FILES = ("open_clip_model.safetensors|open_clip_pytorch_model.bin",)


class Clip:
    """A frozen CLIP. Embeddings are unit vectors (B, d) in float32 at least; some prompts' are cached."""

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        image_features: Callable[[Tensor], Tensor],
        text_features: Callable[[Tensor], Tensor],
        tokenize: Callable[[list[str]], tuple[Tensor, list[int]]],
        checkpoint: Callable[[], None],
    ) -> None:
        """`tokenize` returns token ids (B, context length) and each prompt's number of tokens before truncation;
        `checkpoint` makes the image tower recompute its blocks in the backward pass."""
        self.model, self.preprocess, self.checkpoint = model, preprocess, checkpoint
        self._image_features, self._text_features, self._tokenize = image_features, text_features, tokenize
        parameter = next(p for name, p in model.named_parameters() if name != "logit_scale")
        self.device, self.dtype = parameter.device, parameter.dtype
        self.texts: ByPrompt[Tensor] = ByPrompt()

    @property
    def logit_scale(self) -> Tensor:
        """`exp` of the learned log temperature, a scalar (100 in most checkpoints)."""
        return self.model.logit_scale.exp()  # type: ignore[operator]

    def embed_images(self, images: Views | Tensor, preprocess: Preprocess | None = None) -> Tensor:
        """Unit embeddings (B, d) of images (B, 3, H, W): floats in [0, 1], or uint8 for the report path."""
        views = images if isinstance(images, Views) else Views(images)
        preprocess = self.preprocess if preprocess is None else preprocess
        return views.once((self, preprocess), lambda: self._embed(views.pixels(preprocess)))

    def _embed(self, pixels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            features = self._image_features(pixels.to(self.device, self.dtype))
        return F.normalize(wide(features), dim=-1)  # (B, d)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings (B, d) of prompts, without gradient.

        Prompts longer than the context (77 tokens) are truncated, with one warning that counts them.
        """
        return torch.stack(self.texts.get(prompts, self._embed_new))  # (B, d)

    def _embed_new(self, prompts: list[str]) -> list[Tensor]:
        tokens, lengths = self._tokenize(prompts)
        warn_of_truncation(lengths, tokens.shape[1])
        # The first caller may be in inference mode, whose tensors a later backward pass could not use.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features = wide(self._text_features(tokens.to(self.device)))
            return [row.clone() for row in F.normalize(features, dim=-1)]


def cast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a CLIP to a device and a dtype, except its temperature, which stays in float32 at least.

    In bfloat16 exp(ln 100) is 98.86, and every score 1.1 % low.
    """
    scale = model.logit_scale.detach().clone()  # type: ignore[operator]
    model.to(device, dtype)
    model.logit_scale.data = wide(scale).to(device)


def wide(values: Tensor) -> Tensor:
    """The values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def warn_of_truncation(lengths: Sequence[int], limit: int) -> None:
    """Warn once, with their number, of prompts of more than `limit` tokens."""
    over = [length for length in lengths if length > limit]
    if over:
        warnings.warn(
            f"{len(over)} of {len(lengths)} prompts are longer than {limit} tokens and were truncated to them (the "
            f"longest has {max(over)}): the reward does not see the rest",
            stacklevel=2,
        )


def clip_sources(
    weights: str,
    architecture: str | None = None,
    processor: str | None = None,
    user: str = "CLIP",
    key: str = "weights",
) -> list[Source]:
    """The sources of `load_clip`: a hub id or folder of transformers' `CLIPModel`, and that of its processor.

    The processor's is by default the same. With an open_clip architecture: a checkpoint file, or a hub id or folder
    that holds one. `user` and `key`, the key of the weights, are for messages.

    Examples:
        >>> [source.files[0] for source in aig.vision.clip_sources("openai/clip-vit-large-patch14")]
        ['config.json', 'preprocessor_config.json|processor_config.json']
    """
    if architecture is not None:
        return [Source(user, weights, OPEN_CLIP_FILES, key=key)]
    extras = ("*.json", "merges.txt")
    return [
        Source(user, weights, CLIP_FILES, extras, key),
        Source(user, processor or weights, PROCESSOR_FILES, extras, "processor" if processor else key),
    ]


def load_clip(
    architecture: str | None,
    sources: Sequence[Source],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """Load the CLIP of `clip_sources` through transformers, or through open_clip if an architecture is given.

    An architecture is an open_clip model name or the path of its config JSON. Two calls with the same files,
    architecture, device and dtype return one object while it is in use. Raises ValueError for files that cannot be
    downloaded or do not fit.
    """
    paths = [fetch(source) for source in sources]
    device, user = torch.device(device), sources[0].user
    if architecture is not None:
        paths = [sources[0].file(paths[0])]
    elif paths[0].is_file():
        raise ValueError(
            f"{user}: {paths[0]} is a file, which needs an architecture (an open_clip model name, as ViT-H-14, or the "
            "path of its config JSON); without one give a folder that CLIPModel.save_pretrained wrote"
        )
    return shared(
        ("clip", architecture, *paths, device, dtype), lambda: _load(architecture, paths, device, dtype, user)
    )


def _load(architecture: str | None, paths: list[Path], device: torch.device, dtype: torch.dtype, user: str) -> Clip:
    # Imported on first use: each of the two libraries takes seconds.
    if architecture is None:
        return import_module("aig.vision.clip_transformers").load(paths[0], paths[1], device, dtype, user)
    return import_module("aig.vision.clip_open").load(architecture, paths[0], device, dtype, user)
