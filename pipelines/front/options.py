"""What can be had from some trainings: the options that a map compares, the same in every setting of a run.

An option is a way to sample the adapters of one or several trainings, as "AIG on KL 0" or "KL 0, 1 and 10". Its arms
are the plain adapters of its trainings and what the way makes of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipelines.front.families import FAMILIES
from pipelines.study import rivals
from pipelines.study.arms import Study, StudyArm

PLAIN = "plain"
"""The way of adapters as they were trained."""
RECIPE = 0.1
"""The path length of the adapter that the recipe takes, root of the mean over steps in units of eps: between what did
best of each setting's KL weights in an exploration (LOG.md)."""
BY_LENGTH = "KL by path length"
SOUP = "soup"
"""The way that averages the adapters of all its trainings."""
TRAINED = ("tuned", "kl", "early_kl", "trial")
"""Families of plain adapters."""


@dataclass(frozen=True, order=True)
class Option:
    """A way to sample the adapters of some trainings."""

    trainings: tuple[str, ...]
    """As "KL 10"; none for a way that samples the base."""
    way: str
    """`PLAIN`, or a family without its prefix."""

    @property
    def budget(self) -> int:
        """How many trainings it takes."""
        return len(self.trainings)

    @property
    def is_pair(self) -> bool:
        """Whether it takes the unregularized training and one other, and so arms that each has by itself."""
        return self.budget == 2 and self.way != SOUP

    @property
    def name(self) -> str:
        """In words."""
        on = joined(self.trainings)
        if self.way == PLAIN:
            return on
        words = FAMILIES.get(self.way, self.way)
        return f"{words} on {on}" if on else words


def joined(trainings: tuple[str, ...]) -> str:
    """Trainings in words: "KL 0, 1 and 10"."""
    short = [text.removeprefix("KL ") if i else text for i, text in enumerate(trainings)]
    return " and ".join([", ".join(short[:-1]), short[-1]]) if len(short) > 1 else "".join(short)


def training(arm: StudyArm) -> str | None:
    """The training of an arm's adapter, in words that every setting shares; None for the base."""
    if arm.kl_weight is None:
        return None
    return f"KL {arm.kl_weight:g}" + (f" ({arm.kl_steps})" if arm.kl_steps else "")


def way(arm: StudyArm) -> str:
    """The way of an arm, whatever its adapter."""
    return PLAIN if arm.family in TRAINED else arm.family.rpartition("-")[2]


def options(single: Study) -> dict[Option, list[int]]:
    """Every option of a study with the indices of its arms, without the base.

    From one training each way on it; from several the plain adapters of the unregularized one and one other, and, if
    there are more, of all with a KL on the last steps; the ways on all of those too.
    Averaged adapters take all of their trainings.
    """
    places: dict[tuple[str | None, str], list[int]] = {}
    for a, arm in enumerate(single.arms):
        if arm.family not in ("base", SOUP):
            places.setdefault((training(arm), way(arm)), []).append(a)
    trainings = [name for name, kind in places if name is not None and kind == PLAIN]
    ways = list(dict.fromkeys(kind for name, kind in places if name is not None))
    found: dict[Option, list[int]] = {}
    for chosen in _sets(trainings, single):
        for kind in ways:
            own = [place for name in chosen for place in places.get((name, kind), ())]
            if own:
                plain = [place for name in chosen for place in places[name, PLAIN]]
                found[Option(chosen, kind)] = own if kind == PLAIN else plain + own
    for (name, kind), own in places.items():
        if name is None:
            found[Option((), kind)] = own
    for a, arm in enumerate(single.arms):
        if arm.family == SOUP:
            chosen = _averaged(single, arm)
            plain = [place for name in chosen for place in places.get((name, PLAIN), ())]
            found.setdefault(Option(chosen, SOUP), plain).append(a)
    return found


def recipe(single: Study, lengths: Mapping[str, float]) -> dict[Option, list[int]]:
    """The options of the one KL-regularized training whose path length is nearest `RECIPE`, on a log scale.

    One rule for all settings, in each of which a KL weight means something else. `lengths`: by training, of those with
    a KL on the last steps. None without a length.
    """
    if not lengths:
        return {}
    chosen = min(lengths, key=lambda name: abs(math.log(lengths[name] / RECIPE)))
    return {
        replace(option, trainings=(BY_LENGTH,)): arms
        for option, arms in options(single).items()
        if option.trainings == (chosen,)
    }


def _averaged(single: Study, soup: StudyArm) -> tuple[str, ...]:
    """The trainings of an averaged adapter: one of another study by its adapter, without its training seed."""
    own = {arm.arm.adapter: training(arm) for arm in single.arms if way(arm) == PLAIN}
    names = rivals.saved(soup.arm)
    return tuple(own.get(name) or re.sub(r"-s\d+$", "", name) for name in names)


def _sets(trainings: list[str], single: Study) -> Iterator[tuple[str, ...]]:
    yield from ((name,) for name in trainings)
    first, *others = trainings
    yield from ((first, other) for other in others)
    early = {training(arm) for arm in single.arms if arm.kl_steps}
    last = tuple(name for name in trainings if name not in early)
    if len(last) > 2:
        yield last
