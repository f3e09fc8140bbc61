"""Candidate schedules: their families, and samplers that propose a generation at once and learn from its values.

Every candidate gets every parameter, whichever of them its family reads, so the space has a fixed dimension, as genetic
and Bayesian samplers need. A sampler depends on its seed and the known values alone: a search is resumed by
proposing again and telling it the known values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Protocol

import numpy as np
import optuna
from optuna.study import StudyDirection

from aig import schedules

FAMILIES = ("power", "step", "constant", "monotone", "free", "ramp", "scaled")
SAMPLERS = ("nsga2", "tpe", "random", "grid")
KNOTS = 4
# Ranges of the inner knots of a piecewise curve; they do not meet. The first and the last knot are at 0 and 1.
PLACES = ((0.05, 0.45), (0.5, 0.95))
# Range of a knot's weight before it is clipped to [0, 1]. So many curves begin with the base alone, whose steps they
# share, or end with the tuned model alone; and a step at 0 or 1 takes one prediction, others take two.
WEIGHTS = (-0.25, 1.25)
POWERS = (0.25, 16.0)
# Ranges of the progress at which a ramp leaves 0, and of the weight at the end of ramps and scaled powers. A moderately
# regularized adapter bears about 4 at the last step, a weak one 16.
STARTS = (0.0, 0.9)
TOPS = (0.5, 16.0)
FORMS: dict[str, Callable[[optuna.Trial], str]] = {
    "power": lambda trial: _with_number("power", trial.suggest_float("p", *POWERS, log=True)),
    "step": lambda trial: _with_number("step", trial.suggest_float("f", 0, 1, step=0.02)),
    "constant": lambda trial: _with_number("constant", trial.suggest_float("w", 0, 1, step=0.02)),
    "ramp": lambda trial: _ramp(
        trial.suggest_float("start", *STARTS, step=0.05), trial.suggest_float("top", *TOPS, log=True)
    ),
    "scaled": lambda trial: _scaled(
        trial.suggest_float("factor", *TOPS, log=True), trial.suggest_float("exponent", *POWERS, log=True)
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A proposed schedule: its family and its text."""

    family: str
    schedule: str


class Sampler(Protocol):
    """Proposes candidates and learns their values, both in generations."""

    def ask(self, count: int) -> list[Candidate]:
        """`count` candidates, or fewer if there are no more."""
        ...

    def tell(self, values: np.ndarray) -> None:
        """Learn the values (count, objectives), all maximized, of the last candidates."""
        ...


def sampler(
    name: str,
    families: Sequence[str],
    places: Sequence[float] | None,
    objectives: int,
    population: int,
    trials: int,
    seed: int,
) -> Sampler:
    """A sampler by name. `places`: the knots' u, or None to search them too; `trials` bounds the grid."""
    if name == "grid":
        return Grid(families, places, trials)
    return Optuna(name, families, places, objectives, population, seed)


class Optuna:
    """Optuna's samplers: NSGA-II (Deb et al. 2002), multi-objective TPE (Ozaki et al. 2022), random."""

    def __init__(
        self,
        name: str,
        families: Sequence[str],
        places: Sequence[float] | None,
        objectives: int,
        population: int,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.families, self.places = tuple(families), places
        self.study = optuna.create_study(
            directions=[StudyDirection.MAXIMIZE] * objectives, sampler=_optuna_sampler(name, population, seed)
        )
        self.asked: list[optuna.Trial] = []

    def ask(self, count: int) -> list[Candidate]:
        self.asked = [self.study.ask() for _ in range(count)]
        return [self._candidate(trial) for trial in self.asked]

    def tell(self, values: np.ndarray) -> None:
        for trial, row in zip(self.asked, values.tolist(), strict=True):
            self.study.tell(trial, row)

    def _candidate(self, trial: optuna.Trial) -> Candidate:
        family = str(trial.suggest_categorical("family", self.families))
        texts = {name: suggest(trial) for name, suggest in FORMS.items() if name in self.families}
        curve = self._knots(trial) if set(self.families) - set(FORMS) else ([], [])
        return Candidate(family, texts[family] if family in texts else _curve(family, *curve))

    def _knots(self, trial: optuna.Trial) -> tuple[list[float], list[float]]:
        """Places and weights of a curve's knots."""
        asked = () if self.places else enumerate(PLACES, 1)
        inner = [trial.suggest_float(f"u{i}", *bounds, step=0.05) for i, bounds in asked]
        weights = [trial.suggest_float(f"w{i}", *WEIGHTS, step=0.05) for i in range(KNOTS)]
        return list(self.places or [0, *inner, 1]), weights


def _optuna_sampler(name: str, population: int, seed: int) -> optuna.samplers.BaseSampler:
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=population, constant_liar=True, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


class Grid:
    """Evenly spaced curves of every family, as many per family as `trials` allows, in a fixed order."""

    def __init__(self, families: Sequence[str], places: Sequence[float] | None, trials: int) -> None:
        share = max(2, trials // len(families))
        self.left = [candidate for family in families for candidate in _lattice(family, places, share)]

    def ask(self, count: int) -> list[Candidate]:
        asked, self.left = self.left[:count], self.left[count:]
        return asked

    def tell(self, values: np.ndarray) -> None:
        pass


def _lattice(family: str, places: Sequence[float] | None, most: int) -> list[Candidate]:
    if family == "power":
        return [Candidate(family, _with_number(family, p)) for p in np.geomspace(*POWERS, most)]
    if family in ("step", "constant"):
        return [Candidate(family, _with_number(family, x)) for x in np.linspace(0, 1, most)]
    if family in ("ramp", "scaled"):
        rows = math.isqrt(most)
        tops = np.geomspace(*TOPS, most // rows).tolist()
        if family == "ramp":
            return [Candidate(family, _ramp(u, w)) for u, w in product(np.linspace(*STARTS, rows).tolist(), tops)]
        return [Candidate(family, _scaled(w, p)) for p, w in product(np.geomspace(*POWERS, rows).tolist(), tops)]
    knots = list(places) if places else [0, 0.3, 0.7, 1]
    levels, corners = 2, _corners(family, 2)
    while len(finer := _corners(family, levels + 1)) <= most:
        levels, corners = levels + 1, finer
    return [Candidate(family, _curve(family, knots, weights)) for weights in corners]


def _corners(family: str, levels: int) -> list[tuple[float, ...]]:
    values = np.linspace(0, 1, levels).tolist()
    if family == "monotone":
        return list(combinations_with_replacement(values, KNOTS))
    return list(product(values, repeat=KNOTS))


def _with_number(family: str, value: float) -> str:
    return schedules.format_name(schedules.WITH_NUMBER[family](_short(value)))


def _ramp(start: float, top: float) -> str:
    return schedules.format_name(schedules.ramp(_short(start), _short(top)))


def _scaled(factor: float, p: float) -> str:
    return schedules.format_name(schedules.times(_short(factor), schedules.power(_short(p))))


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _curve(family: str, places: Sequence[float], weights: Sequence[float]) -> str:
    clipped = [min(max(w, 0.0), 1.0) for w in weights]
    if family == "monotone":
        clipped.sort()
    knots = [(round(u, 3), round(w, 3)) for u, w in zip(places, clipped, strict=True)]
    return schedules.format_name(schedules.piecewise(knots))
