"""What each of two processes of a training does, without Ray: `torch.multiprocessing` starts `work` by its name."""

import torch
import torch.distributed as dist

from pipelines import config, parallel, training

STEPS = 3


def work(rank, arguments, folder):
    """Some steps of the training, a validation and a snapshot among them; the last one also from a checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    single = config.load("smoke", None, arguments)
    how = parallel.of(single.train, 2)
    first = training.Training(single, rank == 0, how, 2)
    first.begin()
    for _ in range(STEPS - 1):
        first.advance(rank, 2)
        first.keep()
    first.validate()
    save(first.state(), rank, folder / "before.pt")
    first.advance(rank, 2)
    save(first.state(), rank, folder / "after.pt")
    dist.barrier()
    second = training.Training(single, rank == 0, how, 2)
    second.restore(folder / "before.pt")
    second.advance(rank, 2)
    save(second.state(), rank, folder / "resumed.pt")
    torch.save([sum(p.to_local().numel() for p in first.parameters)], folder / f"held{rank}.pt") if how == "fsdp" else 0
    dist.destroy_process_group()


def save(state, rank, path):
    if rank == 0:
        torch.save(state, path)


def idle(rank, arguments, folder):
    """One image for two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    started = training.Training(config.load("smoke", None, arguments), False, parallel.DDP, 2)
    started.advance(rank, 2)
    save(started.state(), rank, folder / "after.pt")
    dist.destroy_process_group()
