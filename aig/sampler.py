"""The sampling loop: many arms from the same noise at once, each state stepped once and each prediction made once.

Arms that start from the same noise and have had the same weights so far share one state; the loop makes each prediction
of a state at most once, all in one routed forward. The published arms (base, tuned, linear, power:2, power:4, step:0.6)
at T = 25 then need 199 predictions per (prompt, seed), and 132 if the annealed ones act in weight space. Separate loops
need 222; the published script, which makes both predictions at every step of every arm, 300. Gradients flow through the
loop wherever they are enabled: DRaFT's last K steps run through it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aig import adapters
from aig.arm import Arm
from aig.grid import Grid, State
from aig.models.protocol import Condition, Model, Sampling
from aig.path import Observer, PathMeter
from aig.steps import Call, Plan, Step

__all__ = [
    "Arm", "Cost", "Grid", "Noise", "Samples", "Sampling", "State", "advance", "encode", "sample", "sample_arms",
    "to_uint8", "tuned_length",
]  # fmt: skip


@dataclass
class Cost:
    """Predictions (denoiser evaluations) per (prompt, seed); guidance's two halves count as one."""

    predictions: float = 0
    """A fraction only if an image's coin, but not every image's, took a model that no other arm needed."""
    separate: float = 0
    """Predictions of one loop per arm: one in weight space, by a coin, and if the weight is 0 or 1 (two if distances
    are measured), else two."""
    published: int = 0
    """Predictions of the published script: two at every step of every arm, base and tuned included."""
    forwards: int = 0
    """Forwards of the whole call."""

    def counts(self) -> dict[str, float]:
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

    def uniform(self, tag: str) -> Tensor:
        """A uniform number in [0, 1) for each image, (G,) in float64 on the CPU, always the same for the same tag."""
        return torch.tensor([seed / 2**63 for seed in self._seeds(tag)], dtype=torch.float64)

    def _seeds(self, tag: str) -> list[int]:
        digests = [hashlib.blake2b(f"{key}\0{tag}".encode(), digest_size=8).digest() for key in self.keys]
        return [int.from_bytes(digest, "big") >> 1 for digest in digests]

    def initial(self) -> Tensor:
        return self.draw("initial")

    def at_step(self, i: int) -> Tensor:
        return self.draw(f"step {i}")

    def coin(self, i: int) -> Tensor:
        return self.uniform(f"coin {i}")


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
    coin: Callable[[int], Tensor] | None = None,
    with_base: bool = False,
    observe: Observer | None = None,
    progress: Callable[[int], None] | None = None,
    cost: Cost | None = None,
) -> list[State]:
    """Run steps first..last-1 for all arms from the shared latents x_t (G, C, H, W); returns the arms' states in order.

    `noise(i)` gives the variance noise (G, C, H, W) of step i, which a stochastic step needs, and `coin(i)` the uniform
    numbers (G,) that a coin's schedule needs. `with_base` also makes the base's prediction at every arm's own state,
    without gradient, for `observe`. Raises ValueError for an adapter that is not loaded, for weight space with an
    adapter that is no LoRA, and for a coin without its numbers.
    """
    grid = grid or Grid(model, sampling)
    last = len(grid) if last is None else last
    plans = [Plan(model, grid, arm, sampling) for arm in arms]
    # The distinct states, and the index of each arm's. A state that forks takes its memory along.
    states, at = [x_t if isinstance(x_t, State) else State(x_t)], [0] * len(arms)
    with _fuser(model, sampling) as fuser:
        for i in range(first, last):
            steps = [plan.step(i, coin) for plan in plans]
            calls: dict[Call, set[int]] = {}  # the rows of each, in order of insertion
            for a, step in enumerate(steps):
                for call, rows in step.calls(at[a], len(states[0])):
                    calls.setdefault(call, set()).update(rows)
            base = [Call(at[a], adapters.BASE, step.guidance) for a, step in enumerate(steps)]
            extra: dict[Call, set[int]] = {}
            for call in base if with_base else ():
                (calls if call in calls else extra)[call] = set(range(len(states[0])))
            predictions = _predict(model, condition, grid, i, states, calls, sampling, cost, fuser)
            with torch.no_grad():
                predictions |= _predict(model, condition, grid, i, states, extra, sampling, cost, fuser)
            if cost is not None:
                made = sum(len(rows) for rows in (calls | extra).values())
                cost.predictions += made // len(states[0]) if made % len(states[0]) == 0 else made / len(states[0])
                cost.separate += sum(step.predictions + (step.without_base if with_base else 0) for step in steps)
                cost.published += 2 * len(arms)
            variance_noise = noise(i).to(states[0].x) if noise is not None and grid.stochastic else None
            stepped: dict[tuple[int, Step], int] = {}
            moved, mixes = [], {}
            for a, step in enumerate(steps):
                kind = (at[a], step)
                if kind not in stepped:
                    mixes[kind] = step.mixed(predictions, at[a])
                    stepped[kind] = len(moved)
                    moved.append(grid.move(i, mixes[kind], states[at[a]], variance_noise))
                if observe is not None:
                    observe(i, a, states[at[a]], mixes[kind], predictions.get(base[a]))
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


