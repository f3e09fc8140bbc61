"""The base that an adapter was trained on: the denoiser's class and a sketch of its weights, saved with the adapter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aig.adapters.routing import BASE, Copied, Held

SKETCHED = 32
TOLERANCE = 0.01  # bfloat16 keeps 8 bits: the same weights read in another precision differ by up to 0.4 %


class OtherBase(UserWarning):
    """The warning that an adapter was trained on other weights than those of the denoiser it is loaded into.

    Examples:
        >>> issubclass(aig.adapters.OtherBase, UserWarning)
        True
    """


def tensors_of(denoiser: nn.Module, name: str = BASE) -> dict[str, Tensor]:
    """The denoiser's own parameters and buffers, named as without adapters; of several sets `name`'s."""
    tensors: dict[str, Tensor] = {}
    for path, module in denoiser.named_modules():
        if ".lora_" in path or isinstance(module, Held):
            continue
        parameters = module.weights[name] if isinstance(module, Copied) else module._parameters
        buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for k, tensor in {**parameters, **buffers}.items():
            if tensor is not None:
                tensors[f"{path}.{k}".removeprefix(".").replace(".base_layer.", ".")] = tensor
    return tensors


def describe_base(denoiser: nn.Module) -> dict[str, Any]:
    """The denoiser's class, and one entry each of some weights spread over its depth."""
    matrices = [tensor for _, tensor in sorted(tensors_of(denoiser).items()) if tensor.ndim > 1]
    chosen = [matrices[i * len(matrices) // SKETCHED] for i in range(SKETCHED)] if matrices else []
    entries = torch.stack([t.detach().flatten()[t.numel() // 3].float().cpu() for t in chosen]).tolist()
    return {"class": type(denoiser).__name__, "weights": [float(f"{entry:.6g}") for entry in entries]}


def check_same_base(denoiser: nn.Module, record: dict[str, Any], source: Path) -> None:
    """Raise ValueError if the recorded base has another class; warn if it has other weights.

    Moving a LoRA between fine-tunes of one model is common and has an effect: that is the user's choice.
    """
    recorded, here = record.get("base"), describe_base(denoiser)
    if not isinstance(recorded, dict) or set(recorded) != set(here):
        return  # not one of our records, or one from before bases were recorded
    if recorded["class"] != here["class"]:
        raise ValueError(
            f"{source}: the adapter was made on a {recorded['class']} and this denoiser is a {here['class']}; load the "
            "model that it was made on"
        )
    before, now = torch.tensor(recorded["weights"]), torch.tensor(here["weights"])
    if before.shape != now.shape or not torch.allclose(before, now, rtol=TOLERANCE, atol=1e-6):
        warnings.warn(
            f"{source}: the adapter was made on a {here['class']} of other weights than this one; its images will "
            "differ from those that it was tuned for. Load the model that it was made on if that is not meant",
            OtherBase,
            stacklevel=3,
        )
