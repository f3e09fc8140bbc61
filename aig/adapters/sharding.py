"""Full fine-tuning over several processes: both sets of weights, gradients and moments sharded by FSDP2.

Every block's weights are gathered for its forward and backward and dropped after it; gradients are summed, not
averaged, over the processes. FSDP2 (`torch.distributed.fsdp.fully_shard`) manages parameters of modules: a layer's
current set, and the base's in a child module, so that both are gathered together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from aig.adapters.routing import BASE, Held, copied_layers, key

HELD = "held_base"


def mesh_of(denoiser: nn.Module, world: int) -> DeviceMesh:
    """A one-dimensional mesh of all processes, on the denoiser's kind of device."""
    return init_device_mesh(next(denoiser.parameters()).device.type, (world,))


def shard(denoiser: nn.Module, name: str, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Shard a denoiser with a full copy (after `full` and `parameters`); returns the copy's shards in order.

    An offloaded base stays whole on the CPU. Every process must call it, and then make the same forwards and backwards,
    except inside `whole`. Raises RuntimeError if torch is too old.
    """
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise RuntimeError(f"torch {torch.__version__} cannot shard a training: update torch, or train on one worker")
    for layer in copied_layers(denoiser):
        if not layer.offloaded:
            layer.add_module(HELD, Held(layer.weights[BASE]))
    kinds = [getattr(denoiser, kind, None) or () for kind in ("_no_split_modules", "_repeated_blocks")]
    blocks = {name for names in kinds for name in names}
    for module in reversed(list(denoiser.modules())):  # the inner ones first
        if type(module).__name__ in blocks or module is denoiser:
            fully_shard(module, mesh=mesh)
    for module in _sharded(denoiser):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it adds up
    # Else a process that makes no forward inside `whole` could not end it.
    fully_shard.state(denoiser)._lazy_init()  # type: ignore[attr-defined]
    sets = [layer.weights[key(name)] for layer in copied_layers(denoiser)]
    return [tensor for tensors in sets for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]


def _sharded(denoiser: nn.Module) -> list[FSDPModule]:
    return [module for module in denoiser.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole(denoiser: nn.Module) -> Iterator[None]:
    """Give every process all weights within the context, so that any may save or make forwards without gradient.

    Every process must enter it. Free for a denoiser that is not sharded.
    """
    sharded = _sharded(denoiser)
    if not sharded:
        yield
        return
    kind, root = type(denoiser), sharded[0]
    root.set_reshard_after_forward(False)
    for module in sharded:
        module.unshard()
    denoiser.__class__ = kind.__mro__[2]  # its original class, whose name is saved with the weights
    try:
        yield
    finally:
        denoiser.__class__ = kind
        for module in sharded:
            module.reshard()
        root.set_reshard_after_forward(True)
        # Else the next backward would prefetch in the order of forwards that other processes have not made.
        root.reset_iter_state()


def full(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor in every process, all of which must call it; other tensors are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, shard: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as `shard` is."""
    if not isinstance(shard, DTensor):
        return tensor
    part = distribute_tensor(tensor.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)
    return part.clone()  # it may be a view of the whole
