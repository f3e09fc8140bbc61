"""How often a verdict is false where nothing is true: families at equal size, the gold peak, training seeds.

All arms are equal in truth but for the ends. Run as `python -m benchmarks.coverage hypervolumes`, `peak`, `seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aig.pareto import Contrast, below_peak, bootstrap, contrast

# Of a prompt's noise, how much all arms share; means of images of the demo's arms have 0.3 to 0.8.
SHARED = 0.5
# Standard deviation of a prompt in units of the distance between the ends, in each objective.
NOISE = 0.5
LEVEL, REPLICATES = 0.95, 500
KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed (gamma 4)": lambda rng, shape: rng.gamma(4, size=shape) / 2 - 2,
    "skewed down (gamma 4)": lambda rng, shape: 2 - rng.gamma(4, size=shape) / 2,
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
}


def noise(rng: np.random.Generator, kind: str, arms: int, prompts: int) -> np.ndarray:
    """(arms, prompts) of variance 1, a share of it the same for all arms."""
    common, own = KINDS[kind](rng, (1, prompts)), KINDS[kind](rng, (arms, prompts))
    return SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own


def compare(rng: np.random.Generator, kind: str, sizes: tuple[int, int], prompts: int) -> Contrast:
    """Two families of equal inner arms, half-way beyond the line between the ends."""
    truth = np.array([(0.0, 1.0), (1.0, 0.0), *[(0.7, 0.7)] * sum(sizes)])  # (arms, 2)
    x, y = (truth[:, [axis]] + NOISE * noise(rng, kind, len(truth), prompts) for axis in (0, 1))
    families = {"a": [0, 1, *range(2, 2 + sizes[0])], "b": [0, 1, *range(2 + sizes[0], len(truth))]}
    result = bootstrap({"x": x, "y": y}, REPLICATES, families=families, ends=(0, 1), level=LEVEL)
    return result.hypervolume_difference(("a", "b"))


def fall(rng: np.random.Generator, kind: str, snapshots: int, prompts: int) -> Contrast:
    """Snapshots along a training: the noise of neighbours is alike."""
    values = noise(rng, kind, snapshots, prompts)
    for later in range(1, snapshots):
        values[later] = 0.7 * values[later - 1] + 0.7 * values[later]
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=REPLICATES)
    return below_peak(values[None], counts, LEVEL)


def train(
    rng: np.random.Generator, kind: str, seeds: int, prompts: int, between: float, hierarchical: bool = True
) -> Contrast:
    """One arm against another whose trainings differ by `between` standard errors over prompts, equal on average."""
    prompt = KINDS[kind](rng, (prompts, 1)) + KINDS[kind](rng, (prompts, seeds))
    values = prompt + between * (2 / prompts) ** 0.5 * rng.normal(size=(1, seeds))  # (prompts, seeds)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=REPLICATES)
    left_out = (values.sum(0) - values) / (prompts - 1)
    found = values.mean(0), left_out, counts @ values / prompts
    if not hierarchical:
        found = tuple(part.mean(-1, keepdims=True) for part in found)
    return contrast(*found, LEVEL)


def shares(draw: Callable[[np.random.Generator], Contrast], samples: int) -> tuple[float, float]:
    """In how many samples the interval lies above 0, and in how many below."""
    found = [draw(np.random.default_rng([i, samples])) for i in range(samples)]
    return np.mean([c.low > 0 for c in found]).item(), np.mean([c.high < 0 for c in found]).item()


def _print(name: str, cells: list[tuple[float, float]]) -> None:
    print(f"  {name:<34}" + "".join(f"{f'{100 * a:.1f} / {100 * b:.1f} %':>16}" for a, b in cells), flush=True)


def _table(cases: Mapping[str, Any], prompts: Sequence[int], draw: Callable[..., Contrast], samples: int) -> None:
    """Shares of `draw(rng, kind, case, prompts)`: a column per case, a line per kind of data and number of prompts."""
    print(f"  {'':<34}" + "".join(f"{name:>16}" for name in cases))
    for kind in KINDS:
        for n in prompts:
            each = [lambda rng, of=(kind, case, n): draw(rng, *of) for case in cases.values()]
            cells = [shares(one, samples) for one in each]
            _print(f"{kind}, {n} prompts", cells)


def hypervolumes(samples: int) -> None:
    print(f"ahead / behind, families of equal arms at equal size, intervals at 95 %, {samples} samples each")
    _table({f"{a} against {b}": (a, b) for a, b in ((5, 1), (5, 2), (5, 4))}, (8, 16, 40), compare, samples)


def peak(samples: int) -> None:
    print(f"rise / fall under the peak, snapshots equal in truth, intervals at 95 %, {samples} samples each")
    _table({f"{n} snapshots": n for n in (2, 4, 8)}, (8, 16, 48), fall, samples)


def seeds(samples: int) -> None:
    print(f"above / below the truth, means over training seeds, intervals at 95 %, {samples} samples each")
    print("  between trainings: in standard errors over prompts of one training")
    cases = [(n, between, way) for n in (3, 5) for between in (0, 1, 3) for way in (True, False)]
    for n, between, way in cases:
        named = f"{n} seeds, between {between}, {'two levels' if way else 'prompts alone'}"
        cells = [
            shares(lambda rng, p=p: train(rng, "normal", n, p, between, way), samples)  # noqa: B023
            for p in (8, 16, 40)
        ]
        _print(named, cells)
