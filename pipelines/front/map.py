"""The map: which way to spend trainings wins, per setting and over all of them, written to `map.json`.

Every option (`pipelines.front.options`) is compared with two references at equal numbers of arms: with AIG on the
unregularized training, and with all KL-regularized trainings. Hypervolumes are on (reward, diversity) for the proxy,
the held-out reward and gold, from the least of a setting's arms, in units of their range. As everywhere, every option
reaches the base and the unregularized model, so an option on KL 10 takes two trainings then; with the base alone as
its end it takes one. Intervals are over prompts and training seeds; over all settings, of the mean of their
differences, the settings taken as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from aig.pareto import Bootstrap, Contrast, bootstrap, contrast, holm
from pipelines.config import ConfigError
from pipelines.config.values import slug
from pipelines.front import planes
from pipelines.front.names import GOLD, ROLES
from pipelines.front.options import PLAIN, Option, options, recipe, training, way
from pipelines.front.results import AHEAD, BEHIND, Verdict, verdict_of
from pipelines.measure.table import Table, read_table
from pipelines.rewards import names as reward_names
from pipelines.show import tables
from pipelines.show.estimates import Estimate, Number, interval, number
from pipelines.study import lengths as study_lengths
from pipelines.study.arms import Study
from pipelines.study.resolved import Resolved

ALL = "all settings"
ENDS = {"base and KL 0": planes.ENDS, "base": planes.ENDS[:1]}
"""What every option reaches, in words, and the families of those arms."""
FILE = "map.json"


@dataclass(frozen=True)
class Contest:
    """An option's hypervolume less a reference's, on one plane, in one setting or over all."""

    setting: str
    plane: str
    """One of ROLES."""
    ends: str
    """One of ENDS."""
    option: str
    against: str
    estimate: Estimate
    p: Number
    size: int
    """At how many arms they were compared."""
    by_seed: tuple[float, ...]
    p_adjusted: Number = np.nan
    """By Holm's method, over all contests of the map."""
    verdict: Verdict | None = None

    @property
    def decided(self) -> bool:
        """Whether either is ahead."""
        return self.verdict in (AHEAD, BEHIND)


@dataclass(frozen=True)
class Volume:
    """What an option attains by itself: the hypervolume of the base and its own arms."""

    setting: str
    plane: str
    option: str
    trainings: int
    arms: int
    estimate: Estimate


@dataclass(frozen=True)
class Map:
    """Who wins where."""

    settings: tuple[str, ...]
    lengths: Mapping[str, Mapping[str, float]]
    """By setting and training, how far its adapter goes (`aig.sampler.tuned_length`), mean over training seeds."""
    volumes: tuple[Volume, ...]
    contests: tuple[Contest, ...]

    @property
    def best(self) -> dict[tuple[str, str, int], Volume]:
        """By setting, plane and number of trainings the option with the largest hypervolume of its own."""
        found: dict[tuple[str, str, int], Volume] = {}
        for volume in self.volumes:
            key = (volume.setting, volume.plane, volume.trainings)
            if key not in found or volume.estimate.value > found[key].estimate.value:
                found[key] = volume
        return found


