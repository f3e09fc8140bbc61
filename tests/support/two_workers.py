"""What each of two processes of a training does, without Ray: `multiprocessing` starts `work` by its name."""

import torch
import torch.distributed as dist

from pipelines import config as configuration
from pipelines.train import parallel, worker

STEPS = 3
HALF = ("model.dtype=bfloat16", "train.kl_steps=all")


def work(rank, cases, folder):
    """Every case's training, one of a single image that leaves nothing to the second worker, and a sharded step beside
    a bfloat16 base, with a KL at drawn steps; `cases` are arguments by the names of their folders."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for name, arguments in cases.items():
        train(rank, configuration.load("smoke", None, arguments), folder / name)
    single = configuration.load("smoke", None, [*next(iter(cases.values())), "train.batch=1"])
    idle = worker.Training(single, False, parallel.DDP, 2)
    idle.advance(rank, 2)
    save(idle.state(), rank, folder / "idle.pt")
    half = worker.Training(configuration.load("smoke", None, [*cases["full"], *HALF]), False, parallel.FSDP, 2)
    save(half.state(), rank, folder / "half-before.pt")
    half.advance(rank, 2)
    save(half.state(), rank, folder / "half-after.pt")
    dist.destroy_process_group()


def train(rank, single, folder):
    """Some steps, a validation and a snapshot among them; the last one also from a checkpoint."""
    how = parallel.strategy(single.train, 2)
    first = worker.Training(single, rank == 0, how, 2)
    first.begin()
    for _ in range(STEPS - 1):
        first.advance(rank, 2)
        first.keep()
    first.validate()
    save(first.state(), rank, folder / "before.pt")
    first.advance(rank, 2)
    save(first.state(), rank, folder / "after.pt")
    if how == parallel.FSDP:
        held = sum(parameter.to_local().numel() for parameter in first.parameters)
        (folder / f"held{rank}").write_text(str(held))
    dist.barrier()
    second = worker.Training(single, rank == 0, how, 2)
    second.restore(folder / "before.pt")
    second.advance(rank, 2)
    save(second.state(), rank, folder / "resumed.pt")


def save(state, rank, path):
    if rank == 0:
        torch.save(state, path)
