"""Adapters as files: LoRA in diffusers' format, a full copy as a diffusers model, each beside its record."""

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
    """Save an adapter with `adapter.json`, its record: the given one and the base. Replaces the folder atomically.

    A LoRA is in diffusers' format: `pipe.load_lora_weights(folder)` of any diffusers program loads it. A full copy
    (`full`) is a diffusers model: `from_pretrained(folder)` of the denoiser's class loads it. Both are in float32, as
    they are held, whatever the base's precision. Raises ValueError for an adapter that is not loaded or another one at
    a scale, and RuntimeError for disabled or merged adapters.

    Examples:
        >>> denoiser, folder = aig.load("tiny").denoiser, tempfile.mkdtemp()
        >>> aig.adapters.attach(denoiser, "tuned")
        >>> path = aig.adapters.save(denoiser, "tuned", folder, {"steps": 0})
        >>> aig.adapters.load(denoiser, folder, "again")
        >>> aig.adapters.names(denoiser), aig.adapters.read_record(folder)["steps"]
        (['again', 'tuned'], 0)
        >>> aig.adapters.weights_file(folder).name, len(aig.adapters.digest(folder))
        ('pytorch_lora_weights.safetensors', 64)
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
    """Load an adapter from a folder or a file: one of ours, or any LoRA that diffusers can convert.

    It is held in float32, as it was saved. Parts for text encoders are ignored with a warning; a base of the same class
    with other weights than `adapter.json` records warns too (`OtherBase`). Any other misfit raises ValueError, which
    names the file, the reason and the fix.
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
    """A hash, 64 hex digits, of an adapter's tensors and the rank and alpha in its header: the same if saved twice.

    Raises ValueError if the folder or file has no adapter, or a corrupt one.
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
    """Hold a LoRA in float32 as its file has it; diffusers has rounded it to the base's precision."""
    hold_in_float32(denoiser, name)
    for path, matrix in _matrices(denoiser, name):
        for k, tensor in matrix.state_dict().items():
            tensor.copy_(state.get(f"{path}.{k}", tensor))


def _matrices(denoiser: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """A LoRA's A and B, named as in diffusers' files."""
    lead, adapted = foreign.prefix(denoiser), set(lora_layers(denoiser))
    for path, layer in denoiser.named_modules():
        for kind in ("lora_A", "lora_B") if layer in adapted else ():
            if key(name) in getattr(layer, kind):
                yield f"{lead}.{path}.{kind}", getattr(layer, kind)[key(name)]


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `adapter.json` of a saved adapter; ValueError names the file and the reason if it cannot be read."""
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
    # Without defaults, so that an older PEFT, which does not know the newest settings, reads the file too.
    changed = {k: v for k, v in settings.items() if k in ("r", "lora_alpha") or v != default.get(k)}
    changed = {f"{lead}.{k}": sorted(v) if isinstance(v, set) else v for k, v in changed.items()}
    # diffusers reads rank and alpha from this header, as its own save_lora_weights writes it.
    _save(tensors, path, {"lora_adapter_metadata": json.dumps(changed, indent=2, sort_keys=True)})


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, {"format": "pt", **header})


def weights_file(folder: str | os.PathLike[str]) -> Path:
    """The file of an adapter's weights: the path itself, or in a folder the file that we name, or the only safetensors.

    Raises ValueError if there is none, or more than one.
    """
    path = Path(folder)
    if path.is_file():
        return path
    folders.put_back(path)
    for name in (WEIGHTS, FULL_WEIGHTS):
        if (path / name).exists():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(f"{path}: holds several weight files, {', '.join(f.name for f in files)}; name one of them")
    raise ValueError(f"{path / WEIGHTS}: no such adapter; train it first, or give the folder or file that holds it")
