"""Small models and adapters that several test files share."""

from __future__ import annotations

import torch

from aig import adapters
from aig.models import Model, load


def add_random_adapter(model: Model, name: str = "a", size: float = 0.05, seed: int = 1, rank: int = 4) -> None:
    """A LoRA whose every weight is shifted by normal noise: as good as tuned, for all that is about mechanics."""
    adapters.attach(model.denoiser, name, rank=rank, alpha=rank, targets="everywhere", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(model.denoiser, name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def tiny_with(*names: str, dtype: torch.dtype = torch.float32) -> Model:
    model = load("tiny", dtype=dtype)
    for seed, name in enumerate(names, start=1):
        add_random_adapter(model, name, seed=seed)
    return model
