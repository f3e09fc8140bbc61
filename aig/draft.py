"""DRaFT: differentiable reward fine-tuning through the last K denoising steps (Clark et al. 2023), with a KL penalty to
the base.

    loss = -mean r(decode(x_0), c) + kl_weight * KL

The steps before the last K run without gradient in one large batch; the last K run with gradient in micro-batches,
whose sizes are
independent, since the two have different memory needs. K = 1 is the setting of arXiv 2409.06493. DRaFT-LV (K = 1, lv =
n >= 2) draws the
noise of the last step n times at the sample's x_0 and averages, which lowers the variance of the gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aig import adapters
from aig.models.protocol import Condition, Model, Sampling
from aig.sampler import Arm, Grid, Noise, State, advance, encode

Reward = Callable[[Tensor, list[str]], Tensor]
KL_FORMS = ("eps_mse", "path")


@dataclass(frozen=True)
class DraftConfig:
    """The objective; `sampling` says how training images are sampled."""

    sampling: Sampling
    k: int = 1
    """Denoising steps that carry gradient, 1 to sampling.steps."""
    lv: int = 1
    """Draws of the last step's noise; above 1 is DRaFT-LV and needs k = 1."""
    kl_weight: float = 0.0
    """Weight of the KL term, at least 0; relative to the reward's own scale."""
    kl: str = "eps_mse"
    """eps_mse: mean over the last K steps of ||eps - eps_base||^2 / numel (flow matching: of the velocities); path:
    nats of the last K transitions, which have to be stochastic (eta > 0, or the sde-dpm scheduler)."""
    micro_batch: int = 8
    """Images that carry gradient at once."""
    autocast: str | None = None
    """bfloat16: forward passes in that precision where torch holds it safe, with float32 weights; None: as they are."""

    def __post_init__(self) -> None:
        checks = {
            "k": (1 <= self.k <= self.sampling.steps, f"in 1..{self.sampling.steps} (sampling.steps)"),
            "lv": (self.lv >= 1 and (self.lv == 1 or self.k == 1), "at least 1, and 1 unless k = 1"),
            "kl_weight": (self.kl_weight >= 0, "at least 0"),
            "kl": (self.kl in KL_FORMS, f"one of {', '.join(KL_FORMS)}"),
            "micro_batch": (self.micro_batch >= 1, "at least 1"),
            "autocast": (self.autocast in (None, "bfloat16"), "bfloat16 or None"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise ValueError(f"draft.{name} = {getattr(self, name)!r} must be {allowed}")
        stochastic = self.sampling.eta > 0 or self.sampling.scheduler == "sde-dpm"
        if self.kl == "path" and self.kl_weight > 0 and not stochastic:
            raise ValueError(
                "draft.kl = 'path' needs sampling.eta > 0 or sampling.scheduler = 'sde-dpm': a deterministic step has "
                "no density; use kl = 'eps_mse'"
            )


def draw(prompts: Sequence[str], seed: int, step: int, batch: int) -> tuple[list[str], list[int]]:
    """The prompts and noise seed indices of one training step: sample j depends on (seed, step, j) alone."""
    chosen, seeds = [], []
    for j in range(batch):
        digest = hashlib.blake2b(f"{seed}\0{step}\0{j}".encode(), digest_size=16).digest()
        chosen.append(prompts[int.from_bytes(digest[:8], "big") % len(prompts)])
        seeds.append(int.from_bytes(digest[8:], "big") >> 1)
    return chosen, seeds


@torch.no_grad()
def rollout(model: Model, condition: Condition, noise: Noise, arm: Arm, config: DraftConfig, grid: Grid) -> State:
    """The state of B latents before the last K steps, sampled by the tuned model without gradient, in one large
    batch."""
    start = grid.start(noise.initial(), model)
    last = len(grid) - config.k
    return advance(model, condition, start, [arm], config.sampling, grid=grid, last=last, noise=noise.at_step)[0]


def train_step(
    model: Model,
    reward: Reward,
    adapter: str,
    prompts: list[str],
    seeds: list[int],
    config: DraftConfig,
    seed: int = 0,
    total: int | None = None,
) -> dict[str, float]:
    """Accumulate the gradient of one step's loss in the adapter's parameters; returns the sums' means {loss, reward,
    kl}.

    `prompts` and `seeds` are this worker's share of a global batch of `total` images (default: all of it): every
    image weighs 1/total,
    so that gradients of several workers add up to the whole batch's. The caller owns the optimizer. Raises
    FloatingPointError, naming the
    prompts, where the loss is not finite.
    """
    total = total or len(prompts)
    grid = Grid(model, config.sampling)
    arm = Arm("tuned", adapter)
    condition = encode(model, prompts, config.sampling)
    noise = Noise(prompts, seeds, seed, model.latent_shape)
    with _autocast(model, config):
        x = rollout(model, condition, noise, arm, config, grid)
    if config.lv > 1:
        return _train_lv(model, reward, arm, prompts, condition, noise, x, config, grid, total)
    sums = {"loss": 0.0, "reward": 0.0, "kl": 0.0}
    step_noise = {i: noise.at_step(i) for i in range(len(grid) - config.k, len(grid))} if grid.stochastic else {}
    for rows in _micro_batches(len(prompts), config.micro_batch):
        with _autocast(model, config):
            final, kl = last_steps(
                model, condition[rows], x[rows], arm, config, grid, lambda i, rows=rows: step_noise[i][rows]
            )
        _backward(model, reward, final, kl, prompts[rows], config, total, sums)
    return sums


def last_steps(
    model: Model,
    condition: Condition,
    x: Tensor | State,
    arm: Arm,
    config: DraftConfig,
    grid: Grid,
    noise: Callable[[int], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The last K steps with gradient: final latents (B, C, H, W) and each image's KL term (B,), eps_mse or nats."""
    terms: list[Tensor] = []

    def observe(i: int, a: int, state: State, tuned: Tensor, base: Tensor | None) -> None:
        if base is not None:
            full = torch.promote_types(
                tuned.dtype, torch.float32
            )  # squares of bf16 differences lose most of their bits
            square = (tuned - base).to(full).square().flatten(1) * grid.eps_scale(i)
            terms.append(
                square.mean(dim=1) / config.k if config.kl == "eps_mse" else square.sum(dim=1) * grid.path_scale(i)
            )

    # No padding with gradient: repeated rows would cost memory and change nothing.
    sampling = replace(config.sampling, block=1)
    penalized = config.kl_weight > 0
    final = advance(
        model, condition, x, [arm], sampling, grid=grid, first=len(grid) - config.k, noise=noise,
        with_base=penalized, observe=observe if penalized else None,
    )[0].x  # fmt: skip
    return final, torch.stack(terms).sum(dim=0) if terms else torch.zeros(len(final), device=final.device)


def _train_lv(
    model: Model,
    reward: Reward,
    arm: Arm,
    prompts: list[str],
    condition: Condition,
    noise: Noise,
    x: State,
    config: DraftConfig,
    grid: Grid,
    total: int,
) -> dict[str, float]:
    """DRaFT-LV: noise each finished x_0 anew to the last step's time, n times, and average the n one-step gradients."""
    last = len(grid) - 1
    with torch.no_grad(), _autocast(model, config):
        variance_noise = noise.at_step if grid.stochastic else None
        x_0 = advance(model, condition, x, [arm], config.sampling, grid=grid, first=last, noise=variance_noise)[0].x
    sums = {"loss": 0.0, "reward": 0.0, "kl": 0.0}
    for n in range(config.lv):
        fresh = noise.draw(f"lv {n}").to(x_0)
        noisy = grid.add_noise(last, x_0, fresh)
        step_noise = noise.draw(f"lv step {n}") if grid.stochastic else None
        for rows in _micro_batches(len(prompts), config.micro_batch):
            at = (lambda i, rows=rows, z=step_noise: z[rows]) if step_noise is not None else None
            with _autocast(model, config):
                final, kl = last_steps(model, condition[rows], noisy[rows], arm, config, grid, at)
            _backward(model, reward, final, kl, prompts[rows], config, total * config.lv, sums)
    return sums


def _backward(
    model: Model,
    reward: Reward,
    final: Tensor,
    kl: Tensor,
    prompts: list[str],
    config: DraftConfig,
    total: int,
    sums: dict[str, float],
) -> None:
    with _autocast(model, config):
        scores = reward(model.decode(final), prompts)  # (B,)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    loss = (config.kl_weight * kl - scores).sum() / total
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} for the prompts {sorted(set(prompts))}; lower the learning rate or raise the "
            "KL weight"
        )
    loss.backward()
    sums["loss"] += loss.item()
    sums["reward"] += scores.sum().item() / total
    sums["kl"] += kl.sum().item() / total


def _autocast(model: Model, config: DraftConfig) -> torch.autocast:
    # One context a phase: autocast keeps its casts of parameters, and those made without gradient carry none later.
    return torch.autocast(model.device.type, torch.bfloat16, enabled=config.autocast is not None)


def _micro_batches(count: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def trainable(model: Model, adapter: str) -> list[torch.nn.Parameter]:
    """The parameters that DRaFT tunes: the adapter's, with gradients on, all else frozen."""
    return adapters.parameters(model.denoiser, adapter)
