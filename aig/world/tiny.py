"""The tiny text-to-image model, built from the real diffusers and transformers classes.

It is saved as an ordinary diffusers folder, which `DiffusionPipeline.from_pretrained(weights.folder("tiny"))` opens.
"""

# diffusers annotates its pipelines too narrowly.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import math

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from aig.world.codec import SpaceToDepth
from aig.world.scenes import COLOURS, SHAPES, SIZE, TONES

WORDS = ("a", "an", "on", "background", *COLOURS, *SHAPES, *TONES)
TEXT_LENGTH = 10  # the longest caption has seven words, between two special tokens
TEXT_WIDTH = 64
WARP = 2.2


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with learned merges: each of the world's words is one token."""
    trainer = trainers.BpeTrainer(
        vocab_size=1000, end_of_word_suffix="</w>", special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"), show_progress=False,
    )  # fmt: skip
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator([" ".join(WORDS)] * 4, trainer)

    learned = json.loads(bpe.to_str())["model"]
    vocab, merges = learned["vocab"], [tuple(m) for m in learned["merges"]]
    # The trainer numbers single last letters in an order that varies from call to call: fix it.
    last = sorted(token for token in vocab if token.endswith("</w>") and len(token) == len("a</w>"))
    vocab.update(zip(last, sorted(vocab[token] for token in last), strict=True))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def noise_schedule(steps: int = 1000, warp: float = WARP) -> list[float]:
    """Betas of a cosine schedule with its clock warped towards high noise: alpha_bar(s) = sin^2(pi/2 (1 - s)^warp).

    s = t/steps. Uniform steps through it spend most of their time on layout and shape, in training and in sampling; ten
    uniform steps of the plain cosine gave grey backgrounds.
    """
    # The end is lifted to 1e-6: at zero, DDIM with eta = 1 takes the root of a negative rounding error.
    bar = [math.sin(math.pi / 2 * (1 - s / steps) ** warp) ** 2 * (1 - 1e-6) + 1e-6 for s in range(steps + 1)]
    return [1 - bar[i + 1] / bar[i] for i in range(steps)]


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000, trained_betas=noise_schedule(), prediction_type="v_prediction", clip_sample=False,
        set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip


def build_unet() -> UNet2DConditionModel:
    """4.1 M parameters; text enters by cross-attention at 4x4 and, pooled, with the time in each residual block."""
    return UNet2DConditionModel(
        sample_size=SIZE // 2, in_channels=12, out_channels=12, block_out_channels=(32, 64, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=2, norm_num_groups=8,
        resnet_time_scale_shift="scale_shift", addition_embed_type="text", encoder_hid_dim=TEXT_WIDTH,
        addition_embed_type_num_heads=4,
    )  # fmt: skip


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=TEXT_LENGTH, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, projection_dim=TEXT_WIDTH,
        )
    )  # fmt: skip


def build_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """An untrained pipeline, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text_encoder = build_text_encoder(tokenizer)
        unet = build_unet()
    return StableDiffusionPipeline(
        vae=SpaceToDepth(), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
