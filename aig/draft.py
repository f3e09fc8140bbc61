"""DRaFT: differentiable reward fine-tuning through the last K denoising steps (Clark et al. 2023), with a KL penalty.

    loss = -mean r(decode(x_0), c) + kl_weight * KL

The steps before the last K run without gradient in one large batch; the last K run with gradient in micro-batches,
whose size is independent because their memory needs differ. arXiv 2409.06493 uses K = 1. DRaFT-LV (K = 1, lv = n >= 2)
averages n draws of the last step's noise at the sample's x_0, which lowers the variance of the gradient. The published
KL is that of the last K steps; `aig.drawn` has one that sees earlier steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from aig.drawn import DrawnStates, Rows, eps_mse
from aig.models.protocol import Condition, Model
from aig.objective import DraftConfig, check_precision, grid_of
from aig.path import Observer, Transitions, wide
from aig.sampler import Arm, Grid, Noise, State, advance, encode

Reward = Callable[[Tensor, list[str]], Tensor]


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
    observe: Observer | None = None,
) -> State:
    """The state of B latents before the last K steps, sampled by the tuned model without gradient, in one large batch.

    `path` observes the steps that a multistep scheduler will still remember, which takes the base's predictions too;
    `observe` the steps before those.
    """
    state = State(grid.start(noise.initial(), model))
    last = len(grid) - config.k
    observed = max(0, last - (grid.order - 1)) if path is not None else last
    for first, end in ((0, observed), (observed, last)):
        state = advance(
            model, condition, state, [arm], config.sampling, grid=grid, first=first, last=end, noise=noise.at_step,
            with_base=first == observed, observe=path.observe if path is not None and first == observed else observe,
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
    path = Transitions(grid) if config.by_path and config.lv == 1 and not config.drawn else None
    drawn = DrawnStates(model, condition, arm, config, grid, noise) if config.drawn else None
    with _autocast(model, config):
        x = rollout(model, condition, noise, arm, config, grid, path, drawn and drawn.observe(slice(None)))
    batch = _Batch(model, reward, config, prompts, seeds, seed, total * config.lv, padding, drawn)
    if config.lv > 1:
        return _train_lv(batch, arm, condition, noise, x, grid)
    step_noise = {i: noise.at_step(i) for i in range(len(grid) - config.k, len(grid))} if grid.stochastic else {}

    def last(rows: Rows) -> tuple[Tensor, Tensor]:
        before = None if path is None else path[rows]
        return last_steps(
            model, condition[rows], x[rows], arm, config, grid, lambda i: step_noise[i][rows], before,
            drawn and drawn.observe(rows),
        )  # fmt: skip

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
    observe: Observer | None = None,
) -> tuple[Tensor, Tensor]:
    """The last K steps with gradient: final latents (B, C, H, W) and each image's KL term (B,), eps_mse or nats.

    `path` holds a multistep scheduler's memory at their start; without it, none. With a KL at drawn steps, the term is
    0 here, and `observe` observes the steps.
    """
    terms: list[Tensor] = []
    path = Transitions(grid) if path is None else path

    def penalize(i: int, a: int, state: State, tuned: Tensor, base: Tensor | None) -> None:
        assert base is not None
        if config.kl == "path":
            terms.append(path.step(i, state.x, tuned, base))
        else:
            terms.append(eps_mse(grid, i, tuned, base) / config.k)

    penalized = config.kl_weight > 0 and not config.drawn
    final = advance(
        model, condition, x, [arm], config.sampling, grid=grid, first=len(grid) - config.k, noise=noise,
        with_base=penalized, observe=penalize if penalized else observe,
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
    seed: int
    total: int
    padding: int
    drawn: DrawnStates | None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add(self, last: Callable[[Rows], tuple[Tensor, Tensor]], n: int = 0) -> dict[str, float]:
        """Add all micro-batches of draw n; `last` computes the final latents and KL terms of some rows."""
        for begin in range(0, len(self.prompts), self.config.micro_batch):
            self._accumulate(last, slice(begin, begin + self.config.micro_batch), n)
        return self.sums

    def _accumulate(self, last: Callable[[Rows], tuple[Tensor, Tensor]], rows: slice, n: int) -> None:
        images, counted = list(range(len(self.prompts)))[rows], len(self.prompts) - self.padding
        kept: Rows = rows
        while images:
            with _autocast(self.model, self.config):
                final, kl = last(kept)
                if self.drawn is not None:
                    kl = self.drawn.kl(images, n)
                pictures = self.model.decode(final)
            scores = self._score(pictures, images, n)  # (B,)
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

    def _score(self, pictures: Tensor, images: list[int], n: int) -> Tensor:
        """Scores (B,) of some of the images, smoothed as configured."""
        sigma, draws = self.config.reward_smoothing, self.config.smoothing_draws
        prompts, seeds = [self.prompts[i] for i in images], [self.seeds[i] for i in images]
        if sigma == 0:
            return _scores(self.reward, pictures, prompts)
        noise, pictures = Noise(prompts, seeds, self.seed, tuple(pictures.shape[1:])), wide(pictures)
        drawn = [sigma * noise.draw(f"smoothing {n} {m}").to(pictures) for m in range(draws)]
        return torch.stack([_scores(self.reward, (pictures + z).clamp(0, 1), prompts) for z in drawn]).mean(dim=0)


def _train_lv(batch: _Batch, arm: Arm, condition: Condition, noise: Noise, x: State, grid: Grid) -> dict[str, float]:
    """DRaFT-LV: noise each finished x_0 to the last step's time n times, and average the n one-step gradients."""
    model, config, last = batch.model, batch.config, len(grid) - 1
    with torch.no_grad(), _autocast(model, config):
        variance_noise = noise.at_step if grid.stochastic else None
        x_0 = advance(
            model, condition, x, [arm], config.sampling, grid=grid, first=last, noise=variance_noise,
            observe=batch.drawn and batch.drawn.observe(slice(None)),
        )[0].x  # fmt: skip
    for n in range(config.lv):
        fresh = noise.draw(f"lv {n}").to(x_0)
        noisy = grid.add_noise(last, x_0, fresh)
        step_noise = noise.draw(f"lv step {n}") if grid.stochastic else None

        def one_step(rows: Rows, noisy: Tensor = noisy, z: Tensor | None = step_noise) -> tuple[Tensor, Tensor]:
            at = (lambda i: z[rows]) if z is not None else None
            return last_steps(model, condition[rows], noisy[rows], arm, config, grid, at)

        batch.add(one_step, n)
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
