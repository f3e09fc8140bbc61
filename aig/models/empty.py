"""A model without weights: its real classes and shapes on torch's meta device, to count before it is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from aig.models import INDEX, LatentModel, around, resolve
from aig.models.base import quiet
from aig.models.published import PUBLISHED

WITHOUT = ("tokenizer", "feature_extractor", "safety_checker", "image_encoder")


def empty(name: str, revision: str | None = None, dtype: torch.dtype = torch.float32) -> tuple[LatentModel, bool]:
    """The model with its parameters on the meta device, and whether its weights are on this machine.

    The configuration comes from the folder or the local cache, else from `PUBLISHED`, else from the hub, a few kB.
    Raises ValueError if none of them has it.
    """
    folder = _local(name, revision)
    here = folder is not None
    if folder is None and name not in PUBLISHED:
        folder = _configurations(name, revision)
    kind, parts = _published(name) if folder is None else _from_folder(folder)
    init = getattr(diffusers, kind).__init__.__code__
    expected = init.co_varnames[1 : init.co_argcount]
    settings = {"requires_safety_checker": False} if "requires_safety_checker" in expected else {}
    missing = {part: None for part in expected if part.startswith(WITHOUT) and part not in parts}
    pipe = getattr(diffusers, kind)(**parts, **missing, **settings)
    with quiet():  # diffusers warns of a cast that loses bits, though there are none yet
        pipe.to(dtype)
    return around(pipe, name, "meta", dtype), here


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _local(name: str, revision: str | None) -> Path | None:
    if name == "tiny" or (Path(name) / INDEX).is_file():
        return resolve(name)
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    whole = (folder / INDEX).is_file() and any(folder.glob("*/*.safetensors"))
    return folder if whole else None


def _configurations(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"model {name!r}: neither a folder, nor in the local cache, nor one whose sizes are known here "
            f"({', '.join(PUBLISHED)}), and the hub does not answer ({type(error).__name__}): check the name and the "
            "network"
        ) from error


def _published(name: str) -> tuple[str, dict[str, Any]]:
    model = PUBLISHED[name]
    denoiser = "unet" if model.denoiser[0].startswith("UNet") else "transformer"
    parts = {key: _text(*part) for key, part in model.texts.items()}
    parts |= {denoiser: _diffusers(*model.denoiser), "vae": _diffusers("AutoencoderKL", model.vae)}
    parts["scheduler"] = getattr(diffusers, model.scheduler[0]).from_config(model.scheduler[1])
    return model.pipeline, parts


def _from_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    index = json.loads((folder / INDEX).read_text())
    parts: dict[str, Any] = {}
    for key, part in index.items():
        if not isinstance(part, list) or key.startswith(WITHOUT):
            continue
        library, kind = part
        if kind is None:
            parts[key] = None
        elif key == "scheduler":
            parts[key] = getattr(diffusers, kind).from_pretrained(folder / key)
        else:
            config = json.loads((folder / key / "config.json").read_text())
            parts[key] = _text(kind, config) if library == "transformers" else _diffusers(kind, config)
    return index["_class_name"], parts


def _diffusers(kind: str, config: dict[str, Any]) -> Any:
    if not hasattr(diffusers, kind):
        from aig.world import codec  # the embedded model's

        return getattr(codec, kind).from_config(config)
    with init_empty_weights():
        return getattr(diffusers, kind).from_config(config)


def _text(kind: str, config: dict[str, Any]) -> Any:
    model = getattr(transformers, kind)
    with init_empty_weights():
        return model(model.config_class(**config))
