"""Several workers share a training step and make the step of one: the global batch's summed gradient.

Every image weighs 1/batch in its worker (`aig.draft.train_step`), so gradients are added up, not averaged.

`ddp`: every worker holds everything, and one all-reduce per step adds up gradients and sums. torch's
DistributedDataParallel computes the same, but its hooks expect one forward per backward through the wrapped module. A
DRaFT step makes many forwards without gradient, routes rows of one forward to base and adapter, and calls backward once
per micro-batch. The wrapper would only overlap sending with backward, which saves nothing for a LoRA's few megabytes.

`fsdp`: weights, gradients and moments of full fine-tuning are sharded (`aig.adapters.sharding`). A forward is a
collective there, so all workers must make equally many: smaller shares are padded with images of weight zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aig.adapters import sharding
from pipelines.config import Train

ALONE, DDP, FSDP = "alone", "ddp", "fsdp"


def strategy(settings: Train, world: int) -> str:
    """How `world` workers share the steps of a training: ALONE, DDP or FSDP."""
    if world == 1:
        return ALONE
    if settings.parallel != "auto":
        return settings.parallel
    return FSDP if settings.method == "full" else DDP


def share(mode: str, rank: int, world: int, batch: int) -> tuple[list[int], int]:
    """The rows of the global batch that a worker makes, and how many of the last ones are padding."""
    rows = list(range(rank, batch, world))
    lacking = -(-batch // world) - len(rows) if mode == FSDP else 0
    return rows + [0] * lacking, lacking


def add_up(mode: str, parameters: Sequence[nn.Parameter], sums: dict[str, float]) -> dict[str, float]:
    """Add up all workers' gradients, in place, and their sums; every worker has to call it."""
    if mode == ALONE:
        return sums
    if mode == DDP:
        for parameter in parameters:
            if parameter.grad is None:  # this worker had no image, or skipped all of its own
                parameter.grad = torch.zeros_like(parameter)
    # With fsdp, the backward passes have added up the gradients.
    gradients = [p.grad for p in parameters if p.grad is not None] if mode == DDP else []
    values = torch.tensor(list(sums.values()), device=parameters[0].device)
    packed = torch.cat([gradient.flatten() for gradient in gradients] + [values])
    dist.all_reduce(packed)
    parts = packed.split([gradient.numel() for gradient in gradients] + [len(sums)])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view_as(gradient))
    return dict(zip(sums, parts[-1].tolist(), strict=True))


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients down if their norm, over all workers' shards, is above `most`; returns that norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = sharding.full(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm
