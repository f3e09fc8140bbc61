"""Tiny rewards in the formats of the published checkpoints, with random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

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
    """Images (count, 3, height, width) in [0, 1], as photographs mostly coarse: noise of several scales."""
    draws = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, height, width)
    for cells in (2, 4, 8, 16, 32):
        noise = torch.randn(count, 3, cells, cells, generator=draws)
        total += torch.nn.functional.interpolate(noise, (height, width), mode="bicubic") / cells**0.5
    return (total / 2 + 0.5).clamp(0, 1)


def saved(images: torch.Tensor) -> torch.Tensor:
    """Images as 8 bits hold them, uint8."""
    return (images * 255).round().to(torch.uint8)


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


def head_state(width: int, prefix: str = "layers.") -> dict[str, torch.Tensor]:
    """A linear head in the published naming: five layers at the places 0, 2, 4, 6, 7."""
    sizes = (width, 24, 12, 8, 4, 1)
    return {
        f"{prefix}{place}.{part}": torch.randn(*((new, old) if part == "weight" else (new,))) / old**0.5
        for place, old, new in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False)
        for part in ("weight", "bias")
    }


def aesthetic_file(path: Path, width: int = 16, seed: int = 0) -> Path:
    """The file of an aesthetic head, as LAION's is published."""
    torch.manual_seed(seed)
    file = path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(head_state(width), file)
    return file


BLIP_VISION, BLIP_TEXT = 128, 64  # widths: two heads and one


def blip_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """ImageReward's checkpoint with two layers: timm's names of the image tower, BERT's of the text encoder.

    Written out from the modules that publish under these names, not from the code that reads them.
    """
    torch.manual_seed(seed)
    vision, text = timm_tower(), bert_encoder()
    randomize(vision)
    randomize(text)
    state = {f"blip.visual_encoder.{key}": value for key, value in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{key}": value for key, value in text.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    kept = {key: value for key, value in state.items() if "token_type" not in key}  # BLIP's BERT has no segments
    return kept | head_state(BLIP_TEXT, "mlp.layers.")


def timm_tower() -> torch.nn.Module:
    """timm's vision transformer of the tiny size: the module that BLIP's image tower is made of."""
    return VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=BLIP_VISION, depth=2, num_heads=2, num_classes=0, global_pool=""
    )


def bert_encoder() -> BertModel:
    """transformers' BERT with cross-attention, of the tiny size: the module that BLIP's text encoder derives from."""
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=BLIP_TEXT, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96,
        max_position_embeddings=64, encoder_hidden_size=BLIP_VISION, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    for layer in model.encoder.layer:  # keys and values come from an image tower of another width
        for part in (layer.crossattention.self.key, layer.crossattention.self.value):
            part.__init__(BLIP_VISION, BLIP_TEXT)
    return model


@torch.no_grad()
def published_blip(state: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`(pixels (B, 3, h, w), ids (B, L), mask (B, L)) -> (B, d)` of the modules that ImageReward was published with,
    filled from a checkpoint as `blip_state` makes it."""
    tower, text = timm_tower().eval(), bert_encoder().eval()
    parts = [
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in ("blip.visual_encoder.", "blip.text_encoder.")
    ]
    tower.load_state_dict(parts[0])
    text.load_state_dict(parts[1], strict=False)
    text.embeddings.token_type_embeddings.weight.zero_()
    text.config.is_decoder = False  # no causal mask: the text is read whole

    def features(pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return text(ids, attention_mask=mask, encoder_hidden_states=tower(pixels)).last_hidden_state[:, 0]

    return features


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *sorted({w for text in PROMPTS for w in re.findall(r"\w+", text)}),
]


def imagereward_files(path: Path, seed: int = 0) -> tuple[Path, Path]:
    """ImageReward's checkpoint file, and a folder with BERT's tokenizer."""
    file, tokenizer = path / "ImageReward.pt", path / "bert"
    torch.save(blip_state(seed), file)
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("\n".join(WORDS))
    return file, tokenizer
