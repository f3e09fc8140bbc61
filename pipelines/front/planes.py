"""A study's arms on (reward, diversity): fronts, hypervolumes and their differences, from metrics prompt by prompt.

Hypervolumes start at `front.reference` and are in units of `front.scale`, else at the least of the arms' means and in
units of their range. Every family has the base and the tuned model as end points, since every one reaches both. Arms
whose images are unsound are on no front and in no hypervolume. For several training seeds, hypervolumes and differences
are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aig.pareto import Bootstrap, bootstrap, optimal_mask
from pipelines.config import Front
from pipelines.front.claims import estimate
from pipelines.front.families import FAMILIES, OURS, members
from pipelines.front.results import Difference, Plane
from pipelines.measure.table import Table
from pipelines.show.estimates import Estimate
from pipelines.study import trials
from pipelines.study.arms import Study

RIVALS = ("kl", "early_kl", "trial", "lora", "rlg", "early", "guidance", "autoguidance", "soup", "best")
OF_AIG = ("fixed", "coin")  # what mixes the same two models within them
SAME = ("lora", "fixed")  # rivals on the same adapters too


def _rivals(ours: str) -> Iterator[str]:
    """What a family that anneals is compared with: weight space with its twin in predictions, extrapolation with AIG on
    KL 0 too. Few, since a verdict holds for all of them together; `pipelines.front.map` compares everything."""
    adapter, dash, way = ours.rpartition("-")
    if way.endswith("w"):
        yield ours.removesuffix("w")
        return
    yield from (*RIVALS, *OF_AIG) if way == "aig" else (*RIVALS, "aig")
    yield from (f"{adapter}-{rival}" for rival in SAME if dash and way == "aig")


# Hypervolumes that are compared if a study has both families: each way on KL 0 alone, and on every training.
COMPARISONS = tuple((ours, rival) for ours in OURS for rival in _rivals(ours))
ENDS = ("base", "tuned")


def families(single: Study) -> dict[str, list[int]]:
    """Indices of each family's arms, base and tuned included; omits a family without arms of its own."""
    ends = _ends(single)
    present = {arm.family for arm in single.arms}.difference(ENDS)
    indices = {
        family: ends + [a for a, arm in enumerate(single.arms) if arm.family in members(family)]
        for family in FAMILIES
        if family in present
    }
    return indices | {"all": list(range(len(single.arms)))}


def _ends(single: Study) -> list[int]:
    return [a for a, arm in enumerate(single.arms) if arm.family in ENDS]


def normalization(front: Front, x: str) -> dict[str, Any]:
    """The arguments of a bootstrap that fix hypervolumes on (x, front.diversity); None for what is not configured."""
    return {
        "reference": [front.reference.get(axis) for axis in (x, front.diversity)],
        "scale": [front.scale.get(axis) for axis in (x, front.diversity)],
    }


def same_setting(studies: Sequence[Study], single: Study) -> list[Study]:
    """The study, those of its setting's other training seeds, and their mean."""
    if single.tuned is None:
        return [single]
    name = trials.setting_name(single.tuned)
    return [other for other in studies if other.tuned is not None and trials.setting_name(other.tuned) == name]


def box(front: Front, same: Sequence[Study], table: Table, x: str) -> dict[str, Any]:
    """Reference and scale of hypervolumes on (x, diversity): as configured, else from the means of all sound arms.

    One box for all training seeds of a setting: then the mean of their hypervolumes is one, too.
    """
    arms = {arm.arm.name for other in same for arm in other.arms} - table.broken.keys()
    values = table.rows(sorted(arms))
    points = np.stack([values[axis].mean(1) for axis in (x, front.diversity)], 1)
    points = points[np.isfinite(points).all(1)]
    given = normalization(front, x)
    if not len(points):
        return given
    span = np.ptp(points, axis=0)
    means = {"reference": points.min(0), "scale": np.where(span > 0, span, 1.0)}
    return {
        key: [float(m) if own is None else own for own, m in zip(given[key], means[key], strict=True)] for key in given
    }


def resample(front: Front, single: Study, table: Table, x: str, box: dict[str, Any]) -> Bootstrap:
    """The bootstrap of a study's arms on (x, diversity)."""
    names = [arm.arm.name for arm in single.arms]
    return bootstrap(
        table.rows(names), x=x, y=front.diversity, families=families(single),
        broken=[a for a, name in enumerate(names) if name in table.broken], **box, **front.resampling,
    )  # fmt: skip


def plane(front: Front, single: Study, table: Table, result: Bootstrap) -> Plane:
    """The plane of a bootstrap's axes."""
    names = [arm.arm.name for arm in single.arms]
    means = np.stack([result.mean[result.x], result.mean[result.y]], axis=-1)
    means[list(result.broken)] = np.nan
    fronts = {}
    for family, arms in result.families.items():
        optimal = [arm for arm, keep in zip(arms, optimal_mask(means[list(arms)]), strict=True) if keep]
        fronts[family] = tuple(names[arm] for arm in sorted(optimal, key=lambda a: means[a, 0]))
    each, seeds = _each_seed(front, single, table, result)
    return Plane(
        x=result.x,
        y=result.y,
        reference=tuple(result.reference.tolist()),
        scale=tuple(result.scale.tolist()),
        points={name: (_place(result, result.x, a), _place(result, result.y, a)) for a, name in enumerate(names)},
        fronts=fronts,
        hypervolume={
            family: Estimate(*map(float, each.hypervolume(*(_of(family, s) for s in range(seeds)))))
            for family in result.families
        },
        differences=tuple(
            _difference(single, each, a, b, seeds)
            for a, b in COMPARISONS
            if a in result.families and b in result.families
        ),
    )


def _place(result: Bootstrap, axis: str, a: int) -> Estimate:
    return Estimate(float(result.mean[axis][a]), *map(float, result.interval[axis][a]))


def _each_seed(front: Front, single: Study, table: Table, mean: Bootstrap) -> tuple[Bootstrap, int]:
    """The arms of every training seed at once, each seed's families apart: `_of(family, seed)`; how many seeds."""
    names = single.by_seed(single.arms)
    seeds, arms = range(len(names)), len(single.arms)
    values = table.rows([name for own in names for name in own])
    result = bootstrap(
        {axis: values[axis] for axis in (mean.x, mean.y)},
        families={_of(family, s): [s * arms + a for a in own] for family, own in mean.families.items() for s in seeds},
        ends=[s * arms + a for a in _ends(single) for s in seeds],
        broken=[s * arms + a for a in mean.broken for s in seeds],
        reference=mean.reference, scale=mean.scale, **front.resampling,
    )  # fmt: skip
    return result, len(names)


def _of(family: str, seed: int) -> str:
    return f"{family}, seed {seed}"


def _difference(single: Study, each: Bootstrap, a: str, b: str, seeds: int) -> Difference:
    """Two families at equal size in each training seed, without a verdict yet."""
    pairs = [(_of(a, s), _of(b, s)) for s in range(seeds)]
    contrast = each.hypervolume_difference(*pairs)
    return Difference(
        a, b, *estimate(single, contrast), contrast.p,
        arms=(each.size(pairs[0][0]), each.size(pairs[0][1])), size=each.compared_size(*pairs),
    )  # fmt: skip
