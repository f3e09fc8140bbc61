"""Full fine-tuning: a second full set of the denoiser's weights, beside the frozen base.

Every layer holds both sets and sends each row of a batch through its own, as a LoRA layer does, so routing, folding,
guidance and DRaFT see no difference. The copy is held in float32 and cast to the base's precision in a layer's forward,
so both predictions are computed alike. It costs 4 bytes per weight beside the base, which may be kept on the CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from aig.adapters.routing import BASE, Copied, check_new, copied_layers, forget, key


def full(denoiser: nn.Module, name: str, offload: bool = False) -> None:
    """Copy every weight of the denoiser to train it under this name; the frozen originals serve `BASE` rows.

    Outside `routed` the denoiser is then the copy, so `save_pretrained` writes the tuned model. `offload` keeps the
    base on the CPU and fetches a layer's weights when its rows need them: slower if the base is evaluated (KL,
    guidance, sampling the base), else free. Raises ValueError for a name in use and for a denoiser with parameters
    outside its layers.

    Examples:
        >>> denoiser = aig.load("tiny").denoiser
        >>> aig.adapters.full(denoiser, "copy")
        >>> sum(p.numel() for p in aig.adapters.parameters(denoiser, "copy"))
        4008204
    """
    check_new(denoiser, name)
    layers = _layers(denoiser)
    for layer in layers:
        if not isinstance(layer, Copied):
            layer.__class__ = _copied(type(layer))
            layer.weights, layer.route, layer.offloaded = {BASE: layer.__dict__["_parameters"]}, None, False  # type: ignore[assignment]
            layer.dtypes = {k: v.dtype for k, v in layer.weights[BASE].items() if v is not None}  # type: ignore[assignment, union-attr, index]
        _freeze(layer.weights[BASE])  # type: ignore[arg-type, index]
        layer.weights[key(name)] = {  # type: ignore[index, operator]
            k: None if v is None else nn.Parameter(v.detach().to(at_least_float32(v.dtype), copy=True))
            for k, v in layer.weights[BASE].items()  # type: ignore[union-attr, index]
        }
        layer.place(key(name))  # type: ignore[operator]
        if offload and not layer.offloaded:
            _offload(layer)  # type: ignore[arg-type]
    forget(denoiser)


def copy_parameters(denoiser: nn.Module, name: str) -> list[nn.Parameter]:
    """Put a copy's tensors in place, freeze the other sets, and return the copy's in a fixed order."""
    parameters = []
    for layer in copied_layers(denoiser):
        for tensors in layer.weights.values():
            _freeze(tensors)
        layer.place(name)
        parameters += [tensor for tensor in layer.weights[name].values() if tensor is not None]
    return parameters


@torch.no_grad()
def scale_copy(denoiser: nn.Module, name: str, scale: float, alias: str) -> None:
    """Add base + scale (copy - base) as a further set, recomputed at every call, since training moves the copy."""
    for layer in copied_layers(denoiser):
        own, tuned = layer.weights[BASE], layer.weights[name]
        layer.weights[alias] = {
            k: None if v is None else torch.lerp(own[k].to(v), v, scale)  # type: ignore[union-attr]
            for k, v in tuned.items()
        }


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision of tuned weights beside frozen ones of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


@cache
def _copied(kind: type[nn.Module]) -> type[nn.Module]:
    # As in torch's parametrizations, the layer stays an instance of its class, under the same name.
    return type(f"Copied{kind.__name__}", (Copied, kind), {})


def _layers(denoiser: nn.Module) -> list[nn.Module]:
    """The modules that hold parameters, except LoRA's own."""
    skipped = {
        id(module)
        for layer in denoiser.modules()
        if isinstance(layer, LoraLayer)
        for child_name, child in layer.named_children()  # type: ignore[attr-defined]
        if child_name != "base_layer"
        for module in child.modules()
    }
    layers = [module for module in denoiser.modules() if id(module) not in skipped and module._parameters]
    if denoiser in layers:
        raise ValueError(
            f"{type(denoiser).__name__}.{next(iter(denoiser._parameters))} is a parameter outside of all layers, which "
            "rows cannot be routed through; tune this denoiser with a LoRA"
        )
    return layers


def _freeze(tensors: dict[str, Tensor | None]) -> None:
    for tensor in tensors.values():
        if tensor is not None:
            tensor.requires_grad_(False)


def _offload(layer: Copied) -> None:
    for k, tensor in layer.weights[BASE].items():
        if tensor is not None:
            held = tensor.detach().cpu()
            layer.weights[BASE][k] = held.pin_memory() if tensor.is_cuda else held
    layer.offloaded = True
