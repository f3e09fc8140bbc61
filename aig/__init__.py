"""Tune text-to-image diffusion models to a reward and move along the reward-diversity trade-off at inference.

The method of "Elucidating Optimal Reward-Diversity Tradeoffs in Text-to-Image Diffusion Models" (arXiv 2409.06493):
DRaFT with KL regularization, LoRA scaling and annealed importance guidance (AIG), with the measures and the Pareto
statistics to compare them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aig.denoiser import AnnealedDenoiser, annealed
    from aig.draft import DraftConfig, train_step
    from aig.guider import AnnealedImportanceGuidance
    from aig.models import Condition, Model, Sampling, load
    from aig.sampler import Arm, Cost, Samples, sample, sample_arms, to_uint8
    from aig.schedules import Schedule, parse

__version__ = "0.1.0"

# Names are imported when first used: diffusers and transformers take seconds, which `import aig` and the command line's
# help should not.
_HOME = {
    "AnnealedDenoiser": "denoiser",
    "AnnealedImportanceGuidance": "guider",
    "Arm": "sampler",
    "Condition": "models",
    "Cost": "sampler",
    "DraftConfig": "draft",
    "Model": "models",
    "Samples": "sampler",
    "Sampling": "models",
    "Schedule": "schedules",
    "annealed": "denoiser",
    "load": "models",
    "parse": "schedules",
    "sample": "sampler",
    "sample_arms": "sampler",
    "to_uint8": "sampler",
    "train_step": "draft",
}
_MODULES = (
    "adapters",
    "clock",
    "denoiser",
    "draft",
    "guider",
    "metrics",
    "models",
    "pareto",
    "rewards",
    "sampler",
    "schedules",
    "vision",
    "world",
)

__all__ = [
    "AnnealedDenoiser",
    "AnnealedImportanceGuidance",
    "Arm",
    "Condition",
    "Cost",
    "DraftConfig",
    "Model",
    "Samples",
    "Sampling",
    "Schedule",
    "annealed",
    "load",
    "parse",
    "sample",
    "sample_arms",
    "to_uint8",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"aig.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"aig.{name}")
    raise AttributeError(f"module 'aig' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
