"""Candidate schedules: the families, and samplers that propose a whole generation at once and learn from its values.

Every parameter is proposed for every candidate, whichever its family reads, so that the space is one of fixed dimension
that genetic and Bayesian samplers know how to search. A sampler is a function of its seed and of the values it is told:
to resume a search is to propose again and to tell it the values that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Protocol

import numpy as np
import optuna
from optuna.study import StudyDirection

from aig import schedules

FAMILIES = ("power", "step", "constant", "monotone", "free")
SAMPLERS = ("nsga2", "tpe", "random", "grid")
KNOTS = 4
# Where the knots of a piecewise curve may lie; the first and the last are at 0 and 1. The ranges do not meet.
PLACES = ((0.05, 0.45), (0.5, 0.95))
# Of a knot's weight, clipped to [0, 1] after: many curves then begin with the base alone, whose steps they share, or
# end with the tuned model alone, and a step at 0 or 1 takes one prediction where others take two.
WEIGHTS = (-0.25, 1.25)
POWERS = (0.25, 16.0)
NUMBERS: dict[str, Callable[[optuna.Trial], float]] = {
    "power": lambda trial: trial.suggest_float("p", *POWERS, log=True),
    "step": lambda trial: trial.suggest_float("f", 0, 1, step=0.02),
    "constant": lambda trial: trial.suggest_float("w", 0, 1, step=0.02),
}


@dataclass(frozen=True)
class Candidate:
    """A schedule that a sampler proposes: its family and its text."""

    family: str
    schedule: str


class Sampler(Protocol):
    """Proposes candidates, and learns what they came to; both in generations."""

    def ask(self, count: int) -> list[Candidate]:
        """So many candidates, fewer where there are no more."""
        ...

    def tell(self, values: np.ndarray) -> None:
        """Values (count, objectives), all maximized, of the candidates that were asked for last."""
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
    """A sampler by name. `places` are the knots' u, or None where they are searched, too; `trials` bounds the grid."""
    if name == "grid":
        return Grid(families, places, trials)
    return Optuna(name, families, places, objectives, population, seed)


class Optuna:
    """Optuna's samplers by ask and tell: NSGA-II (Deb et al. 2002), multi-objective TPE (Ozaki et al. 2022), random."""

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
        numbers = {name: suggest(trial) for name, suggest in NUMBERS.items() if name in self.families}
        curve = self._knots(trial) if set(self.families) - set(NUMBERS) else ([], [])
        if family in numbers:
            return Candidate(family, _with_number(family, numbers[family]))
        return Candidate(family, _curve(family, *curve))

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
    """Evenly spaced curves of every family, as many a family as `trials` allows, in a fixed order."""

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
    where = list(places) if places else [0, 0.3, 0.7, 1]
    levels, found = 2, _corners(family, 2)
    while len(finer := _corners(family, levels + 1)) <= most:
        levels, found = levels + 1, finer
    return [Candidate(family, _curve(family, where, weights)) for weights in found]


def _corners(family: str, levels: int) -> list[tuple[float, ...]]:
    values = np.linspace(0, 1, levels).tolist()
    if family == "monotone":
        return list(combinations_with_replacement(values, KNOTS))
    return list(product(values, repeat=KNOTS))


def _with_number(family: str, value: float) -> str:
    return schedules.format_name(schedules.WITH_NUMBER[family](float(f"{value:.3g}")))


def _curve(family: str, places: Sequence[float], weights: Sequence[float]) -> str:
    clipped = [min(max(w, 0.0), 1.0) for w in weights]
    if family == "monotone":
        clipped.sort()
    knots = [(round(u, 3), round(w, 3)) for u, w in zip(places, clipped, strict=True)]
    return schedules.format_name(schedules.piecewise(knots))