def _predict(
    model: Model,
    condition: Condition,
    grid: Grid,
    i: int,
    states: list[State],
    calls: Mapping[Call, set[int]],
    sampling: Sampling,
    cost: Cost | None,
    fuser: adapters.Fuser | None,
) -> dict[Call, Tensor]:
    """The prediction of each call, zero in rows that it does not need: one forward for all of one guidance scale, or
    one per adapter, of at most max_rows."""
    results: dict[Call, Tensor] = {}
    groups: dict[tuple[Any, ...], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.guidance, call.route if sampling.passes == 2 else None), []).append(call)
    ordered = list(groups.values())
    if fuser is not None:
        ordered.sort(key=lambda group: group[0].route != fuser.current)  # the folded one goes first
    count, block = len(states[0]), sampling.block
    everything = list(range(count))
    chunk = max(sampling.max_rows // block, 1) * block
    for group in ordered:
        own = [sorted(calls[call]) for call in group]
        padded = [rows + rows[-1:] * (-len(rows) % block) for rows in own]  # the last row is repeated
        x = [
            states[call.state].x if rows == everything else states[call.state].x[rows]
            for call, rows in zip(group, padded, strict=True)
        ]
        x = grid.scaled(i, torch.cat(x))
        texts = condition if padded == [everything] else condition[[row for rows in padded for row in rows]]
        names = [call.route for call, rows in zip(group, padded, strict=True) for _ in rows]
        if fuser is not None:
            fuser.switch(names[0])
            names = [adapters.BASE] * len(names)
        parts = []
        for begin in range(0, len(x), chunk):
            part = slice(begin, begin + chunk)
            parts.append(model.predict(x[part], grid.times[i], texts[part], names[part], group[0].guidance))
            if cost is not None:
                cost.forwards += 1
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        for call, rows, prediction in zip(group, own, out.split([len(rows) for rows in padded]), strict=True):
            kept = prediction[: len(rows)]
            if rows != everything:
                kept = kept.new_zeros(count, *kept.shape[1:]).index_copy(
                    0, torch.tensor(rows, device=kept.device), kept
                )
            results[call] = kept
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
    grid, condition, result = Grid(model, sampling), encode(model, prompts, sampling), Samples({})
    for offset in dict.fromkeys(arm.seed_offset for arm in arms):
        own = [arm for arm in arms if arm.seed_offset == offset]
        noise = Noise(prompts, [index + offset for index in seed_indices], run_seed, model.latent_shape)
        start = grid.start(noise.initial(), model)
        meter = PathMeter(grid, len(own), len(prompts), start.device) if measure_path else None
        finals = advance(
            model, condition, start, own, sampling, grid=grid, noise=noise.at_step,
            coin=noise.coin, with_base=measure_path, observe=meter, progress=progress, cost=result.cost,
        )  # fmt: skip
        result.latents |= {arm.name: final.x for arm, final in zip(own, finals, strict=True)}
        if meter is not None:
            result.path |= {arm.name: row for arm, row in zip(own, meter.length.cpu(), strict=True)}
        if meter is not None and meter.kl is not None:
            result.kl |= {arm.name: row for arm, row in zip(own, meter.kl.cpu(), strict=True)}
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


def tuned_length(
    model: Model,
    adapter: str,
    prompts: Sequence[str],
    seeds: int | Sequence[int] = 8,
    run_seed: int = 0,
    sampling: Sampling | None = None,
) -> float:
    """How far an adapter goes from the base: the root of its mean path length at weight 1, in units of eps.

    Over these seed indices of each prompt, or the first so many, each on the tuned model's own trajectory
    (`PathMeter.length`). A schedule with an `auto` weight is `fitted` by it. Errors as in `sample_arms`.

    Examples:
        >>> model = aig.load("tiny")
        >>> aig.adapters.attach(model.denoiser, "tuned")
        >>> aig.sampler.tuned_length(model, "tuned", ["a red star"], seeds=1)  # a new adapter changes nothing yet
        0.0
    """
    indices = range(seeds) if isinstance(seeds, int) else seeds
    pairs = [(prompt, seed) for prompt in prompts for seed in indices]
    samples = sample_arms(
        model, [p for p, _ in pairs], [s for _, s in pairs], [Arm("", adapter)], run_seed, sampling, measure_path=True
    )
    return float(samples.path[""].double().mean().sqrt())


def to_uint8(images: Tensor) -> Tensor:
    """Round images (B, 3, H, W) in [0, 1] to the bytes (B, H, W, 3) uint8 that a PNG holds.

    Examples:
        >>> aig.to_uint8(torch.full((1, 3, 1, 1), 0.5)).tolist()
        [[[[128, 128, 128]]]]
    """
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