def compute(study: Resolved, table: Table) -> Map:
    """The map of a run; ConfigError if it has no KL-regularized training to compare with."""
    studies = [
        single for single in study.studies if single.trained and planes.same_setting(study.studies, single)[0] is single
    ]
    if not studies or not any(len({training(arm) for arm in single.arms} - {None}) > 1 for single in studies):
        raise ConfigError(
            "a map compares ways to spend trainings, and this run has no KL-regularized one: give sweep.kl_weights "
            "more than 0, or use --preset map"
        )
    lengths: dict[str, dict[str, float]] = {}
    drawn: dict[tuple[str, str, str, str], list[Drawn]] = {}
    volumes: list[Volume] = []
    contests: list[Contest] = []
    level = study.config.front.level
    for single in studies:
        seeds = range(len(single.train_seeds))
        lengths[single.name] = _lengths(study, single)
        regularized = {
            name: lengths[single.name][name] for name in _regularized(single) if name in lengths[single.name]
        }
        present = options(single) | recipe(single, regularized)
        references = _references(present)
        for role, x in _axes(study, single, table).items():
            for ends, families in ENDS.items():
                result = _bootstrap(study, single, table, x, families, present)
                for option, arms in present.items() if ends == "base" else ():
                    value = Estimate(*result.hypervolume(*(_key(option, s) for s in seeds)))
                    volumes.append(Volume(single.name, role, option.name, option.budget, len(arms), value))
                for option, reference in product(present, references):
                    pairs = [(_key(option, s), _key(reference, s)) for s in seeds]
                    if option == reference or option.is_pair or not (differences := result.volume_differences(*pairs)):
                        continue
                    names = (role, ends, option.name, reference.name)
                    drawn.setdefault(names, []).append(differences)
                    found = contrast(*differences, level=level)
                    contests.append(_contest(single.name, names, found, result.compared_size(*pairs)))
    if len(studies) > 1:
        contests += _over_all(drawn, len(studies), level)
    return Map(tuple(s.name for s in studies), lengths, tuple(volumes), _decided(contests, level))


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What `contrast` takes: values, those without each prompt, and replicates, each by training seed."""


def _over_all(drawn: Mapping[tuple[str, str, str, str], list[Drawn]], settings: int, level: float) -> Iterator[Contest]:
    """The mean over settings of each difference that every setting has; their first seeds together, and so on."""
    for names, each in drawn.items():
        if len(each) == settings and len({len(values) for values, _, _ in each}) == 1:
            values, left_out, replicates = (np.mean(parts, axis=0) for parts in zip(*each, strict=True))
            yield _contest(ALL, names, contrast(values, left_out, replicates, level), 0)


def _contest(setting: str, names: tuple[str, str, str, str], found: Contrast, size: int) -> Contest:
    return Contest(setting, *names, Estimate(found.value, found.low, found.high), found.p, size, found.by_seed)


def _decided(contests: Sequence[Contest], level: float) -> tuple[Contest, ...]:
    adjusted = holm([contest.p for contest in contests])
    return tuple(
        replace(contest, p_adjusted=p, verdict=verdict_of(contest.estimate.value, p, level))
        for contest, p in zip(contests, adjusted, strict=True)
    )


def _axes(study: Resolved, single: Study, table: Table) -> dict[str, str]:
    """The metrics on x by role."""
    other = reward_names.held_out(study.config, single.reward)
    metrics = zip(ROLES, (slug(single.reward), slug(other) if other else None, GOLD), strict=True)
    return {role: metric for role, metric in metrics if metric in table.values}


def _references(present: Collection[Option]) -> list[Option]:
    """AIG on the unregularized training, and all trainings with a KL on the last steps."""
    largest = max((option for option in present if option.way == PLAIN), key=lambda option: option.budget)
    return [option for option in (Option(("KL 0",), "aig"), largest) if option in present]


def _key(option: Option, seed: int) -> str:
    return f"{option.name}, seed {seed}"


def _bootstrap(
    study: Resolved, single: Study, table: Table, x: str, ends: Sequence[str], present: Mapping[Option, list[int]]
) -> Bootstrap:
    """Every option in every training seed; arms of these families are ends, which all options have."""
    front = study.config.front
    names = single.by_seed(single.arms)
    count = len(single.arms)
    common = [a for a, arm in enumerate(single.arms) if arm.family in ends]
    families = {
        _key(option, s): [s * count + a for a in dict.fromkeys([*common, *arms])]
        for option, arms in present.items()
        for s in range(len(names))
    }
    flat = [name for own in names for name in own]
    rows = table.rows(flat)
    return bootstrap(
        {axis: rows[axis] for axis in (x, front.diversity)}, x=x, y=front.diversity, families=families,
        ends=[s * count + a for s in range(len(names)) for a in common],
        broken=[i for i, name in enumerate(flat) if name in table.broken],
        **planes.box(front, planes.same_setting(study.studies, single), table, x), **front.resampling,
    )  # fmt: skip


def _lengths(study: Resolved, single: Study) -> dict[str, float]:
    """The path length of each training of a study, mean over training seeds, if an evaluation has measured it."""
    found: dict[str, float] = {}
    for arm, names in zip(single.arms, zip(*single.by_seed(single.arms), strict=True), strict=True):
        label = training(arm)
        if label is not None and way(arm) == PLAIN:
            known = [length for name in names if (length := study_lengths.read(study.config, name)) is not None]
            if len(known) == len(names):
                found[label] = float(np.mean(known))
    return found


def _regularized(single: Study) -> list[str]:
    """The trainings with a KL on the last steps."""
    return [label for arm in single.arms if arm.family == "kl" and (label := training(arm)) is not None]


def write_map(study: Resolved) -> tuple[Map, Path]:
    """Write `map.json` from what `measure` wrote; ConfigError if that is missing."""
    found = compute(study, read_table(study))
    path = study.directory.root / FILE
    with study.directory.whole(path) as part:
        part.write_bytes(TypeAdapter(Map).dump_json(found, indent=2) + b"\n")
    return found, path


def summary(found: Map) -> str:
    """The map as text: for each reference and plane the options by their difference over all settings, or in the only
    one, beside the value in each setting; then the best option of each budget by itself."""
    settings = [name for name in (ALL, *found.settings) if any(c.setting == name for c in found.contests)]
    tables_of: dict[tuple[str, str, str], dict[str, dict[str, Contest]]] = {}
    for contest in found.contests:
        rows = tables_of.setdefault((contest.against, contest.ends, contest.plane), {})
        rows.setdefault(contest.option, {})[contest.setting] = contest
    lines = []
    for (against, ends, plane), rows in tables_of.items():
        lines += [f"Hypervolume less that of {against}, by {plane}, all with {ends}"]
        whole = {option: own for option, own in rows.items() if settings[0] in own}
        ordered = sorted(whole.items(), key=lambda item: -item[1][settings[0]].estimate.value)
        cells = [["", settings[0], *settings[1:]]]
        for option, own in ordered:
            first = own[settings[0]]
            cells.append([option, interval(first.estimate, plus=True) + _star(first)])
            cells[-1] += [
                number(c.estimate.value, plus=True) + _star(c) if (c := own.get(s)) else "–" for s in settings[1:]
            ]
        lines += [tables.aligned(cells), ""]
    for setting, lengths in found.lengths.items():
        known = ", ".join(f"{label} {length:.3f}" for label, length in lengths.items())
        lines += [f"Path lengths of {setting}: {known}"] if known else []
    lines.append("Best by itself, with the base alone")
    for (setting, plane, budget), best in sorted(found.best.items()):
        cost = f"{budget} training{'s' * (budget != 1)}"
        lines.append(f"{setting}, {plane}, {cost}: {best.option} {interval(best.estimate)}")
    count = sum(c.verdict is not None for c in found.contests)
    return "\n".join([*lines, "", f"* decided at the level of the intervals, of {count} contests together (Holm)"])


def _star(contest: Contest) -> str:
    return "*" if contest.decided else " "
