"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP-L and a linear head, through transformers' BLIP classes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aig.rewards.base import LibraryReward
from aig.rewards.head import linear_head, read_state
from aig.rewards.spec import RewardSpec
from aig.vision import Preprocess, Source, Views, fetch
from aig.vision.clip import warn_of_truncation, wide
from aig.vision.shared import ByPrompt, shared

WEIGHTS, FILE, TOKENIZER = "THUDM/ImageReward", "ImageReward.pt", "google-bert/bert-base-uncased"
LENGTH = 35  # tokens that the text encoder reads
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of its scores on the training set, in the published code


class Rater(nn.Module):
    """`forward(pixels (B, 3, h, w), ids (B, L), mask (B, L)) -> (B,)`, the score before standardization."""

    def __init__(self, blip: Any, head: nn.Module) -> None:
        super().__init__()
        self.blip, self.head = blip, head

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(wide(self.blip(pixels, ids, mask))).squeeze(-1)


class ImageReward(LibraryReward):
    """`(head(first token of the text that attends to the image) - mean) / std`."""

    range = (-2.5, 2.5)

    def __init__(self, name: str, rater: Rater, tokenizer: Any) -> None:
        self.name, self.rater, self.tokenizer = name, rater, tokenizer
        parameter = next(rater.blip.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.preprocess = Preprocess((rater.blip.size, rater.blip.size))
        self._tokens: ByPrompt[Tensor] = ByPrompt()

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        ids, mask = torch.stack(self._tokens.get(prompts, self._tokenize), dim=1).to(self.device)  # (B, L) each
        pixels = views.pixels(self.preprocess).to(self.device, self.dtype)
        return (self.rater(pixels, ids, mask) - MEAN) / STD  # (B,)

    def _tokenize(self, prompts: list[str]) -> list[Tensor]:
        lengths = [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]]
        warn_of_truncation(lengths, LENGTH)
        batch = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        return list(torch.stack([batch["input_ids"], batch["attention_mask"]], dim=1))  # (2, L) per prompt

    def checkpoint(self) -> None:
        self.rater.blip.checkpoint()


def sources(spec: RewardSpec) -> list[Source]:
    """The checkpoint in BLIP's own naming, and BERT's tokenizer."""
    if spec.architecture is not None:
        raise ValueError(f"{spec.user}: ImageReward's sizes are read from its weights; leave architecture out")
    tokenizer = ("tokenizer.json|vocab.txt",)
    return [
        Source(spec.user, spec.weights or WEIGHTS, (FILE,)),
        Source(spec.user, spec.processor or TOKENIZER, tokenizer, ("tokenizer_config.json",), key="processor"),
    ]


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> ImageReward:
    """The towers in `dtype`, the head in float32 at least; the weights' shapes give the sizes."""
    weights, tokenizer = sources(spec)
    file, folder = weights.file(fetch(weights)), fetch(tokenizer)
    rater = shared(("imagereward", file, device, dtype), lambda: _read(file, spec.user, device, dtype))
    return ImageReward(spec.column, rater, import_module("transformers").BertTokenizer.from_pretrained(folder))


def _read(file: Path, user: str, device: torch.device, dtype: torch.dtype) -> Rater:
    from_published = import_module("aig.vision.blip").from_published  # on first use: transformers takes seconds
    state = read_state(file, user)
    try:
        blip = from_published({key.removeprefix("blip."): v for key, v in state.items() if key.startswith("blip.")})
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{user}: {file} does not have the weights of a BLIP ({str(error).strip().splitlines()[0]}); give the "
            f"published {FILE}"
        ) from error
    layers = {key: value for key, value in state.items() if key.startswith("mlp.")}
    head = linear_head(layers, blip.text.config.hidden_size, user, "mlp.layers.")
    return Rater(blip.to(device, dtype), head.to(device, torch.promote_types(dtype, torch.float32)))
