"""Tune text-to-image diffusion models to a reward and move along the reward-diversity trade-off at inference.

The method of "Elucidating Optimal Reward-Diversity Tradeoffs in Text-to-Image Diffusion Models" (arXiv 2409.06493):
DRaFT with KL regularization, LoRA scaling and annealed importance guidance (AIG), with the measures and the Pareto
statistics to compare them. `_HOME` lists the public names by purpose.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aig.denoiser import AnnealedDenoiser, annealed
    from aig.draft import train_step
    from aig.guider import AnnealedImportanceGuidance
    from aig.models import Condition, Model, Sampling, load
    from aig.sampler import Arm, Cost, Samples, sample, sample_arms, to_uint8
    from aig.schedules import Schedule, parse

__version__ = "0.1.0"

# Each public name and its module, imported on first use: diffusers and transformers take seconds, which `import aig`
# and the command line's help should not.
_HOME = {
    # a model: load one, say how it is sampled, encode prompts
    "load": "models", "Model": "models", "Sampling": "models", "Condition": "models",
    # images: of one arm, or of many arms from the same noise
    "sample": "sampler", "sample_arms": "sampler", "Arm": "sampler", "Samples": "sampler", "Cost": "sampler",
    "to_uint8": "sampler",
    # annealed importance guidance: in any diffusers pipeline, in a modular one, and its schedules
    "annealed": "denoiser", "AnnealedDenoiser": "denoiser", "AnnealedImportanceGuidance": "guider",
    "parse": "schedules", "Schedule": "schedules",
    # tuning: one step of DRaFT with a KL penalty
    "train_step": "draft", "DraftConfig": "objective",
}  # fmt: skip
_MODULES = (
    "models", "sampler", "denoiser", "guider", "schedules", "clock", "draft", "adapters",
    "rewards", "metrics", "pareto", "vision", "world",
)  # fmt: skip

__all__ = [
    "AnnealedDenoiser", "AnnealedImportanceGuidance", "Arm", "Condition", "Cost", "DraftConfig", "Model", "Samples",
    "Sampling", "Schedule", "annealed", "load", "parse", "sample", "sample_arms", "to_uint8", "train_step",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"aig.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"aig.{name}")
    raise AttributeError(f"module 'aig' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
