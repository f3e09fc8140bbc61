"""Full fine-tuning over several processes: both sets of weights, gradients and moments sharded by FSDP2.

Every block's weights are gathered for its forward and backward and dropped after it; gradients are summed, not
averaged, over the processes. FSDP2 (`torch.distributed.fsdp.fully_shard`) looks after the parameters of modules: of a
layer with several sets that is the one in place, and a child module holds the base's, so that both are gathered
together.
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
    """All processes in one row, on the denoiser's kind of device."""
    return init_device_mesh(next(denoiser.parameters()).device.type, (world,))


def shard(denoiser: nn.Module, name: str, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Shard a denoiser with a whole copy (`full`, and `parameters` called); returns the copy's shards, in order.

    A base that is offloaded stays whole on the CPU. Every process has to call it, and from now on has to make the same
    forwards and backwards, but for those inside of `whole`. Raises RuntimeError where torch is too old.
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
    # Else a process that makes no forward inside of `whole` would not know yet what to end there.
    fully_shard.state(denoiser)._lazy_init()  # type: ignore[attr-defined]
    sets = [layer.weights[key(name)] for layer in copied_layers(denoiser)]
    return [tensor for tensors in sets for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]


def _sharded(denoiser: nn.Module) -> list[FSDPModule]:
    return [module for module in denoiser.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole(denoiser: nn.Module) -> Iterator[None]:
    """Within the context every process holds all weights, and may make forwards without gradient that others do not,
    or save. Every process has to enter it; free for a denoiser that is not sharded."""
    sharded = _sharded(denoiser)
    if not sharded:
        yield
        return
    kind, root = type(denoiser), sharded[0]
    root.set_reshard_after_forward(False)
    for module in sharded:
        module.unshard()
    denoiser.__class__ = kind.__mro__[2]  # its own: the class's name is saved with the weights
    try:
        yield
    finally:
        denoiser.__class__ = kind
        for module in sharded:
            module.reshard()
        root.set_reshard_after_forward(True)
        # Else the next backward would gather ahead by the order of forwards that other processes have not made.
        root.reset_iter_state()


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor as a whole one, in every process, all of which have to call it; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, shard: Tensor) -> Tensor:
    """A whole tensor as this process's part of it, as `shard` is one; as it is where that is whole."""
    if not isinstance(shard, DTensor):
        return tensor
    part = distribute_tensor(tensor.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)
    return part.clone()  # it may be a view of the whole
