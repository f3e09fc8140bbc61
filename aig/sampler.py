"""The sampling loop: many arms from the same noise at once, each state stepped once and each prediction made once.

An arm is an adapter, a LoRA scale and a schedule. Arms that start from the same noise and have had the same weights so
far share one state; the loop makes each of its two predictions (base, tuned) at most once, all in one routed forward.
The published arms (base, tuned, linear, power:2, power:4, step:0.6) at T = 25 then need 199 predictions per (prompt,
seed). Separate loops need 222; the published script, which makes both predictions at every step of every arm, 300.
Gradients flow through the loop wherever they are enabled: DRaFT's last K steps run through it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from aig import adapters, schedules
from aig.grid import Grid, State
from aig.models.protocol import Condition, Model, Sampling
from aig.path import Observer, PathMeter
from aig.schedules import Schedule

__all__ = [
    "Arm", "Cost", "Grid", "Noise", "Samples", "Sampling", "State", "advance", "encode", "sample", "sample_arms",
    "to_uint8",
]  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One point of the trade-off: an adapter, its LoRA scale and a schedule.

    Raises ValueError for a scale outside [0, 1], a schedule that `parse` refuses, and a schedule without an adapter.

    Examples:
        >>> aig.Arm("annealed", "tuned", schedule="power:2").id
        '473411b424b07167'
    """

    name: str
    adapter: str | None = None
    """The adapter's name; None for the base model, with the schedule "base"."""
    lora_scale: float = 1.0
    """In [0, 1]: 0 is the base, 1 the adapter as trained."""
    schedule: str = "tuned"
    """The text of a schedule, as `parse` reads it."""

    def __post_init__(self) -> None:
        if not 0 <= self.lora_scale <= 1:
            raise ValueError(f"arm {self.name!r}: lora_scale = {self.lora_scale} must be in [0, 1]")
        if self.curve.name != "base" and self.adapter is None:
            raise ValueError(
                f"arm {self.name!r}: schedule {self.schedule!r} needs an adapter; without one use schedule='base'"
            )

    @cached_property
    def curve(self) -> Schedule:
        """The schedule itself, parsed once."""
        return schedules.parse(self.schedule)

    def __getstate__(self) -> dict[str, Any]:
        """An own function travels with its arm, to Ray's actors too; a known schedule is parsed again from its text."""
        return {name: value for name, value in self.__dict__.items() if name != "curve" or value.digest}

    @property
    def id(self) -> str:
        """A hash of what the arm does, without its name: 16 hex digits. The values of a user's own curve count."""
        digest = [self.curve.digest] if self.curve.digest else []
        content = json.dumps([self.adapter, self.lora_scale, self.schedule, *digest])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


@dataclass
class Cost:
    """Predictions (denoiser evaluations) per (prompt, seed); guidance's two halves count as one."""

    predictions: int = 0
    separate: int = 0
    """Predictions of one loop per arm: one if the weight is 0 or 1 (two if distances are measured), else two."""
    published: int = 0
    """Predictions of the published script: two at every step of every arm, base and tuned included."""
    forwards: int = 0
    """Forwards of the whole call."""

    def counts(self) -> dict[str, int]:
        """The predictions made, and those of the two other loops."""
        return {"predictions": self.predictions, "separate": self.separate, "published": self.published}


class Noise:
    """The noise of each (prompt, seed index), from a generator seeded by blake2b(run seed, prompt, seed index)."""

    def __init__(
        self, prompts: Sequence[str], seed_indices: Sequence[int], run_seed: int, shape: tuple[int, ...]
    ) -> None:
        if len(prompts) != len(seed_indices):
            raise ValueError(
                f"{len(prompts)} prompts but {len(seed_indices)} seed indices: give one seed index per prompt"
            )
        self.keys = [f"{run_seed}\0{prompt}\0{index}" for prompt, index in zip(prompts, seed_indices, strict=True)]
        self.shape = shape

    def draw(self, tag: str) -> Tensor:
        """Standard normal noise (G, *shape) in float32 on the CPU, always the same for the same tag."""
        generators = [torch.Generator().manual_seed(seed) for seed in self._seeds(tag)]
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])

    def choose(self, tag: str, options: Sequence[int]) -> list[int]:
        """One of the options for each image, uniformly, always the same for the same tag."""
        return [options[seed % len(options)] for seed in self._seeds(tag)]

    def _seeds(self, tag: str) -> list[int]:
        digests = [hashlib.blake2b(f"{key}\0{tag}".encode(), digest_size=8).digest() for key in self.keys]
        return [int.from_bytes(digest, "big") >> 1 for digest in digests]

    def initial(self) -> Tensor:
        return self.draw("initial")

    def at_step(self, i: int) -> Tensor:
        return self.draw(f"step {i}")


