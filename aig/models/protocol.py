"""The protocol of text-to-image models for the sampler and DRaFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SCHEDULERS = ("ddim", "euler", "dpm", "sde-dpm", "flow")


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; a model's are its `defaults`. Raises ValueError for a value out of range."""

    steps: int
    """Denoising steps T, at least 1."""
    guidance: float
    """Classifier-free guidance scale; 1 omits the unconditional half. For Flux true guidance (`true_cfg_scale`)."""
    eta: float = 0.0
    """DDIM's noise, 0 (deterministic) to 1 (ancestral)."""
    passes: int = 1
    """1: all predictions of a step in one forward, rows routed to adapters; 2: one forward per adapter."""
    fuse: bool = False
    """Without gradient, fold an adapter into float32 weights for the forward of its rows (needs passes = 2): faster for
    large batches of a small model, at the price of one copy of the tuned layers. Narrower weights are too coarse."""
    block: int = 8
    """Rows are padded to a multiple of this: every kernel sees the same shapes, so an image has the same bits in any
    batch."""
    max_rows: int = 128
    """The most rows of one forward, before the unconditional half is added."""
    scheduler: str | None = None
    """ddim, euler, dpm (DPM-Solver++ multistep), sde-dpm (its stochastic form) or flow (flow matching's Euler), made
    from the model's own scheduler's configuration; None is the model's own."""
    negative: str = ""
    """The negative prompt of the unconditional half; an empty one is the pipeline's default."""
    distilled: float | None = None
    """The guidance scale that a guidance-distilled model (FLUX.1-dev) reads as an input (`guidance_scale` of its
    pipeline); None for its own, and for models that read none."""

    def __post_init__(self) -> None:
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "guidance": (self.guidance >= 1, "at least 1 (1 is without guidance)"),
            "eta": (0 <= self.eta <= 1, "in [0, 1]"),
            "passes": (self.passes in (1, 2), "1 or 2"),
            "fuse": (not self.fuse or self.passes == 2, "false unless sampling.passes is 2"),
            "block": (self.block >= 1, "at least 1"),
            "max_rows": (self.max_rows >= 1, "at least 1"),
            "scheduler": (self.scheduler in (None, *SCHEDULERS), f"one of {', '.join(SCHEDULERS)}"),
            "distilled": (self.distilled is None or self.distilled >= 0, "at least 0"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise ValueError(f"sampling.{name} = {getattr(self, name)!r} must be {allowed}")


@dataclass(frozen=True)
class Condition:
    """A denoiser's inputs for B prompts, by argument; rows can be indexed."""

    conditional: Mapping[str, Tensor]
    """(B, ...)"""
    unconditional: Mapping[str, Tensor]
    """(1, ...), shared by all rows"""

    @property
    def embeddings(self) -> Tensor:
        """The prompts' token embeddings (B, L, D)."""
        return self.conditional["encoder_hidden_states"]

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Condition:
        return Condition({name: tensor[rows] for name, tensor in self.conditional.items()}, self.unconditional)

    def halves(self) -> dict[str, Tensor]:
        """Both halves as one batch of 2B rows, the unconditional ones first."""
        return {
            name: torch.cat([self.unconditional[name].expand_as(tensor), tensor])
            for name, tensor in self.conditional.items()
        }


class Model(Protocol):
    """The protocol of a frozen text-to-image model with a tunable denoiser."""

    name: str
    denoiser: nn.Module
    prefix: str
    """The denoiser's name in its pipeline, `unet` or `transformer`, which starts the keys of its adapters' files."""
    scheduler: Any
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    """Height and width in pixels."""
    device: torch.device
    dtype: torch.dtype
    defaults: Sampling

    def encode(self, prompts: Sequence[str], negative: str = "", distilled: float | None = None) -> Condition:
        """Encode prompts, each distinct one once, and the negative prompt; ValueError for one that the model cannot
        read.

        `distilled` is the guidance scale that a guidance-distilled model reads as an input.
        """
        ...

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, adapters: Sequence[str], guidance: float) -> Tensor:
        """The prediction (B, C, H, W) after classifier-free guidance, row i through adapter adapters[i] or none
        (`BASE`); x_t as the scheduler scales it, t one time or one per row (B,)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, H', W') in [0, 1], differentiable inside the range."""
        ...

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler to T steps as the model's pipeline does, for its image size."""
        ...
