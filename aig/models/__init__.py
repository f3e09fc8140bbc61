"""Text-to-image models behind one protocol; `load` reads the family from a diffusers folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError

from aig.models import files
from aig.models.base import LatentModel
from aig.models.files import INDEX
from aig.models.flux import FluxModel
from aig.models.protocol import SCHEDULERS, Condition, Model, Sampling
from aig.models.sd import StableDiffusionModel
from aig.models.sd3 import StableDiffusion3Model
from aig.models.sdxl import StableDiffusionXLModel
from aig.models.tiny import TinyModel
from aig.world import weights

__all__ = [
    "SCHEDULERS", "Condition", "FluxModel", "LatentModel", "Model", "Sampling", "StableDiffusion3Model",
    "StableDiffusionModel", "StableDiffusionXLModel", "TinyModel", "around", "fingerprint", "load", "resolve",
]  # fmt: skip

# A family is recognized by the classes of its pipeline and its autoencoder.
FAMILIES: dict[tuple[Any, Any], type[LatentModel]] = {
    ("StableDiffusionPipeline", "SpaceToDepth"): TinyModel,
    ("StableDiffusionPipeline", "AutoencoderKL"): StableDiffusionModel,
    ("StableDiffusionXLPipeline", "AutoencoderKL"): StableDiffusionXLModel,
    ("StableDiffusion3Pipeline", "AutoencoderKL"): StableDiffusion3Model,
    ("FluxPipeline", "AutoencoderKL"): FluxModel,
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
) -> LatentModel:
    """Load a frozen model: `tiny` (the embedded one), a hub id or the path of a diffusers folder of a known family.

    Only safetensors are read. `revision` is a hub model's branch, tag or commit, `variant` as in diffusers (`fp16`).
    Raises ValueError that names the model, its classes and the known families.

    Examples:
        >>> model = aig.load("tiny")
        >>> condition = model.encode(["a red star", "a blue heart"])
        >>> isinstance(model, aig.models.TinyModel), isinstance(condition, aig.Condition), len(condition)
        (True, True, 2)
    """
    folder = resolve(name, revision, variant)
    family = FAMILIES.get(_family(folder))
    if family is None:
        known = "; ".join(f"{pipeline} with {vae}" for pipeline, vae in FAMILIES)
        classes = " with ".join(str(part) for part in _family(folder))
        raise ValueError(f"{folder / INDEX}: {classes} is not a family that can be loaded (known: {known})")
    _check_safetensors(folder, variant)
    return family(folder, str(name), torch.device(device), dtype, variant)


def around(pipe: Any, name: str, device: str | torch.device, dtype: torch.dtype) -> LatentModel:
    """The model of a loaded pipeline, which is on this device and in this precision.

    Raises ValueError for a pipeline of no known family.

    Examples:
        >>> aig.models.around(aig.load("tiny").pipe, "mine", "cpu", torch.float32).latent_shape
        (12, 16, 16)
    """
    family = FAMILIES.get((type(pipe).__name__, type(pipe.vae).__name__))
    if family is None:
        raise ValueError(f"model {name!r}: {type(pipe).__name__} is not a family that can be loaded")

    class Around(family):
        def open(self, *_: Any) -> Any:
            return pipe

    return Around(Path(name), name, torch.device(device), dtype)


def fingerprint(name: str | Path, revision: str | None = None, variant: str | None = None) -> str:
    """A hash, 32 hex digits, of the content of exactly the files that `load` reads.

    The folder's path and other files in it do not change it. Raises ValueError as `load` does.

    Examples:
        >>> len(aig.models.fingerprint("tiny")), aig.models.resolve("tiny").name
        (32, 'tiny')
    """
    folder = resolve(name, revision, variant)
    family = FAMILIES.get(_family(folder), LatentModel)
    return files.fingerprint(folder, variant, family.without)


def resolve(name: str | Path, revision: str | None = None, variant: str | None = None) -> Path:
    """The diffusers folder of a model: the embedded one's, a local one, or a hub model's in the local cache.

    A missing hub model is downloaded (safetensors only). Raises ValueError that names the model and the fix.
    """
    if name == "tiny":
        return weights.folder("tiny")
    if (Path(name) / INDEX).is_file():
        return Path(name)
    if Path(name).exists() or not HUB_ID.fullmatch(str(name)):
        raise ValueError(
            f"model {str(name)!r}: neither 'tiny', nor a diffusers folder (no {Path(name) / INDEX}), nor a hub id "
            "(owner/name)"
        )
    return _download(str(name), revision, variant)


def _download(name: str, revision: str | None, variant: str | None) -> Path:
    try:
        folder = DiffusionPipeline.download(
            name, revision=revision, variant=variant, use_safetensors=True, safety_checker=None, feature_extractor=None
        )
    except (OSError, ValueError, HfHubHTTPError) as error:  # not cached and no network, or no such model
        raise ValueError(
            f"model {name!r}: no such folder, and as a hub id it is neither in the local cache nor can it be "
            f"downloaded: on a machine with a network run `hf download {name}`, or give the path of a diffusers folder "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    return Path(folder)


def _family(folder: Path) -> tuple[Any, Any]:
    index = folder / INDEX
    try:
        parts = json.loads(index.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{index}: not readable as JSON ({error}); save the pipeline again") from None
    return parts.get("_class_name"), (parts.get("vae") or [None, None])[1]


def _check_safetensors(folder: Path, variant: str | None) -> None:
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    for part in ("unet", "transformer", "vae"):
        if (folder / part).is_dir() and not any(ending in path.name for path in (folder / part).iterdir()):
            raise ValueError(
                f"{folder / part}: holds no *{ending}, and pickled weights are not read: save the pipeline again with "
                "save_pretrained(..., safe_serialization=True), or choose another variant"
            )
