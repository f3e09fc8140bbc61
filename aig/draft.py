"""DRaFT: differentiable reward fine-tuning through the last K denoising steps (Clark et al. 2023), with a KL penalty.

    loss = -mean r(decode(x_0), c) + kl_weight * KL

The steps before the last K run without gradient in one large batch; the last K run with gradient in micro-batches,
whose size is independent because their memory needs differ. arXiv 2409.06493 uses K = 1. DRaFT-LV (K = 1, lv = n >= 2)
averages n draws of the last step's noise at the sample's x_0, which lowers the variance of the gradient.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from aig.models.protocol import Condition, Model, Sampling
from aig.path import Transitions, wide
from aig.sampler import Arm, Grid, Noise, State, advance, encode

Reward = Callable[[Tensor, list[str]], Tensor]
Rows = slice | list[int]
KL_FORMS = ("eps_mse", "path")
ON_NAN = ("stop", "skip")


@dataclass(frozen=True)
class DraftConfig:
    """The objective of a DRaFT training. Raises ValueError that names a field out of range and what is allowed.

    Examples:
        >>> aig.DraftConfig(aig.Sampling(steps=10, guidance=3.0), k=2, kl_weight=0.1).by_path
        False
    """

    sampling: Sampling
    """How training images are sampled."""
    k: int = 1
    """Denoising steps that carry gradient, 1 to sampling.steps."""
    lv: int = 1
    """Draws of the last step's noise; above 1 is DRaFT-LV and needs k = 1."""
    kl_weight: float = 0.0
    """Weight of the KL term, at least 0, in the reward's units."""
    kl: str = "eps_mse"
    """eps_mse: mean over the last K steps of ||eps - eps_base||^2 / numel (flow matching: of the velocities); path:
    nats of the last K transitions, each of which must add noise (`grid_of` refuses others)."""
    micro_batch: int = 8
    """Images that carry gradient at once."""
    autocast: str | None = None
    """bfloat16: denoiser and decoder under autocast, with float32 weights; None: in their own precision. The reward
    computes in its own precision either way, on images in float32."""
    on_nan: str = "stop"
    """For an image whose pixels, score or KL term are not finite: stop raises and names it; skip leaves it out."""

    def __post_init__(self) -> None:
        checks = {
            "k": (1 <= self.k <= self.sampling.steps, f"in 1..{self.sampling.steps} (sampling.steps)"),
            "lv": (self.lv >= 1 and (self.lv == 1 or self.k == 1), "at least 1, and 1 unless k = 1"),
            "kl_weight": (self.kl_weight >= 0, "at least 0"),
            "kl": (self.kl in KL_FORMS, f"one of {', '.join(KL_FORMS)}"),
            "micro_batch": (self.micro_batch >= 1, "at least 1"),
            "autocast": (self.autocast in (None, "bfloat16"), "bfloat16 or None"),
            "on_nan": (self.on_nan in ON_NAN, f"one of {', '.join(ON_NAN)}"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise ValueError(f"draft.{name} = {getattr(self, name)!r} must be {allowed}")

    @property
    def by_path(self) -> bool:
        """Whether the loss contains the path KL."""
        return self.kl == "path" and self.kl_weight > 0


def grid_of(model: Model, config: DraftConfig) -> Grid:
    """The grid of an objective's sampling; ValueError for the path KL if one of the last K steps adds no noise.

    The two transitions of such a step are points without a density, so its gradient would be missing.
    """
    grid = Grid(model, config.sampling)
    bare = _without_noise(grid, config.k) if config.by_path else []
    if bare:
        fixes = [keys for keys, change in NOISY.items() if _noisy(model, replace(config.sampling, **change), config.k)]
        fix = ", or ".join([*fixes, "kl = 'eps_mse'"])
        sampler = f"{config.sampling.scheduler or 'its own scheduler'} ({grid.name}, eta = {config.sampling.eta:g})"
        steps = f"step{'s' * (len(bare) > 1)} {', '.join(str(i + 1) for i in bare)}"
        raise ValueError(
            f"draft.kl = 'path' needs noise in each of the last {config.k} of {len(grid)} steps, and {model.name} with "
            f"{sampler} adds none in {steps}: take {fix}"
        )
    return grid


# Settings that may add noise in every step. Whether they do depends on the configuration of the model's own scheduler,
# which sets the noise level at which the last step ends.
NOISY: dict[str, dict[str, Any]] = {
    "sampling.scheduler = 'ddim' with sampling.eta > 0": {"scheduler": "ddim", "eta": 1.0},
    "sampling.scheduler = 'sde-dpm'": {"scheduler": "sde-dpm", "eta": 0.0},
}


def _without_noise(grid: Grid, k: int) -> list[int]:
    return [i for i in range(len(grid) - k, len(grid)) if not grid.deviation(i) > 0]


def _noisy(model: Model, sampling: Sampling, k: int) -> bool:
    try:
        return not _without_noise(Grid(model, sampling), k)
    except ValueError:  # the scheduler does not fit the model
        return False


def check_precision(model: Model) -> None:
    """Raise ValueError for a model in float16, whose gradients would need a loss scaler."""
    if model.dtype == torch.float16:
        raise ValueError(
            f"{model.name} is in float16, where small gradients vanish without a loss scaler, and there is none: train "
            "it in bfloat16 or float32 (model.dtype)"
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
def rollout(
    model: Model,
    condition: Condition,
    noise: Noise,
    arm: Arm,
    config: DraftConfig,
    grid: Grid,
    path: Transitions | None = None,
) -> State:
    """The state of B latents before the last K steps, sampled by the tuned model without gradient, in one large batch.

    `path` observes the steps that a multistep scheduler will still remember, which takes the base's predictions too.
    """
    state = State(grid.start(noise.initial(), model))
    last = len(grid) - config.k
    observed = max(0, last - (grid.order - 1)) if path is not None else last
    for first, end in ((0, observed), (observed, last)):
        state = advance(
            model, condition, state, [arm], config.sampling, grid=grid, first=first, last=end, noise=noise.at_step,
            with_base=first == observed, observe=path.observe if path is not None and first == observed else None,
        )[0]  # fmt: skip
    return state


def train_step(
    model: Model,
    reward: Reward,
    adapter: str,
    prompts: list[str],
    seeds: list[int],
    config: DraftConfig,
    seed: int = 0,
    total: int | None = None,
    padding: int = 0,
) -> dict[str, float]:
    """Accumulate the gradient of one step's loss in the adapter's parameters; returns {loss, reward, kl, skipped}.

    `prompts` and `seeds` are this worker's share of a global batch of `total` images (default: all of it). Every image
    weighs 1/total, so gradients and sums of several workers add up to the whole batch's; the last `padding` images
    weigh nothing and are never counted. The caller owns the optimizer.

    Raises ValueError for a model in float16, which would need a loss scaler. An image whose pixels, score or KL term
    are not finite raises FloatingPointError with its prompt and noise seed; with `config.on_nan` = skip it weighs 0 and
    is counted in `skipped`, and `over_kept` turns the sums into means of the rest.

    Examples:
        >>> model = aig.load("tiny")
        >>> aig.adapters.attach(model.denoiser, "tuned", rank=2)
        >>> parameters = aig.adapters.parameters(model.denoiser, "tuned")
        >>> config = aig.DraftConfig(aig.Sampling(steps=2, guidance=1.0))
        >>> sums = aig.train_step(model, aig.rewards.load("fragile"), "tuned", ["a red star"], [0], config)
        >>> list(sums), any(parameter.grad.any() for parameter in parameters)
        (['loss', 'reward', 'kl', 'skipped'], True)
    """
    check_precision(model)
    if not prompts:
        return dict.fromkeys(SUMS, 0.0)
    total = total or len(prompts)
    # No padding: a training's images depend on their batch within rounding only, and repeated rows cost time.
    config = replace(config, sampling=replace(config.sampling, block=1))
    grid = grid_of(model, config)
    arm = Arm("tuned", adapter)
    condition = encode(model, prompts, config.sampling)
    noise = Noise(prompts, seeds, seed, model.latent_shape)
    path = Transitions(grid) if config.by_path and config.lv == 1 else None
    with _autocast(model, config):
        x = rollout(model, condition, noise, arm, config, grid, path)
    batch = _Batch(model, reward, config, prompts, seeds, total * config.lv, padding)
    if config.lv > 1:
        return _train_lv(batch, arm, condition, noise, x, grid)
    step_noise = {i: noise.at_step(i) for i in range(len(grid) - config.k, len(grid))} if grid.stochastic else {}

    def last(rows: Rows) -> tuple[Tensor, Tensor]:
        before = None if path is None else path[rows]
        return last_steps(model, condition[rows], x[rows], arm, config, grid, lambda i: step_noise[i][rows], before)

    return batch.add(last)


SUMS: tuple[str, ...] = ("loss", "reward", "kl", "skipped")


def over_kept(parameters: Sequence[torch.nn.Parameter], sums: dict[str, float], total: int) -> dict[str, float]:
    """Turn gradients (in place) and sums of a batch of `total` images into means over those that were not skipped.

    For the whole batch, after several workers' parts are added up. NaN if every image was skipped.
    """
    kept = 1 - sums["skipped"] / total
    if kept == 1:
        return sums
    if kept <= 0:
        return {name: sums[name] if name == "skipped" else math.nan for name in sums}
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(kept)
    return {name: value if name == "skipped" else value / kept for name, value in sums.items()}


def last_steps(
    model: Model,
    condition: Condition,
    x: Tensor | State,
    arm: Arm,
    config: DraftConfig,
    grid: Grid,
    noise: Callable[[int], Tensor] | None,
    path: Transitions | None = None,
) -> tuple[Tensor, Tensor]:
    """The last K steps with gradient: final latents (B, C, H, W) and each image's KL term (B,), eps_mse or nats.

    `path` holds a multistep scheduler's memory at their start; without it, none.
    """
    terms: list[Tensor] = []
    path = Transitions(grid) if path is None else path

    def observe(i: int, a: int, state: State, tuned: Tensor, base: Tensor | None) -> None:
        assert base is not None
        if config.kl == "path":
            terms.append(path.step(i, state.x, tuned, base))
        else:  # squares of bf16 differences would lose most of their bits
            square = wide(tuned - base).square().flatten(1)
            terms.append(square.mean(dim=1) * grid.eps_scale(i) / config.k)

    penalized = config.kl_weight > 0
    final = advance(
        model, condition, x, [arm], config.sampling, grid=grid, first=len(grid) - config.k, noise=noise,
        with_base=penalized, observe=observe if penalized else None,
    )[0].x  # fmt: skip
    return final, torch.stack(terms).sum(dim=0) if terms else torch.zeros(len(final), device=final.device)


@dataclass
class _Batch:
    """A worker's share of a batch, whose gradients and sums it accumulates."""

    model: Model
    reward: Reward
    config: DraftConfig
    prompts: list[str]
    seeds: list[int]
    total: int
    padding: int
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add(self, last: Callable[[Rows], tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Add all micro-batches; `last` computes the final latents and KL terms of some rows."""
        for begin in range(0, len(self.prompts), self.config.micro_batch):
            self._accumulate(last, slice(begin, begin + self.config.micro_batch))
        return self.sums

    def _accumulate(self, last: Callable[[Rows], tuple[Tensor, Tensor]], rows: slice) -> None:
        images, counted = list(range(len(self.prompts)))[rows], len(self.prompts) - self.padding
        kept: Rows = rows
        while images:
            with _autocast(self.model, self.config):
                final, kl = last(kept)
                pictures = self.model.decode(final)
            scores = _scores(self.reward, pictures, [self.prompts[i] for i in images])  # (B,)
            sound = (scores.isfinite() & kl.isfinite()).tolist()
            if all(sound):
                if images[-1] >= counted:
                    weights = scores.new_tensor([float(image < counted) for image in images])  # (B,)
                    scores, kl = scores * weights, kl * weights
                loss = (self.config.kl_weight * kl - scores).sum() / self.total
                loss.backward()
                self.sums["loss"] += loss.item()
                self.sums["reward"] += scores.sum().item() / self.total
                self.sums["kl"] += kl.sum().item() / self.total
                return
            bad = sound.index(False)
            if self.config.on_nan == "stop":
                raise FloatingPointError(
                    f"the reward is {scores[bad].item()} and the KL term {kl[bad].item()} for the image of "
                    f"{self.prompts[images[bad]]!r} with noise seed {self.seeds[images[bad]]}; lower the learning rate "
                    "or raise the KL weight, or leave such images out with on_nan = 'skip'"
                )
            # Repeat without them: in the graph of the whole batch, 0 times their NaN would be NaN in every gradient.
            self.sums["skipped"] += sum(image < counted for image, ok in zip(images, sound, strict=True) if not ok)
            images = kept = [image for image, ok in zip(images, sound, strict=True) if ok]


def _train_lv(batch: _Batch, arm: Arm, condition: Condition, noise: Noise, x: State, grid: Grid) -> dict[str, float]:
    """DRaFT-LV: noise each finished x_0 to the last step's time n times, and average the n one-step gradients."""
    model, config, last = batch.model, batch.config, len(grid) - 1
    with torch.no_grad(), _autocast(model, config):
        variance_noise = noise.at_step if grid.stochastic else None
        x_0 = advance(model, condition, x, [arm], config.sampling, grid=grid, first=last, noise=variance_noise)[0].x
    for n in range(config.lv):
        fresh = noise.draw(f"lv {n}").to(x_0)
        noisy = grid.add_noise(last, x_0, fresh)
        step_noise = noise.draw(f"lv step {n}") if grid.stochastic else None

        def one_step(rows: Rows, noisy: Tensor = noisy, z: Tensor | None = step_noise) -> tuple[Tensor, Tensor]:
            at = (lambda i: z[rows]) if z is not None else None
            return last_steps(model, condition[rows], noisy[rows], arm, config, grid, at)

        batch.add(one_step)
    return {**batch.sums, "skipped": batch.sums["skipped"] / config.lv}


def _scores(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Scores (B,) in float32 at least, of images in float32 at least, outside autocast, whose casts would change them.

    If some images have pixels that are not finite, those score NaN and the others 0.
    """
    broken = ~images.isfinite().flatten(1).all(dim=1)  # (B,)
    if broken.any():  # rewards refuse such images
        return torch.where(broken, math.nan, 0.0)
    with torch.autocast(images.device.type, enabled=False):
        return wide(reward(wide(images), prompts))


def _autocast(model: Model, config: DraftConfig) -> torch.autocast:
    # One context per phase: autocast caches its casts of parameters, and a cast made without gradient carries none.
    return torch.autocast(model.device.type, torch.bfloat16, enabled=config.autocast is not None)
