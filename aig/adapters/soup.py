"""Averaged adapters: several LoRAs as one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from aig.adapters.lora import hold_in_float32, several
from aig.adapters.routing import NO_VARIANT, check_known, check_new, is_copy, key, lora_layers, unscaled


@torch.no_grad()
def soup(denoiser: nn.Module, name: str, weights: Mapping[str, float]) -> None:
    """Add the weighted sum of LoRAs as a new one: rewarded soups (arXiv 2306.04488), which average weights.

    Its contribution to each layer is exactly the sum of weight * scale * B A over the adapters {name: weight} that have
    the layer; their ranks may differ, and its own is their sum. It is a copy: training an adapter further leaves it as
    it is. Raises ValueError for a name in use, no adapters or one that is not loaded, a weight that is not finite, and
    adapters that do not add up as LoRAs: full copies, DoRA, LoRA biases, and grouped convolutions.

    Examples:
        >>> denoiser = aig.load("tiny").denoiser
        >>> aig.adapters.attach(denoiser, "a", rank=4)
        >>> aig.adapters.attach(denoiser, "b", rank=8, targets="everywhere")
        >>> aig.adapters.soup(denoiser, "both", {"a": 0.5, "b": 0.5})
        >>> aig.adapters.names(denoiser)
        ['a', 'b', 'both']
    """
    check_new(denoiser, name)
    if not weights:
        raise ValueError(f"soup {name!r} has no adapters: give {{adapter: weight}}")
    members: list[tuple[str, float]] = []
    for adapter, weight in weights.items():
        check_known(denoiser, adapter)
        if not math.isfinite(weight):
            raise ValueError(f"soup {name!r}: the weight of {adapter!r} is {weight}, and has to be finite")
        lora, scale = unscaled(denoiser, key(adapter))
        _check_adds_up(denoiser, name, adapter, lora)
        members.append((lora, weight * scale))
    loras = set(lora_layers(denoiser))
    layers: dict[str, Any] = {path: layer for path, layer in denoiser.named_modules() if layer in loras}
    parts = {path: [(lora, w) for lora, w in members if lora in layer.lora_A] for path, layer in layers.items()}
    parts = {path: own for path, own in parts.items() if own}
    ranks = {path: sum(layers[path].lora_A[lora].weight.shape[0] for lora, _ in own) for path, own in parts.items()}
    most, named = max(ranks.values()), {path: f"^{re.escape(path)}" for path in parts}
    with torch.random.fork_rng(devices=[]), several():
        # The scale alpha / r of every layer is 1: the members' scales are in B.
        patterns = {named[path]: rank for path, rank in ranks.items()}
        settings = LoraConfig(
            r=most, lora_alpha=most, rank_pattern=patterns, alpha_pattern=dict(patterns),
            target_modules="|".join(map(re.escape, parts)),
        )  # fmt: skip
        denoiser.add_adapter(settings, adapter_name=key(name))  # type: ignore[operator]
    hold_in_float32(denoiser, name)
    for path, own in parts.items():
        layer = layers[path]
        down, up = layer.lora_A[key(name)].weight, layer.lora_B[key(name)].weight
        down.copy_(torch.cat([layer.lora_A[lora].weight for lora, _ in own]))
        up.copy_(torch.cat([layer.lora_B[lora].weight * (w * layer.scaling[lora]) for lora, w in own], dim=1))


def _check_adds_up(denoiser: nn.Module, name: str, adapter: str, lora: str) -> None:
    """ValueError unless an adapter's contribution to each layer is a product B A."""
    own = [layer for layer in lora_layers(denoiser) if lora in layer.lora_A]
    reasons = {
        "is a full copy of the denoiser, which has no B A to add; train LoRAs": is_copy(denoiser, adapter),
        NO_VARIANT: any(lora in layer.lora_variant for layer in own),
        "has LoRA biases, which are no part of B A; train it without": any(layer.lora_bias.get(lora) for layer in own),
        "adapts a grouped convolution, whose B A do not stack; leave that layer out of its targets": any(
            getattr(layer.get_base_layer(), "groups", 1) > 1 for layer in own
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"soup {name!r}: adapter {adapter!r} {reason}")
