"""Adapters as files: LoRA in diffusers' format, a whole copy as a diffusers model, each beside its record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from aig import digests, folders
from aig.adapters import foreign
from aig.adapters.base import check_same_base, describe_base, tensors_of
from aig.adapters.full import full
from aig.adapters.lora import drop_with_gradient, hold_in_float32, several
from aig.adapters.routing import check_base, check_known, check_new, forget, is_copy, key, lora_layers

WEIGHTS = "pytorch_lora_weights.safetensors"
FULL_WEIGHTS = "diffusion_pytorch_model.safetensors"
RECORD = "adapter.json"


def save(denoiser: nn.Module, name: str, folder: str | os.PathLike[str], record: dict[str, Any]) -> Path:
    """Save an adapter beside `adapter.json`, the record of what made it and of its base; the folder appears whole or
    not at all, in the place of one that is there.

    A LoRA is in diffusers' format: `pipe.load_lora_weights(folder)` of any diffusers program loads it. A whole copy
    (`full`) is a diffusers model: `from_pretrained(folder)` of the denoiser's class loads it. The weights of both are
    in float32, as they are held, whatever the base is in.
    """
    check_known(denoiser, name)
    check_base(lora_layers(denoiser))
    with folders.whole(Path(folder)) as part:
        if key(name) in getattr(denoiser, "peft_config", {}):
            _save_lora(denoiser, key(name), part / WEIGHTS)
        elif is_copy(denoiser, name):
            denoiser.save_config(part)  # type: ignore[operator]
            _save(tensors_of(denoiser, key(name)), part / FULL_WEIGHTS, {})
        else:
            raise ValueError(f"adapter {name!r} is another one at a scale; save that one")
        content = {"name": name, "base": describe_base(denoiser), **record}
        (part / RECORD).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return Path(folder)


def load(denoiser: nn.Module, folder: str | os.PathLike[str], name: str) -> None:
    """Load an adapter from a folder or a file: ours, or a LoRA of anyone's that diffusers knows to convert.

    It is held in float32, so that what was saved is what is used. What a LoRA holds for text encoders is ignored with a
    warning, and so is a base of the same class that has other weights than the one in `adapter.json`. Everything else
    that does not fit raises ValueError, which names the file, the reason and the fix.
    """
    check_new(denoiser, name)
    path = weights_file(folder)
    if (path.parent / RECORD).exists():
        check_same_base(denoiser, read_record(path.parent), path.parent / RECORD)
    tensors, metadata = foreign.read(path)
    if path.name == FULL_WEIGHTS:
        foreign.check_copy(path, tensors_of(denoiser), tensors)
        full(denoiser, name)
        with torch.no_grad():
            for k, tensor in tensors_of(denoiser, key(name)).items():
                tensor.copy_(tensors[k])
        return
    state, alphas, metadata = foreign.converted(path, denoiser, tensors, metadata)
    try:
        with several():
            denoiser.load_lora_adapter(  # type: ignore[operator]
                state, prefix=foreign.prefix(denoiser), network_alphas=alphas, adapter_name=key(name), metadata=metadata
            )
    except (RuntimeError, TypeError) as error:
        reason = error.__cause__ or error  # diffusers hides which setting PEFT does not know
        raise ValueError(f"{path}: PEFT cannot build this LoRA ({reason}); save it again with diffusers") from None
    forget(denoiser)
    _hold_as_read(denoiser, name, state)
    drop_with_gradient(denoiser, name)


def digest(folder: str | os.PathLike[str]) -> str:
    """A hash of what an adapter in a folder or file does: its tensors, and the rank and alpha that its header gives.

    Saved twice it is the same. ValueError where there is no adapter, and where its file is corrupt.
    """
    path = weights_file(folder)
    try:
        return digests.of_tensors(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"{path}: the adapter's weights are corrupt ({reason}): delete the folder and train it again"
        ) from None


@torch.no_grad()
def _hold_as_read(denoiser: nn.Module, name: str, state: dict[str, Tensor]) -> None:
    """A LoRA in float32 as the file has it: diffusers has rounded it to the base's precision."""
    hold_in_float32(denoiser, name)
    for path, matrix in _matrices(denoiser, name):
        for k, tensor in matrix.state_dict().items():
            tensor.copy_(state.get(f"{path}.{k}", tensor))


def _matrices(denoiser: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """A LoRA's A and B under the names that they have in diffusers' files."""
    lead, adapted = foreign.prefix(denoiser), set(lora_layers(denoiser))
    for path, layer in denoiser.named_modules():
        for kind in ("lora_A", "lora_B") if layer in adapted else ():
            if key(name) in getattr(layer, kind):
                yield f"{lead}.{path}.{kind}", getattr(layer, kind)[key(name)]


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`adapter.json` of a saved adapter; ValueError names the file and the reason where it cannot be read."""
    path = Path(folder) / RECORD
    folders.put_back(Path(folder))
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: cannot read the adapter's record ({error}); delete the folder and train it again"
        ) from None


def _save_lora(denoiser: nn.Module, name: str, path: Path) -> None:
    lead = foreign.prefix(denoiser)
    tensors = {
        f"{path}.{k}": tensor for path, matrix in _matrices(denoiser, name) for k, tensor in matrix.state_dict().items()
    }
    settings, default = (c.to_dict() for c in (denoiser.peft_config[name], LoraConfig()))  # type: ignore[index]
    # What is at its default is left out: an older PEFT, which does not know the newest settings, reads the file too.
    told = {k: v for k, v in settings.items() if k in ("r", "lora_alpha") or v != default.get(k)}
    told = {f"{lead}.{k}": sorted(v) if isinstance(v, set) else v for k, v in told.items()}
    # diffusers reads rank and alpha from this header, as its own save_lora_weights writes it.
    _save(tensors, path, {"lora_adapter_metadata": json.dumps(told, indent=2, sort_keys=True)})


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, {"format": "pt", **header})


def weights_file(folder: str | os.PathLike[str]) -> Path:
    """Where an adapter's weights are: the path itself, or of a folder ours by its name, else the only safetensors file.

    Raises ValueError where there is none, or no single one.
    """
    path = Path(folder)
    if path.is_file():
        return path
    folders.put_back(path)
    for name in (WEIGHTS, FULL_WEIGHTS):
        if (path / name).exists():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{path}: holds several weight files, {', '.join(f.name for f in found)}; name one of them")
    raise ValueError(f"{path / WEIGHTS}: no such adapter; train it first, or give the folder or file that holds it")
