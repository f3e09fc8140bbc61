"""Separate levers that trade time or exactness for memory: recompute, tile, compile, hold moments in 8 bits.

`python -m benchmarks levers` measures what each saves and costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aig.adapters.routing import current_route
from aig.models.base import LatentModel

PARTS = ("denoiser", "vae", "reward")
OPTIMIZERS = ("adamw", "adamw-fused", "adamw-8bit", "adam-l2")


def checkpoint_blocks(denoiser: nn.Module) -> None:
    """Recompute the denoiser's blocks in the backward pass instead of holding their activations.

    The second computation routes each row to the same adapter as the first, wherever backward is called.
    """

    def run(block: nn.Module, *args: Any) -> Any:
        route = current_route(denoiser)
        rows = None if route is None else route.rows

        def compute(*inputs: Any) -> Any:
            with nullcontext() if route is None or rows is None else route.through(rows):
                return block(*inputs)

        return checkpoint(compute, *args, use_reentrant=False)

    denoiser.enable_gradient_checkpointing(run)  # type: ignore[operator]


def prepare(
    model: LatentModel, checkpointing: Sequence[str] = (), vae_tiling: bool = False, compiled: bool = False
) -> None:
    """Set a model's levers: recomputed parts, decoding in overlapping tiles, compiled denoiser blocks.

    `checkpointing` lists some of `PARTS`; a reward recomputes by its own `checkpoint()`. Raises ValueError for an
    unknown part and for a lever that the model's classes lack.
    """
    vae = model.pipe.vae
    for part in checkpointing:
        if part not in PARTS:
            raise ValueError(f"cannot checkpoint {part!r}: give some of {', '.join(PARTS)}")
    if "denoiser" in checkpointing:
        checkpoint_blocks(model.denoiser)
    if "vae" in checkpointing:
        _require(vae, "enable_gradient_checkpointing", "checkpointing: leave 'vae' out")()
    if vae_tiling:
        _require(vae, "enable_tiling", "vae_tiling: leave it off")()
    if compiled:
        if "denoiser" in checkpointing:
            raise ValueError("compile and checkpointing of the denoiser do not go together: choose one of them")
        _require(model.denoiser, "compile_repeated_blocks", "compile: leave it off")()


def _require(module: Any, method: str, fix: str) -> Callable[[], object]:
    lever = getattr(module, method, None)
    if lever is None or (method.startswith("enable_grad") and not module._supports_gradient_checkpointing):
        raise ValueError(f"{type(module).__name__} has no {method}, which the key asks for; {fix}")
    return lever


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019): p <- (1 - lr weight_decay) p, then Adam's step of the gradient alone.

    `adamw` is torch's, `adamw-fused` the same in one kernel, `adamw-8bit` the same with moments of 8 bits. `adam-l2` is
    Adam (Kingma and Ba 2015) with the decay in the gradient: Adam rescales their sum, so wherever gradients are small
    the decay becomes whole steps of size lr, which shrink LoRA's A to a fraction within tens of steps.

    Raises ValueError for a name that is not in `OPTIMIZERS`, and if bitsandbytes is missing.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    if name == "adamw-fused":
        return torch.optim.AdamW(parameters, **settings, fused=True)
    if name == "adamw-8bit":
        try:
            library = import_module("bitsandbytes")
        except ImportError as error:
            raise ValueError(
                f"the optimizer 'adamw-8bit' needs bitsandbytes ({error}): pip install bitsandbytes, or use 'adamw'"
            ) from error
        return library.optim.AdamW8bit(parameters, **settings)
    if name == "adam-l2":
        return torch.optim.Adam(parameters, **settings)
    raise ValueError(f"the optimizer {name!r} is unknown: use one of {', '.join(OPTIMIZERS)}")
