"""What each memory lever saves and costs in a DRaFT step, on a small Stable Diffusion pipeline of random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aig import adapters, draft, memory, rewards
from aig.models import Sampling, load
from benchmarks.common import compare, saved_for_backward
from benchmarks.trl import GUIDANCE, RANK, build

BATCH, STEPS, K = 4, 4, 2
PROMPTS = ["a red star", "a blue cat", "a green cross", "a pink circle"]
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "denoiser recomputed": {"checkpointing": ["denoiser"]},
    "decoder recomputed": {"checkpointing": ["vae"]},
    "reward recomputed": {"checkpointing": ["reward"]},
    "all three": {"checkpointing": ["denoiser", "vae", "reward"]},
    "decoder in tiles": {"vae_tiling": True},
    "micro-batch 1": {"micro_batch": 1},
    "bf16 autocast": {"autocast": "bfloat16"},
    "fused AdamW": {"optimizer": "adamw-fused"},
    "compiled blocks": {"compiled": True},
}


class Tower(nn.Module):
    """A reward of some size: four convolutions and a mean."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Conv2d(i, 64, 3, padding=1), nn.SiLU()] for i in (3, 64, 64, 64)]
        self.body = nn.Sequential(*(part for pair in layers for part in pair))

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.body(images).mean(dim=(1, 2, 3))


def one(
    folder: Path, device: str, checkpointing: list[str] | None = None, vae_tiling: bool = False, compiled: bool = False,
    micro_batch: int = BATCH, autocast: str | None = None, optimizer: str = "adamw",
) -> Callable[[], object]:  # fmt: skip
    """A training step under some levers, on a model of its own."""
    torch.manual_seed(0)
    model = load(folder, device)
    adapters.attach(model.denoiser, "a", RANK, RANK)
    parameters = adapters.parameters(model.denoiser, "a")
    recomputed = checkpointing or []
    memory.prepare(model, recomputed, vae_tiling, compiled)
    if vae_tiling:
        model.pipe.vae.tile_latent_min_size, model.pipe.vae.tile_sample_min_size = 16, 32
    reward = rewards.FunctionReward(Tower().to(device).requires_grad_(False), "tower")
    if "reward" in recomputed:
        reward.checkpoint()
    chosen = memory.make_optimizer(optimizer, parameters, 1e-4, (0.9, 0.999), 0.0)
    sampling = Sampling(STEPS, GUIDANCE, passes=2, fuse=True, block=1)
    config = draft.DraftConfig(sampling, k=K, micro_batch=micro_batch, autocast=autocast)

    def step() -> None:
        chosen.zero_grad()
        draft.train_step(model, reward, "a", PROMPTS, list(range(BATCH)), config)
        chosen.step()

    return step


def levers(device: str) -> None:
    """Time of a step, and the most that autograd holds at once, by lever."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        runs = {name: one(Path(folder), device, **settings) for name, settings in LEVERS.items()}
        timed = {name: (run, float(BATCH)) for name, run in runs.items()}
        compare(f"memory levers: DRaFT K = {K}, batch {BATCH}, {STEPS} steps", "images", timed, device, rounds=3)
        print(f"\n  {'saved for backward, MiB':<34}{'all':>9}{'ratio':>9}")
        first = None
        for name, run in runs.items():
            held = saved_for_backward(run)
            first = first or held
            print(f"  {name:<34}{held:>9.0f}{held / first:>9.2f}")
