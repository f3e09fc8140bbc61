"""LoRA files of any origin: read, converted by diffusers, and checked against the denoiser before PEFT builds them."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, cast

from diffusers.loaders import (
    FluxLoraLoaderMixin,
    SD3LoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from aig.adapters.base import tensors_of
from aig.adapters.routing import NO_VARIANT

TRANSFORMERS = {"SD3Transformer2DModel": SD3LoraLoaderMixin, "FluxTransformer2DModel": FluxLoraLoaderMixin}
# PEFT's settings that do more than add B A to a weight, so that base and tuned rows cannot share a forward.
REFUSED = {
    "use_dora": NO_VARIANT, "use_qalora": NO_VARIANT, "use_bdlora": NO_VARIANT, "arrow_config": NO_VARIANT,
    "velora_config": NO_VARIANT, "monteclora_config": NO_VARIANT, "kasa_config": NO_VARIANT,
    "alora_invocation_tokens": NO_VARIANT,
    "modules_to_save": "replaces whole layers of the base; train those with a LoRA too, or the whole denoiser (full)",
    "target_parameters": "adapts bare parameters, which rows cannot be routed through; target their layers",
    "layer_replication": "changes the base's layers; merge it into a model of its own first",
}  # fmt: skip


def prefix(denoiser: nn.Module) -> str:
    """The prefix of this denoiser's keys in diffusers' LoRA files: `unet` or `transformer`."""
    return "transformer" if "Transformer" in type(denoiser).__name__ else "unet"


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A safetensors file's tensors, and diffusers' LoRA metadata if it has any."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - a safetensors file is no mapping
            header = (file.metadata() or {}).get("lora_adapter_metadata")
        return tensors, json.loads(header) if header else None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: the adapter's weights are corrupt ({error}); delete the file and train or download it again"
        ) from None


def converted(
    path: Path, denoiser: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any] | None]:
    """The denoiser's LoRA in PEFT's names, its network alphas and its settings, all under `prefix`.

    Raises ValueError for a LoRA that cannot be routed or does not fit.
    """
    lead = f"{prefix(denoiser)}."
    if any("dora_scale" in k or "lora_magnitude_vector" in k for k in tensors):
        raise ValueError(f"{path}: {NO_VARIANT}")
    try:
        state, alphas = _as_diffusers(denoiser, tensors)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: diffusers cannot convert this LoRA ({error}); convert it to its format") from None
    others = Counter(k.split(".")[0] for k in state if not k.startswith(lead))
    own = {k.removeprefix(lead): v for k, v in state.items() if k.startswith(lead)}
    if not own:
        first = next(iter(tensors), "nothing at all")
        raise ValueError(
            f"{path}: holds no LoRA for a {type(denoiser).__name__}, whose keys begin with {lead!r} (found {first!r}); "
            "load the model that the LoRA was made for"
        )
    if others:
        what = ", ".join(f"{count} of {part!r}" for part, count in sorted(others.items()))
        warnings.warn(
            f"{path}: ignored all tensors but the denoiser's ({what}): text encoders stay the base's here. Images "
            "differ from those of pipe.load_lora_weights, which loads these too",
            stacklevel=3,
        )
    if metadata is not None:
        metadata = {k: v for k, v in metadata.items() if k.startswith(lead)} or None
        _check_settings(path, {k.removeprefix(lead): v for k, v in (metadata or {}).items()})
    if not any(".lora_A" in k for k in own):
        own = convert_unet_state_dict_to_peft(own)
    _check_lora(path, denoiser, own)
    return {f"{lead}{k}": v for k, v in own.items()}, alphas if metadata is None else None, metadata


def _as_diffusers(denoiser: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """State and network alphas as the family's own pipeline reads them, including Kohya's and others' names."""
    loader: Any = TRANSFORMERS.get(type(denoiser).__name__)
    state: Any = dict(tensors)
    if loader is SD3LoraLoaderMixin:
        return cast(Any, loader).lora_state_dict(state), None
    if loader is FluxLoraLoaderMixin:
        return cast(Any, loader).lora_state_dict(state, return_alphas=True)
    if getattr(denoiser.config, "addition_embed_type", None) == "text_time":
        loader = StableDiffusionXLLoraLoaderMixin
        return loader.lora_state_dict(state, unet_config=denoiser.config)
    loader = StableDiffusionLoraLoaderMixin
    return loader.lora_state_dict(state)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    for name, why in REFUSED.items():
        if settings.get(name):
            raise ValueError(f"{path}: the LoRA's setting {name} = {settings[name]!r} {why}")
    if settings.get("bias", "none") != "none":
        raise ValueError(
            f"{path}: the LoRA's setting bias = {settings['bias']!r} trains the base's own biases, so that there is no "
            "base left to mix with; train it with bias = 'none'"
        )


def _check_lora(path: Path, denoiser: nn.Module, state: dict[str, Tensor]) -> None:
    own = tensors_of(denoiser)
    for k, tensor in sorted(state.items()):
        layer, infix, matrix = k.partition(".lora_A." if ".lora_A." in k else ".lora_B.")
        if not infix:
            raise ValueError(f"{path}: {k} is no matrix of a LoRA; only LoRA can be loaded beside its base")
        weight = own.get(f"{layer}.weight")
        if weight is None:
            raise ValueError(
                f"{path}: {k}: this {type(denoiser).__name__} has no layer {layer}; load the model that the LoRA was "
                "made for"
            )
        side = 1 if infix == ".lora_A." else 0
        fits = tensor.shape[side] == weight.shape[side] and (side == 0 or tensor.shape[2:] == weight.shape[2:])
        if matrix == "weight" and not fits:
            raise ValueError(
                f"{path}: {k} of shape {tuple(tensor.shape)} does not fit {layer} of shape {tuple(weight.shape)}; load "
                "the model that the LoRA was made for"
            )


def check_copy(path: Path, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raise ValueError, naming the first misfit, unless a file holds a full denoiser like this one."""
    for k in sorted({*own, *tensors}):
        here, there = (tuple(t[k].shape) if k in t else "no such tensor" for t in (own, tensors))
        if here != there:
            raise ValueError(
                f"{path}: {k}: {there} in the file, {here} in the denoiser; load the model that it was tuned from"
            )
