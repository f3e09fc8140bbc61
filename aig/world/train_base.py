"""Train the tiny text-to-image model from scratch, on scenes rendered on demand.

    python -m aig.world.train base --out DIR                                   # one process, CPU or one GPU
    torchrun --nproc-per-node 2 -m aig.world.train base --out DIR --threads 1  # two processes: faster on two cores

All randomness at step s on rank r comes from (seed, s, r): an interrupted run resumes with the same command as if
nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from aig.world.scenes import captions, render, sample_scenes
from aig.world.tiny import build_pipeline
from aig.world.training import Recipe, fit, generator_for, join_processes


@dataclass(frozen=True)
class BaseConfig(Recipe):
    """How the base model is trained; see `Recipe`."""

    steps: int = 3000
    batch: int = 128
    lr: float = 1.2e-3  # AdamW's, for embeddings, norms, biases and the first and last convolutions
    warmup: int = 60
    decay_share: float = 0.25
    drop_caption: float = 0.1  # for classifier-free guidance
    focus: float = 0.5  # share of a batch drawn from the times that decide shape, 0.4 to 0.9 of the schedule
    focus_from: int = 1000  # the first step with it; colours and backgrounds come first, uniformly over times


@dataclass
class Batch:
    images: Tensor  # (B, 3, H, W) in [0, 1]
    captions: list[str]
    times: Tensor  # (B,) ints, stratified over the schedule
    generator: torch.Generator


def draw_batch(size: int, config: BaseConfig, step: int, rank: int, train_steps: int) -> Batch:
    generator = generator_for(config.seed, step, rank)
    scenes = sample_scenes(size, generator)
    texts = captions(scenes, generator)
    dropped = torch.rand(size, generator=generator) < config.drop_caption
    texts = ["" if drop else text for text, drop in zip(texts, dropped.tolist(), strict=True)]
    u = (torch.arange(size) + torch.rand(size, generator=generator)) / size  # stratified
    share = config.focus if step >= config.focus_from else 0.0
    u = torch.where(u < share, 0.4 + 0.5 * u / max(share, 1e-9), (u - share) / (1 - share))
    return Batch(render(scenes), texts, (u * train_steps).long().clamp(max=train_steps - 1), generator)


def encode(pipe, texts: list[str], device: torch.device) -> Tensor:
    """Token embeddings (B, L, D), each distinct caption encoded once."""
    distinct = sorted(set(texts))
    tokens = pipe.tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    embeddings = pipe.text_encoder(tokens)[0]
    return embeddings[[distinct.index(text) for text in texts]]


def velocity_loss(pipe, batch: Batch, device: torch.device) -> Tensor:
    """Mean squared error of the v-prediction (Salimans and Ho 2022) at stratified times."""
    latents = pipe.vae.encode(batch.images.to(device) * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=batch.generator).to(device)
    times = batch.times.to(device)
    noisy = pipe.scheduler.add_noise(latents, noise, times)
    target = pipe.scheduler.get_velocity(latents, noise, times)
    predicted = pipe.unet(noisy, times, encode(pipe, batch.captions, device)).sample
    return F.mse_loss(predicted, target)


# At 7,200 images the loss was 0.49 with Muon for the other weights, 0.54 with AdamW for all (LOG.md).
OUTSIDE = ("token_embedding", "position_embedding", "positional_embedding", "conv_in", "conv_out")


def is_inside(name: str, parameter: nn.Parameter) -> bool:
    return not any(part in name for part in OUTSIDE)


def train(config: BaseConfig, out: Path, device: torch.device) -> None:
    """Train, checkpointing to `out`; the EMA weights end in the diffusers folder `out/tiny`."""
    rank, world = join_processes(device)
    pipe = build_pipeline(config.seed)
    pipe.to(device)
    modules = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder}).train()
    pipe.unet.requires_grad_(True)
    pipe.text_encoder.requires_grad_(True)
    train_steps = pipe.scheduler.config.num_train_timesteps

    def losses_at(step: int) -> dict[str, Tensor]:
        batch = draw_batch(config.batch // world, config, step, rank, train_steps)
        return {"loss": velocity_loss(pipe, batch, device)}

    fit("base", modules, losses_at, config, out, device, is_inside)
    if rank == 0:
        pipe.to("cpu", torch.float32)
        save_half(pipe, out / "tiny")
    if dist.is_initialized():
        dist.destroy_process_group()


def save_half(pipe, folder: Path) -> None:
    """Save the pipeline as safetensors, the denoiser in fp16 (8.3 MB), which loading converts to fp32 exactly.

    The text encoder stays in fp32: transformers loads a model in its saved dtype, diffusers in fp32.
    """
    pipe.unet.half()
    pipe.save_pretrained(folder, safe_serialization=True)
    pipe.unet.float()
