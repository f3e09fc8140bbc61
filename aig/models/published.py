"""The configurations of the published models of each family, without weights.

Only values that differ from the defaults of diffusers' and transformers' classes. They serve to count a model before it
is downloaded (`aig.models.empty`) and to build one at its real size with random weights (`benchmarks.gpu`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Part = tuple[str, dict[str, Any]]  # a class and its configuration


@dataclass(frozen=True)
class Published:
    """One model of the hub; `stored` is the number of bytes per parameter in its files."""

    pipeline: str
    denoiser: Part
    vae: dict[str, Any]
    texts: dict[str, Part]
    scheduler: Part
    stored: int


VAE: dict[str, Any] = {
    "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
VAE_16 = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": 1024}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_BIGG = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280,
}  # fmt: skip
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128, "tie_word_embeddings": False,
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

SD14, SDXL = "CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-xl-base-1.0"
SD3, FLUX = "stabilityai/stable-diffusion-3-medium-diffusers", "black-forest-labs/FLUX.1-dev"

PUBLISHED: dict[str, Published] = {
    SD14: Published(
        "StableDiffusionPipeline",
        ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        {**VAE, "sample_size": 512, "scaling_factor": 0.18215},
        {"text_encoder": ("CLIPTextModel", CLIP_L)},
        ("DDIMScheduler", {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        stored=4,
    ),
    SDXL: Published(
        "StableDiffusionXLPipeline",
        ("UNet2DConditionModel", {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }),
        {**VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        {"text_encoder": ("CLIPTextModel", CLIP_L), "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_BIGG)},
        ("EulerDiscreteScheduler", {**BETAS, "steps_offset": 1, "timestep_spacing": "leading"}),
        stored=4,
    ),
    SD3: Published(
        "StableDiffusion3Pipeline",
        ("SD3Transformer2DModel", {
            "sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
        }),
        {**VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        {
            "text_encoder": ("CLIPTextModelWithProjection", {**CLIP_L, "projection_dim": 768}),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_BIGG),
            "text_encoder_3": ("T5EncoderModel", T5_XXL),
        },
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        stored=2,
    ),
    FLUX: Published(
        "FluxPipeline",
        ("FluxTransformer2DModel", {"guidance_embeds": True}),
        {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        {"text_encoder": ("CLIPTextModel", CLIP_L), "text_encoder_2": ("T5EncoderModel", T5_XXL)},
        ("FlowMatchEulerDiscreteScheduler", {
            "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096,
        }),
        stored=2,
    ),
}  # fmt: skip