@dataclass
class Samples:
    """The result of `sample_arms`, by arm name."""

    latents: dict[str, Tensor]
    """(G, C, H, W)"""
    path: dict[str, Tensor] = field(default_factory=dict)
    """(G,) eps_mse path length of each image, which is no KL; empty unless measured."""
    kl: dict[str, Tensor] = field(default_factory=dict)
    """(G,) path KL of each image in nats; empty unless measured, and if sampling is deterministic."""
    cost: Cost = field(default_factory=Cost)


def advance(
    model: Model,
    condition: Condition,
    x_t: Tensor | State,
    arms: Sequence[Arm],
    sampling: Sampling,
    *,
    grid: Grid | None = None,
    first: int = 0,
    last: int | None = None,
    noise: Callable[[int], Tensor] | None = None,
    with_base: bool = False,
    observe: Observer | None = None,
    progress: Callable[[int], None] | None = None,
    cost: Cost | None = None,
) -> list[State]:
    """Run steps first..last-1 for all arms from the shared latents x_t (G, C, H, W); returns the arms' states in order.

    `noise(i)` gives the variance noise (G, C, H, W) of step i, which a stochastic step needs. `with_base` also makes
    the base's prediction at every arm's own state, without gradient, for `observe`. Raises ValueError for an adapter
    that is not loaded.
    """
    grid = grid or Grid(model, sampling)
    last = len(grid) if last is None else last
    curves = [grid.weights(arm.curve) for arm in arms]
    routes = [
        adapters.BASE if arm.adapter is None else adapters.scaled(model.denoiser, arm.adapter, arm.lora_scale)
        for arm in arms
    ]
    # The distinct states, and the index of each arm's. A state that forks takes its memory along.
    states, at = [x_t if isinstance(x_t, State) else State(x_t)], [0] * len(arms)
    with _fuser(model, sampling) as fuser:
        for i in range(first, last):
            levels = [0.0 if route == adapters.BASE else curve[i] for route, curve in zip(routes, curves, strict=True)]
            pairs: dict[tuple[int, str], None] = {}  # insertion-ordered: (state, adapter)
            for a, w in enumerate(levels):
                if w < 1:
                    pairs[at[a], adapters.BASE] = None
                if w > 0:
                    pairs[at[a], routes[a]] = None
            extra = [(s, adapters.BASE) for s in sorted(set(at)) if with_base and (s, adapters.BASE) not in pairs]
            predictions = _predict(model, condition, grid, i, states, list(pairs), sampling, cost, fuser)
            with torch.no_grad():
                predictions |= _predict(model, condition, grid, i, states, extra, sampling, cost, fuser)
            if cost is not None:
                cost.predictions += len(pairs) + len(extra)
                cost.separate += sum((w < 1 or with_base) + (w > 0) for w in levels)
                cost.published += 2 * len(arms)
            variance_noise = noise(i).to(states[0].x) if noise is not None and grid.stochastic else None
            stepped: dict[tuple[int, float, str], int] = {}
            moved, mixes = [], {}
            for a, w in enumerate(levels):
                kind = (at[a], w, routes[a] if w > 0 else adapters.BASE)
                if kind not in stepped:
                    mixes[kind] = _mixed(predictions, *kind)
                    stepped[kind] = len(moved)
                    moved.append(grid.move(i, mixes[kind], states[at[a]], variance_noise))
                if observe is not None:
                    observe(i, a, states[at[a]], mixes[kind], predictions.get((at[a], adapters.BASE)))
                at[a] = stepped[kind]
            states = moved
            if progress is not None:
                progress(i + 1)
    return [states[s] for s in at]


def _fuser(model: Model, sampling: Sampling) -> AbstractContextManager[adapters.Fuser | None]:
    # With gradient, the adapter's own tensors must take part; below float32, a folded weight would round away what a
    # short training adds to it.
    fits = torch.finfo(model.dtype).bits >= 32 and not torch.is_grad_enabled()
    return adapters.fusing(model.denoiser) if sampling.fuse and fits else nullcontext()


def _mixed(predictions: dict[tuple[int, str], Tensor], state: int, w: float, route: str) -> Tensor:
    if w == 0:
        return predictions[state, adapters.BASE]
    if w == 1:
        return predictions[state, route]
    return schedules.mix(predictions[state, adapters.BASE], predictions[state, route], w)


