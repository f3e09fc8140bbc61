"""Tiny rewards in the formats of the published checkpoints, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

SIZE = 32  # px that the tiny towers take
PROMPTS = [
    "a red fox in the snow", "two boats at sunset", "portrait of an old man", "a bowl of fruit", "city at night, rain",
    "a child's drawing of a house",
]  # fmt: skip

OPEN_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Images (count, 3, height, width) uint8 with the spectrum of photographs: noise of several scales, coarse strongest."""
    draws = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, height, width)
    for cells in (2, 4, 8, 16, 32):
        noise = torch.randn(count, 3, cells, cells, generator=draws)
        total += torch.nn.functional.interpolate(noise, (height, width), mode="bicubic") / cells**0.5
    return ((total / 4 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer, made of the vocabulary that open_clip carries along."""
    simple = open_clip.SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(token, token): index for token, index in simple.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77)


def clip_folder(path: Path, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """A folder of `CLIPModel` with its processor, as PickScore and OpenAI's CLIP are published."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = CLIPConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": len(tokenizer), "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIZE, "patch_size": 8,
        },
        projection_dim=16,
    )  # fmt: skip
    model = CLIPModel(config)
    randomize(model)
    model.to(dtype).save_pretrained(path)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path


def open_clip_files(path: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> tuple[Path, Path]:
    """A config JSON, and a checkpoint file with the weights under `state_dict`, as HPSv2 is published."""
    torch.manual_seed(seed)
    config, checkpoint = path / "tiny.json", path / f"HPS_{seed}.pt"
    config.write_text(json.dumps(OPEN_CONFIG))
    model = open_clip.CLIP(**json.loads(config.read_text()))
    randomize(model)
    torch.save({"epoch": 1, "state_dict": {k: v.to(dtype) for k, v in model.state_dict().items()}}, checkpoint)
    return config, checkpoint


def randomize(model: torch.nn.Module) -> None:
    """Weights large enough for scores that differ between images: fresh ones are nearly constant functions."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
