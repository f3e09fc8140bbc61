"""LoRA: attach a new adapter, list its parameters, scale it."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from aig.adapters.full import at_least_float32, copy_parameters, scale_copy
from aig.adapters.routing import BASE, check_known, check_new, is_copy, key, lora_layers, scale_route

# Suffixes of module names. UNets have the first line; the joint attention of SD3 and Flux has both.
ATTENTION = (
    "to_q", "to_k", "to_v", "to_out.0",
    "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # fmt: skip
# Attention alone is too weak for the tiny model: add feed-forward layers, residual convolutions and projections.
EVERYWHERE = (
    *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut",
    "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp",
)  # fmt: skip
TARGETS = {"attention": ATTENTION, "everywhere": EVERYWHERE}


def attach(
    denoiser: nn.Module,
    name: str,
    rank: int = 8,
    alpha: float = 8,
    targets: str | Sequence[str] = "attention",
    seed: int = 0,
    dropout: float = 0.0,
) -> None:
    """Add a LoRA adapter (Hu et al. 2021) that changes nothing yet: B is zero, A is drawn from `seed`.

    It adds alpha / rank B A. `targets` is "attention", "everywhere" or a list of module name suffixes. Its weights are
    float32 at least, since fewer bits would round Adam's small steps away; the layer's input is cast to them. `dropout`
    in [0, 1) acts on the adapter's input wherever gradient is enabled, and draws from torch's global generator. Raises
    ValueError for a name in use, a setting out of range and a target that the denoiser lacks.

    Examples:
        >>> denoiser = aig.load("tiny").denoiser
        >>> aig.adapters.attach(denoiser, "tuned", rank=4)
        >>> half = aig.adapters.scaled(denoiser, "tuned", 0.5)
        >>> half, aig.adapters.key("v1.5"), aig.adapters.names(denoiser)
        ('tuned*0_5', 'v1_5', ['tuned', 'tuned*0_5'])
    """
    check_new(denoiser, name)
    if rank < 1:
        raise ValueError(f"LoRA rank {rank} must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"LoRA dropout {dropout} must be in [0, 1)")
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_modules(denoiser, targets))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]), several():
        torch.manual_seed(seed)
        denoiser.add_adapter(settings, adapter_name=key(name))  # type: ignore[operator]
    hold_in_float32(denoiser, name)
    drop_with_gradient(denoiser, name)


def hold_in_float32(denoiser: nn.Module, name: str) -> None:
    """Hold a LoRA in float32 at least; PEFT gives it the base's precision."""
    for layer in lora_layers(denoiser):
        if key(name) in layer.lora_A:
            for matrix in (layer.lora_A[key(name)], layer.lora_B[key(name)]):
                matrix.to(at_least_float32(matrix.weight.dtype))


def parameters(denoiser: nn.Module, name: str) -> list[nn.Parameter]:
    """The adapter's trainable tensors in a fixed order; enables gradients for them and disables all others.

    Raises ValueError for an adapter that is not loaded.
    """
    check_known(denoiser, name)
    denoiser.requires_grad_(False)
    tensors = copy_parameters(denoiser, key(name)) if is_copy(denoiser, name) else []
    for layer in lora_layers(denoiser):
        if key(name) in layer.lora_A:
            tensors += [*layer.lora_A[key(name)].parameters(), *layer.lora_B[key(name)].parameters()]
    for tensor in tensors:
        tensor.requires_grad_(True)
    return tensors


def scaled(denoiser: nn.Module, name: str, scale: float) -> str:
    """Make an adapter available at `scale` times its contribution, and return the name to route rows to.

    LoRA scaling interpolates between the base (0) and the tuned model (1), and goes beyond it above 1. A LoRA's weights
    are shared, whatever the number of scales; a full copy (`full`) at another scale is a further copy. Raises
    ValueError for an adapter that is not loaded.
    """
    check_known(denoiser, name)
    if scale == 0:
        return BASE
    if scale == 1:
        return key(name)
    alias = key(f"{name}*{repr(float(scale)).removesuffix('.0')}")
    if is_copy(denoiser, name):
        scale_copy(denoiser, key(name), scale, alias)
    else:
        scale_route(denoiser, key(name), scale, alias)
    return alias


class GradientDropout(nn.Module):
    """Dropout wherever gradient is enabled, even in eval mode; rollouts and images without gradient have none."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=torch.is_grad_enabled())


def drop_with_gradient(denoiser: nn.Module, name: str) -> None:
    """Replace the adapter's dropout, which eval mode would disable, by `GradientDropout`."""
    for layer in lora_layers(denoiser):
        if isinstance(layer.lora_dropout[key(name)] if key(name) in layer.lora_A else None, nn.Dropout):
            layer.lora_dropout[key(name)] = GradientDropout(layer.lora_dropout[key(name)].p)


def _modules(denoiser: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The targets for PEFT: those of a named set that the denoiser has, or a list, all of which must exist."""
    layers = [path for path, module in denoiser.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    paths = [path.removesuffix(".base_layer") for path in layers if ".lora_" not in path]

    def exists(target: str) -> bool:
        return any(path == target or path.endswith(f".{target}") for path in paths)

    if isinstance(targets, str) and targets in TARGETS:
        return [target for target in TARGETS[targets] if exists(target)]
    suffixes = [targets] if isinstance(targets, str) else list(targets)
    for target in suffixes:
        if not exists(target):
            endings = sorted({".".join(path.split(".")[-n:]) for path in paths for n in (1, 2)})
            near = difflib.get_close_matches(target, [*endings, *TARGETS], n=5, cutoff=0.3)
            raise ValueError(
                f"LoRA target {target!r}: {type(denoiser).__name__} has no linear or convolution layer of this name; "
                f"near ones are {', '.join(near) or ', '.join(endings[:10])}"
            )
    return suffixes


@contextmanager
def several() -> Iterator[None]:
    """Silence PEFT's warning about every adapter after a model's first: here several are the point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        yield