def _predict(
    model: Model,
    condition: Condition,
    grid: Grid,
    i: int,
    states: list[State],
    pairs: list[tuple[int, str]],
    sampling: Sampling,
    cost: Cost | None,
    fuser: adapters.Fuser | None,
) -> dict[tuple[int, str], Tensor]:
    """The prediction of each (state, adapter): one forward for all rows, or one per adapter, of at most max_rows."""
    results: dict[tuple[int, str], Tensor] = {}
    if sampling.passes == 1:
        groups = [pairs] if pairs else []
    else:
        used = list(dict.fromkeys(pair[1] for pair in pairs))
        if fuser is not None:
            used = sorted(used, key=lambda adapter: adapter != fuser.current)  # the folded one goes first
        groups = [[pair for pair in pairs if pair[1] == adapter] for adapter in used]
    count = len(states[0])
    padded = -(-count // sampling.block) * sampling.block
    rows = [min(r, count - 1) for r in range(padded)]  # the last row is repeated
    chunk = max(sampling.max_rows // sampling.block, 1) * sampling.block
    whole = padded == count
    for group in groups:
        x = grid.scaled(i, torch.cat([states[s].x if whole else states[s].x[rows] for s, _ in group]))
        texts = condition[rows * len(group)] if len(group) > 1 or not whole else condition
        names = [adapter for _, adapter in group for _ in range(padded)]
        if fuser is not None:
            fuser.switch(names[0])
            names = [adapters.BASE] * len(names)
        parts = []
        for begin in range(0, len(x), chunk):
            part = slice(begin, begin + chunk)
            parts.append(model.predict(x[part], grid.times[i], texts[part], names[part], sampling.guidance))
            if cost is not None:
                cost.forwards += 1
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        for pair, prediction in zip(group, out.split(padded), strict=True):
            results[pair] = prediction[:count]
    return results


def encode(model: Model, prompts: Sequence[str], sampling: Sampling) -> Condition:
    """Encode B prompts with the negative prompt and the distilled guidance of `sampling`."""
    return model.encode(prompts, sampling.negative, sampling.distilled)


@torch.no_grad()
def sample_arms(
    model: Model,
    prompts: Sequence[str],
    seed_indices: Sequence[int],
    arms: Sequence[Arm],
    run_seed: int = 0,
    sampling: Sampling | None = None,
    measure_path: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Sample every arm for G (prompt, seed index) pairs from common noise.

    An image depends on (run seed, prompt, seed index) alone, never on the batch. `measure_path` also measures each
    image's distances to the base (`aig.path.PathMeter`), which costs a base prediction wherever an arm makes none
    itself. `progress` is called with the number of steps done. Raises ValueError for duplicate arm names, adapters that
    are not loaded and prompts that the model cannot read.

    Examples:
        >>> model = aig.load("tiny")
        >>> arms = [aig.Arm("base", schedule="base")]
        >>> samples = aig.sample_arms(model, ["a red star"] * 2, [0, 1], arms)
        >>> samples.latents["base"].shape, samples.cost
        (torch.Size([2, 12, 16, 16]), Cost(predictions=10, separate=10, published=20, forwards=10))
    """
    if len({arm.name for arm in arms}) != len(arms) or not arms:
        raise ValueError("arms must be at least one and have distinct names: " + ", ".join(arm.name for arm in arms))
    sampling = sampling or model.defaults
    noise = Noise(prompts, seed_indices, run_seed, model.latent_shape)
    grid = Grid(model, sampling)
    start = grid.start(noise.initial(), model)
    meter = PathMeter(grid, len(arms), len(prompts), start.device) if measure_path else None
    result = Samples({})
    finals = advance(
        model, encode(model, prompts, sampling), start, arms, sampling, grid=grid, noise=noise.at_step,
        with_base=measure_path, observe=meter, progress=progress, cost=result.cost,
    )  # fmt: skip
    result.latents = {arm.name: final.x for arm, final in zip(arms, finals, strict=True)}
    if meter is not None:
        result.path = {arm.name: row for arm, row in zip(arms, meter.length.cpu(), strict=True)}
    if meter is not None and meter.kl is not None:
        result.kl = {arm.name: row for arm, row in zip(arms, meter.kl.cpu(), strict=True)}
    return result


def sample(model: Model, prompts: Sequence[str], arm: Arm, seed: int = 0, sampling: Sampling | None = None) -> Tensor:
    """Sample one arm: images (B, 3, H, W) in [0, 1], prompt i with seed index i. Errors as in `sample_arms`.

    Examples:
        >>> aig.sample(aig.load("tiny"), ["a red star"], aig.Arm("base", schedule="base")).shape
        torch.Size([1, 3, 32, 32])
    """
    samples = sample_arms(model, prompts, list(range(len(prompts))), [arm], seed, sampling)
    with torch.no_grad():
        return model.decode(samples.latents[arm.name])


def to_uint8(images: Tensor) -> Tensor:
    """Round images (B, 3, H, W) in [0, 1] to the bytes (B, H, W, 3) uint8 that a PNG holds.

    Examples:
        >>> aig.to_uint8(torch.full((1, 3, 1, 1), 0.5)).tolist()
        [[[[128, 128, 128]]]]
    """
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
