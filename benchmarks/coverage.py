"""How often intervals and verdicts are right, on data whose truth is known.

python -m benchmarks.coverage                    # means over prompts, 4000 samples each
python -m benchmarks.coverage means 1000
python -m benchmarks.coverage hypervolumes 1000  # families of unequal size, equal in truth
python -m benchmarks.coverage peak 1000          # gold that does not fall under its peak
python -m benchmarks.coverage seeds 1000         # several training seeds
python -m benchmarks.coverage chain 200          # a whole report on one adapter under many names (minutes: it samples)

Of means, a sample is an arm of a call of 250, each call with its own data and replicates; at 4000 samples a share of
95 % has a standard error of 0.35 %. `nested` has the same images twice: averaged over their seeds, and with seeds
resampled too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aig.pareto import bootstrap
from aig.pareto.intervals import METHODS
from benchmarks import chain, verdicts

PROMPTS, AT_ONCE, SEEDS = (8, 16, 40), 250, 4
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def nested(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(arms, prompts, seeds): prompts differ in their mean and in how noisy their seeds are."""
    spread = rng.exponential(size=(*shape, 1))
    return rng.normal(size=(*shape, 1)) + spread * rng.normal(size=(*shape, SEEDS))


def accuracies(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(arms, prompts): how many of 8 images are right, mostly all."""
    return rng.binomial(8, rng.beta(9, 1, size=shape)) / 8


DATA: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "uniform": (lambda rng, shape: rng.uniform(-1, 1, size=shape), 0.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal, sigma 0.5": (lambda rng, shape: rng.lognormal(0, 0.5, size=shape), float(np.exp(0.125))),
    "lognormal, sigma 1": (lambda rng, shape: rng.lognormal(0, 1, size=shape), float(np.exp(0.5))),
    "accuracies, mean 0.9": (accuracies, 0.9),
    "nested, averaged": (lambda rng, shape: nested(rng, shape).mean(2), 0.0),
    "nested, seeds resampled": (nested, 0.0),
}


def coverage(draw: Draw, truth: float, prompts: int, method: str, samples: int) -> tuple[float, float]:
    """Share of intervals at 95 % that hold the truth, and their mean width."""
    hits, widths = [], []
    for call in range(-(-samples // AT_ONCE)):
        data = draw(np.random.default_rng([call, prompts]), (AT_ONCE, prompts))
        low, high = bootstrap({"": data}, method=method, seed=call).interval[""].T
        hits.append((low <= truth + 1e-12) & (truth - 1e-12 <= high))  # a mean of ninths is 0.9 but for its rounding
        widths.append(high - low)
    return float(np.mean(hits)), float(np.mean(widths))


def means(samples: int) -> None:
    print(f"coverage of 95 % intervals of means over prompts, {samples} samples each, and their mean width")
    print(f"  {'':<26}" + "".join(f"{f'{method}, {n} prompts':>24}" for method in METHODS for n in PROMPTS))
    for name, (draw, truth) in DATA.items():
        found = [coverage(draw, truth, n, method, samples) for method in METHODS for n in PROMPTS]
        cells = "".join(f"{f'{100 * share:.1f} % ({width:.3f})':>24}" for share, width in found)
        print(f"  {name:<26}{cells}", flush=True)


def chains(draws: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        chain.chain(draws, Path(place))


WHAT = {
    "means": (means, 4000),
    "hypervolumes": (verdicts.hypervolumes, 1000),
    "peak": (verdicts.peak, 1000),
    "seeds": (verdicts.seeds, 1000),
    "chain": (chains, 200),
}


def main(arguments: list[str]) -> None:
    named = arguments[0] if arguments and arguments[0] in WHAT else "means"
    rest = arguments[1:] if arguments[:1] == [named] else arguments
    if len(rest) > 1 or not all(text.isdecimal() for text in rest):
        sys.exit(f"python -m benchmarks.coverage [{' | '.join(WHAT)}] [samples]: {' '.join(arguments)!r} is neither")
    run, samples = WHAT[named]
    run(int(rest[0]) if rest else samples)


if __name__ == "__main__":
    main(sys.argv[1:])
