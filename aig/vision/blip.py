"""BLIP's image tower and image-grounded text encoder as transformers' classes, from weights in BLIP's own naming."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from aig.vision.clip_transformers import checkpoint_layers

HEAD_WIDTH = 64  # per attention head, in every published size
# (BLIP's name, transformers' name) of the image tower's parameters; those of the text encoder are the same in both
VISION = (
    (r"cls_token", r"embeddings.class_embedding"),
    (r"pos_embed", r"embeddings.position_embedding"),
    (r"patch_embed.proj", r"embeddings.patch_embedding"),
    (r"blocks.{n}.norm1", r"encoder.layers.{n}.layer_norm1"),
    (r"blocks.{n}.norm2", r"encoder.layers.{n}.layer_norm2"),
    (r"blocks.{n}.attn.qkv", r"encoder.layers.{n}.self_attn.qkv"),
    (r"blocks.{n}.attn.proj", r"encoder.layers.{n}.self_attn.projection"),
    (r"blocks.{n}.mlp", r"encoder.layers.{n}.mlp"),
    (r"norm", r"post_layernorm"),
)


class Blip(nn.Module):
    """`forward(pixels (B, 3, h, w), ids (B, L), mask (B, L)) -> (B, d)`: the text's first token after attention."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        patches = self.vision(pixel_values=pixels).last_hidden_state  # (B, N, d_image)
        output = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False)
        return output.last_hidden_state[:, 0]

    @property
    def size(self) -> int:
        """Side of the tower's square input, px."""
        side = self.vision.config.image_size
        return side if isinstance(side, int) else side[0]

    def checkpoint(self) -> None:
        """Recompute the blocks of both towers in the backward pass: the image's gradient runs through both."""
        checkpoint_layers(self.vision.encoder.layers)
        checkpoint_layers(self.text.encoder.layer)


def from_published(state: Mapping[str, Tensor]) -> Blip:
    """The model of weights under `visual_encoder.` and `text_encoder.`, sized by their shapes; fp32, eval mode, frozen.

    Raises KeyError or RuntimeError for parameters that are missing or have other shapes.
    """
    vision = {
        key.removeprefix("visual_encoder."): value for key, value in state.items() if key.startswith("visual_encoder.")
    }
    text = {key.removeprefix("text_encoder."): value for key, value in state.items() if key.startswith("text_encoder.")}
    text.pop("embeddings.position_ids", None)  # a counter, not a weight
    model = Blip(_vision_config(vision), _text_config(text, width=vision["norm.weight"].numel()))
    model.vision.load_state_dict({renamed(key): value for key, value in vision.items()})
    model.text.load_state_dict(text)
    return model.eval().requires_grad_(False)


def renamed(key: str) -> str:
    """The transformers name of a parameter of the image tower. KeyError for an unknown one."""
    for source, target in VISION:
        pattern = re.escape(source).replace(r"\{n\}", r"(\d+)")
        match = re.fullmatch(rf"{pattern}((?:\..+)?)", key)
        if match:
            return target.replace("{n}", match[1]) + match[match.lastindex or 0]
    raise KeyError(f"{key} is no parameter of BLIP's image tower")


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    patch, width = state["patch_embed.proj.weight"], state["norm.weight"].numel()
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(state, "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=int((state["pos_embed"].shape[1] - 1) ** 0.5) * patch.shape[-1],
        patch_size=patch.shape[-1],
        layer_norm_eps=1e-6,
    )


def _text_config(state: Mapping[str, Tensor], width: int) -> BlipTextConfig:
    words = state["embeddings.word_embeddings.weight"]
    config = BlipTextConfig(
        vocab_size=len(words),
        hidden_size=words.shape[1],
        encoder_hidden_size=width,
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_layers(state, "encoder.layer."),
        num_attention_heads=words.shape[1] // HEAD_WIDTH,
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,  # so that transformers builds cross-attention
    )
    config._attn_implementation = "eager"  # the only one of BLIP's text layers
    return config


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
