"""How several workers share a training step, so that it is the step of one: the global batch's summed gradient.

Every image weighs 1/batch in its worker (`aig.draft.train_step`), so gradients are added up, not averaged.

`ddp`: every worker holds everything, and one all-reduce a step adds up gradients and sums. That is what torch's
DistributedDataParallel computes, without its wrapper: its hooks count on one forward a backward through the wrapped
module, where a DRaFT step makes many without gradient, routes rows of one forward to base and adapter, and calls
backward once a micro-batch. What the wrapper adds is to send gradients while backward goes on, which for a LoRA's few
megabytes once a step is nothing.

`fsdp`: weights, gradients and moments of full fine-tuning are sharded (`aig.adapters.sharding`). A forward is a
collective there, so all workers make as many: shares that are too small are filled up with images that weigh nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aig.adapters import sharding
from pipelines.config import Train

ALONE, DDP, FSDP = "alone", "ddp", "fsdp"


def of(settings: Train, world: int) -> str:
    """How `world` workers share the steps of such a training."""
    if world == 1:
        return ALONE
    if settings.parallel != "auto":
        return settings.parallel
    return FSDP if settings.method == "full" else DDP


def share(how: str, rank: int, world: int, batch: int) -> tuple[list[int], int]:
    """The images of the global batch that a worker makes, and how many of them, the last ones, weigh nothing."""
    rows = list(range(rank, batch, world))
    lacking = -(-batch // world) - len(rows) if how == FSDP else 0
    return rows + [0] * lacking, lacking


def add_up(how: str, parameters: Sequence[nn.Parameter], sums: dict[str, float]) -> dict[str, float]:
    """Gradients, in place, and sums of all workers, added up; every worker has to call it."""
    if how == ALONE:
        return sums
    if how == DDP:
        for parameter in parameters:
            if parameter.grad is None:  # this worker had no image, or skipped all of its own
                parameter.grad = torch.zeros_like(parameter)
    # With fsdp, the backward passes have added up the gradients.
    gradients = [p.grad for p in parameters if p.grad is not None] if how == DDP else []
    values = torch.tensor(list(sums.values()), device=parameters[0].device)
    packed = torch.cat([gradient.flatten() for gradient in gradients] + [values])
    dist.all_reduce(packed)
    parts = packed.split([gradient.numel() for gradient in gradients] + [len(sums)])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view_as(gradient))
    return dict(zip(sums, parts[-1].tolist(), strict=True))


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients down where their norm, over all workers' shards, is above `most`; returns that norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = sharding.full(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm
