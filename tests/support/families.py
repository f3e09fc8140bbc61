"""Tiny random pipelines of every family, made of the real diffusers and transformers classes, without a hub.

    build("sdxl", folder) -> folder, which StableDiffusionXLPipeline.from_pretrained and aig.load open

Families: sd (eps-prediction), sd-v (Stable Diffusion 2's v-prediction), sdxl, sd3, flux. Latents have 4 channels and
the autoencoder halves each side; `SIDE` pixels is a size that all of them take.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

SIDE = 16  # pixels
WIDTH = 16  # of CLIP's embeddings
LENGTH = 16  # tokens that CLIP reads, its two special ones included
WORDS = (
    "a", "an", "the", "of", "on", "in", "with", "and", "photo", "painting", "red", "blue", "green", "yellow", "pink",
    "cross", "star", "heart", "circle", "square", "cat", "dog", "horse", "bird", "car", "house", "tree", "boat",
    "sky", "blurry", "low", "quality", "dark", "bright", "old", "new", "small", "big",
)  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build(family: str, folder: str | Path) -> Path:
    """Save the family's tiny pipeline under `folder` as a diffusers program would, in safetensors; the same weights
    every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[family]()
    pipe.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer: a word of `WORDS` is one token, any other text is spelled in bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = f"{letter}</w>" if i == len(word) else letter
            merges[left, right] = None
            left += right
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=LENGTH)


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer in T5's manner: a word of `WORDS` is one token, any other text is spelled in letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [("▁", -3.0), *((chr(c), -6.0) for c in range(33, 127))]
    unigram = models.Unigram([*special, *((f"▁{word}", -1.0) for word in WORDS), *letters], 2)
    backend = Tokenizer(unigram)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(tokenizer_object=backend, extra_ids=0, model_max_length=32)


def text_encoder(tokenizer: CLIPTokenizer, projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, projection_dim=WIDTH,
    )  # fmt: skip
    return _lively(kind(config), 3)


def t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=2 * WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def autoencoder(**config: Any) -> AutoencoderKL:
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 16), norm_num_groups=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    )  # fmt: skip
    return _lively(vae, 1.5)


def unet(**config: Any) -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )  # fmt: skip
    return _lively(model, 1.5)


def build_sd(prediction: str = "epsilon") -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(), tokenizer=tokenizer, text_encoder=text_encoder(tokenizer),
        unet=unet(cross_attention_dim=WIDTH, attention_head_dim=2),
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def build_sdxl() -> StableDiffusionXLPipeline:
    tokenizer = clip_tokenizer()
    denoiser = unet(
        cross_attention_dim=2 * WIDTH, attention_head_dim=(1, 2), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025, force_upcast=True), unet=denoiser,
        tokenizer=tokenizer, text_encoder=text_encoder(tokenizer),
        tokenizer_2=clip_tokenizer(), text_encoder_2=text_encoder(tokenizer, projection=True),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip


def build_sd3() -> StableDiffusion3Pipeline:
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        transformer=_lively(transformer, 1.2), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizer, text_encoder=text_encoder(tokenizer, projection=True),
        tokenizer_2=clip_tokenizer(), text_encoder_2=text_encoder(tokenizer, projection=True),
        tokenizer_3=tokenizer_3, text_encoder_3=t5_encoder(tokenizer_3),
    )  # fmt: skip


def build_flux() -> FluxPipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        transformer=_lively(transformer, 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        tokenizer=tokenizer, text_encoder=text_encoder(tokenizer),
        tokenizer_2=tokenizer_2, text_encoder_2=t5_encoder(tokenizer_2),
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": build_sd,
    "sd-v": lambda: build_sd("v_prediction"),
    "sdxl": build_sdxl,
    "sd3": build_sd3,
    "flux": build_flux,
}


def _lively(model: nn.Module, gain: float) -> Any:
    """The model with larger weight matrices: at their initial size, text would hardly reach the image."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return model
