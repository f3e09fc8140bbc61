"""Text-to-image models behind one protocol; `load` reads the family from a diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from aig.models.protocol import Condition, Model, Sampling
from aig.models.tiny import TinyModel
from aig.world import weights

__all__ = ["Condition", "Model", "Sampling", "TinyModel", "load"]

# What tells the families apart is the pipeline's class and its autoencoder's.
FAMILIES: dict[tuple[Any, Any], Any] = {("StableDiffusionPipeline", "SpaceToDepth"): TinyModel}


def load(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a frozen model: `tiny`, the embedded one, or the path of a diffusers folder of a known family.

    Raises ValueError that names the folder, what was found in it and the families that are known.
    """
    folder = weights.folder("tiny") if name == "tiny" else Path(name)
    index = folder / "model_index.json"
    if not index.exists():
        raise ValueError(f"model {name!r}: neither 'tiny' nor a diffusers folder (no {index})")
    try:
        found = json.loads(index.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{index}: not readable as JSON ({error}); save the pipeline again") from None
    family = (found.get("_class_name"), (found.get("vae") or [None, None])[1])
    if family not in FAMILIES:
        known = "; ".join(f"{pipeline} with {vae}" for pipeline, vae in FAMILIES)
        raise ValueError(
            f"{index}: {family[0]} with {family[1]} is not a family that can be loaded yet (known: {known})"
        )
    return FAMILIES[family](folder, torch.device(device), dtype)
