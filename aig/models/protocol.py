"""What the sampler and DRaFT ask of a text-to-image model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; a model's `defaults` are its own."""

    steps: int
    """Denoising steps T, at least 1."""
    guidance: float
    """Classifier-free guidance scale; 1 leaves the unconditional half out."""
    eta: float = 0.0
    """DDIM's noise, 0 (deterministic) to 1 (ancestral)."""
    passes: int = 1
    """1: all predictions of a step in one forward, rows routed to adapters; 2: one forward an adapter."""
    fuse: bool = False
    """Without gradient, fold an adapter into the weights for the forward of its rows (needs passes = 2): faster for
    large batches of a small model, at the price of one copy of the tuned layers."""
    block: int = 8
    """Rows are padded to a multiple of this, so that every kernel sees the same shapes and an image has the same bits
    in any batch."""
    max_rows: int = 128
    """Rows (before the unconditional half is added) of one forward at most."""

    def __post_init__(self) -> None:
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "guidance": (self.guidance >= 1, "at least 1 (1 is without guidance)"),
            "eta": (0 <= self.eta <= 1, "in [0, 1]"),
            "passes": (self.passes in (1, 2), "1 or 2"),
            "fuse": (not self.fuse or self.passes == 2, "false unless sampling.passes is 2"),
            "block": (self.block >= 1, "at least 1"),
            "max_rows": (self.max_rows >= 1, "at least 1"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise ValueError(f"sampling.{name} = {getattr(self, name)} must be {allowed}")


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: token embeddings (B, L, D) and the unconditional half (1, L, D)."""

    embeddings: Tensor
    unconditional: Tensor

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Condition:
        return Condition(self.embeddings[rows], self.unconditional)


class Model(Protocol):
    """A frozen text-to-image model and its tunable denoiser."""

    name: str
    denoiser: nn.Module
    scheduler: Any
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    defaults: Sampling

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts, each distinct one once; ValueError for a prompt that the model cannot read."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, adapters: Sequence[str], guidance: float) -> Tensor:
        """The prediction (B, C, H, W) after classifier-free guidance, row i through adapter adapters[i] or none
        (`BASE`)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, H', W') in [0, 1], differentiable inside the range."""
        ...
