"""Common parts of the trainers: seeded streams, the learning rate, optimizers, the loop, its log and checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aig import folders


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the learning rate warms up, stays, then falls linearly to zero."""

    steps: int = 4000
    batch: int = 64  # images (or pairs of images) per step, over all processes
    lr: float = 1.5e-3
    muon_lr: float = 2e-3  # for the weights inside, as matrices
    warmup: int = 100
    decay_share: float = 0.5  # of the steps, at the end
    ema: float = 0.998
    seed: int = 0
    checkpoint_every: int = 250


def generator_for(*key: int) -> torch.Generator:
    """A generator seeded by all of `key` (mixed by a 64-bit linear congruence per element)."""
    state = 0x9E3779B97F4A7C15
    for k in key:
        state = ((state ^ (k + 1)) * 6364136223846793005 + 1442695040888963407) % 2**64
    return torch.Generator().manual_seed(state >> 1)


def learning_rate(step: int, config: Recipe) -> float:
    start = config.steps * (1 - config.decay_share)
    return config.lr * min(1.0, (step + 1) / config.warmup, max(0.0, (config.steps - step) / (config.steps - start)))


def join_processes(device: torch.device) -> tuple[int, int]:
    """This process's rank and the number of processes, after joining their group under torchrun."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def load_checkpoint(path: Path, config: Recipe, device: torch.device) -> dict:
    """Read a checkpoint; ValueError if another recipe made it (only its length, decay and checkpointing may change)."""
    state = torch.load(path, map_location=device, weights_only=True)
    current, free = asdict(config), ("steps", "decay_share", "checkpoint_every")
    differing = [k for k, v in state["config"].items() if k not in free and current.get(k) != v]
    if differing:
        made = ", ".join(f"{k}={state['config'][k]}" for k in differing)
        raise ValueError(f"checkpoint {path} was made with {made}: use the same options, or another --out")
    return state


class MatrixMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for weights of any number of dimensions, orthogonalized as matrices (out, the rest).

    torch's Muon takes matrices only: here it gets views that share the weights' storage, and their gradients each step.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.weights = weights
        self.views = [w.data.view(len(w), -1).requires_grad_(True) for w in weights]
        super().__init__(self.views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure=None):
        for weight, view in zip(self.weights, self.views, strict=True):
            view.grad = None if weight.grad is None else weight.grad.view_as(view)
        return super().step(closure)


def make_optimizers(
    modules: nn.Module, config: Recipe, is_inside: Callable[[str, nn.Parameter], bool]
) -> list[torch.optim.Optimizer]:
    """Muon for the weights inside, AdamW for the rest."""
    named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
    inside = [p for name, p in named if p.ndim >= 2 and is_inside(name, p)]
    held = {id(p) for p in inside}
    rest = [p for _, p in named if id(p) not in held]
    return [
        MatrixMuon(inside, lr=config.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def fit(
    name: str,
    modules: nn.Module,
    losses_at: Callable[[int], dict[str, Tensor]],
    config: Recipe,
    out: Path,
    device: torch.device,
    is_inside: Callable[[str, nn.Parameter], bool],
) -> float:
    """Train `modules`, leave their EMA weights in them, and return the seconds it took.

    `losses_at(step)` returns scalars; "loss" is minimized, all are logged to `out/NAME.jsonl`. Its randomness must come
    from the step alone: then an interrupted run resumes from `out/NAME.ckpt` as if nothing had happened. `is_inside`
    chooses the weights for Muon. ValueError if the checkpoint is another recipe's.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    out.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizers = make_optimizers(modules, config, is_inside)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    ema = {k: v.detach().clone() for k, v in modules.state_dict().items()}
    start, before, checkpoint = 0, 0.0, out / f"{name}.ckpt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, config, device)
        modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema, start, before = state["ema"], state["step"], state["seconds"]
    begun, window = time.monotonic() - before, defaultdict(list)
    for step in range(start, config.steps):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * learning_rate(step, config) / config.lr
        losses = losses_at(step)
        modules.zero_grad(set_to_none=False)
        losses["loss"].backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in modules.state_dict().items():
                if value.is_floating_point():
                    ema[key].lerp_(value, 1 - decay)
        for key, value in losses.items():
            window[key].append(value.detach())
        if rank == 0 and ((step + 1) % 50 == 0 or step + 1 == config.steps):
            means = {key: round(torch.stack(values).mean().item(), 5) for key, values in window.items()}
            window.clear()
            report(name, step + 1, means, time.monotonic() - begun, config, out)
        if rank == 0 and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps):
            state = {
                "modules": modules.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "ema": ema,
                "step": step + 1, "seconds": time.monotonic() - begun, "config": asdict(config),
            }  # fmt: skip
            with folders.whole_file(checkpoint) as part:
                torch.save(state, part)
    modules.load_state_dict(ema)
    return time.monotonic() - begun


def report(name: str, step: int, means: dict[str, float], seconds: float, config: Recipe, out: Path) -> None:
    row = {"step": step, **means, "seconds": round(seconds, 1), "images": step * config.batch}
    with open(out / f"{name}.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")
    rate, left = row["images"] / seconds, seconds / step * (config.steps - step)
    numbers = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
    print(f"{name} {step}/{config.steps}  {numbers}  {rate:.0f} images/s  {left / 60:.1f} min left", flush=True)
