"""Pareto fronts of every study, with intervals, written to `front.json`: reward on x, diversity on y, both up.

The unit is the prompt, resampled for all arms at once. The verdict on a difference is adjusted, by Holm's method, for
all that the run compares: every pair of families on every plane of every setting. A setting of several training seeds
counts once, as their mean; its single seeds have no verdicts of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import indent

from aig.pareto import Bootstrap, holm
from pipelines.config import Config, ConfigError
from pipelines.config import Front as Settings
from pipelines.config.values import slug
from pipelines.front import loading
from pipelines.front import planes as front_planes
from pipelines.front import table as front_table
from pipelines.front.claims import claims
from pipelines.front.names import GOLD, ROLES, box_words, cost_words
from pipelines.front.results import Arm, Difference, Front, StudyResult, verdict_of
from pipelines.measure.table import Table, read_rows, read_table
from pipelines.rewards import names as reward_names
from pipelines.runs.directory import RunDir
from pipelines.show.estimates import Estimate, decimals, difference, interval, number
from pipelines.show.tables import aligned
from pipelines.study import trials
from pipelines.study.arms import Study
from pipelines.study.prompts import prompt_lists
from pipelines.study.resolved import Resolved

Measured = Mapping[str, Mapping[str, Estimate]]
"""Metrics of each arm."""


def write_front(study: Resolved) -> Path:
    """Write `front.json`, and all arms as `table.csv`, from what `measure` wrote; ConfigError if that is missing."""
    files = study.directory
    table, measured = read_table(study), _measured(files)
    _check_axes(study.config.front, table)
    cost = files.read_json(files.arms)["cost"] if files.arms.exists() else {}
    front = compute(study, table, measured, cost)
    front_table.write(files, front.studies)
    loading.write_front(files, front)
    return files.front


def compute(study: Resolved, table: Table, measured: Measured, cost: Mapping[str, float]) -> Front:
    """The results of a run.

    measured: each arm's metrics, in the order in which they are shown. cost: predictions per (prompt, seed).
    """
    config, settings = study.config, study.config.front
    studies = [
        _study(config, each, front_planes.same_setting(study.studies, each), table, measured) for each in study.studies
    ]
    return Front(
        diversity=settings.diversity, level=settings.level, n_bootstrap=settings.bootstrap, seed=settings.seed,
        interval=settings.interval, prompts=len(table.prompts), prompt_lists=prompt_lists(config), seeds=table.seeds,
        cost=dict(cost), studies=decide(studies, settings.level),
    )  # fmt: skip


def _measured(files: RunDir) -> Measured:
    metrics: dict[str, dict[str, Estimate]] = {}
    for row in read_rows(files):
        metrics.setdefault(row["arm"], {})[row["metric"]] = Estimate(row["value"], row["low"], row["high"])
    return metrics


def _check_axes(settings: Settings, table: Table) -> None:
    """ConfigError for a reference or scale of what is no metric: it would go unheeded."""
    for key in ("reference", "scale"):
        unknown = [metric for metric in getattr(settings, key) if metric not in table.values]
        if unknown:
            raise ConfigError(f"front.{key}: {unknown[0]!r} is no metric of the run; it has {', '.join(table.values)}")


def _study(config: Config, single: Study, same: list[Study], table: Table, measured: Measured) -> StudyResult:
    proxy, other = slug(single.reward), reward_names.held_out(config, single.reward)
    held_out = slug(other) if other else None
    results = {}
    for x in dict.fromkeys((proxy, held_out, GOLD)):
        if x is not None and x in table.values:
            box = front_planes.box(config.front, same, table, x)
            results[x] = front_planes.resample(config.front, single, table, x, box)
    arms = range(len(single.arms))
    return StudyResult(
        name=single.name,
        reward=proxy,
        held_out=held_out,
        k=single.k,
        train_seeds=single.train_seeds,
        varied=trials.varied_settings(config, single.tuned) if single.tuned else {},
        leading=single is same[0],
        trainings={family: single.trainings(own) for family, own in front_planes.families(single).items()},
        arms=tuple(_arm(single, a, table, measured, results[proxy]) for a in arms),
        dominance=tuple(tuple(float(results[proxy].dominates(a, b)) for b in arms) for a in arms),
        planes={x: front_planes.plane(config.front, single, table, result) for x, result in results.items()},
        claims=claims(config.front, single, table, proxy, held_out),
    )


def _arm(single: Study, a: int, table: Table, measured: Measured, result: Bootstrap) -> Arm:
    arm = single.arms[a]
    name = arm.arm.name
    return Arm(
        **{**arm.to_dict(), "members": arm.members, "candidates": tuple(one.name for one in arm.candidates)},
        images=len(table.prompts) * table.seeds * max(1, len(arm.members)),
        front_probability=float(result.front_probability[a]),
        broken=table.broken.get(name),
        warning=table.warned.get(name),
        metrics=measured.get(name, {}),
    )


def decide(studies: Sequence[StudyResult], level: float) -> tuple[StudyResult, ...]:
    """Give each difference of the leading studies its verdict.

    The p-values are adjusted over all of them: if no family is ahead of another, a report says so of any in at most a
    share 1 − level.
    """
    leading = [study for study in studies if study.leading]
    differences = [d for study in leading for plane in study.planes.values() for d in plane.differences]
    adjusted = iter(holm([difference.p for difference in differences]))
    return tuple(_decided(study, adjusted, level) if study.leading else study for study in studies)


def _decided(study: StudyResult, adjusted: Iterator[float], level: float) -> StudyResult:
    def verdict(difference: Difference) -> Difference:
        p = next(adjusted)
        return replace(difference, p_adjusted=p, verdict=verdict_of(difference.estimate.value, p, level))

    planes = {
        x: replace(plane, differences=tuple(map(verdict, plane.differences))) for x, plane in study.planes.items()
    }
    return replace(study, planes=planes)


def summary(path: Path) -> str:
    """The fronts of every study in a few lines each; differences if they are compared, not for each training seed."""
    front = loading.read_front(RunDir(path.parent))
    lines = [front.no_interval] if front.no_interval else []
    for study in front.studies:
        lines += _study_lines(study)
    if front.comparisons:
        lines.append(
            "4|1 at 1: families of 4 arms and 1, compared at 1 each; (2): the trainings that a family pays for, if two "
            "differ"
        )
        lines.append(
            f"verdicts hold together at {front.percent} (Holm, {front.comparisons} comparisons: every plane of every "
            "study)"
        )
    cost = cost_words(front.cost, " per (prompt, seed)")
    return "\n".join([*lines, f"cost: {cost}"] if cost else lines)


def _study_lines(study: StudyResult) -> Iterator[str]:
    how = f"training seeds {list(study.train_seeds)}" if study.trained else "an adapter from elsewhere"
    yield f"{study.name}: reward {study.reward}, {how}"
    for x, plane in study.planes.items():
        yield f"  front by {_role(study, x)}: {', '.join(study.by_name[name].label for name in plane.fronts['all'])}"
    for arm in study.arms:
        if arm.broken:
            yield f"  broken, on no front: {arm.label} ({arm.broken})"
        if arm.warning:
            yield f"  warning: {arm.label} ({arm.warning})"
    for claim in study.claims:
        yield f"  {study.statement(claim)}: {difference(claim.estimate, claim.by_seed)}"
    for x, plane in study.planes.items() if study.leading else ():
        if plane.differences:
            yield f"  by {_role(study, x)}, {box_words((plane.x, plane.y), plane.reference, plane.scale)}"
            yield indent(_comparisons(study, plane.differences), "    ")


def _comparisons(study: StudyResult, differences: Sequence[Difference]) -> str:
    """A table of a plane's differences, with a column for the values of several training seeds."""
    seeds = study.train_seeds if len(study.train_seeds) > 1 else ()
    by_seed = [f"by seed {', '.join(map(str, seeds))}"] if seeds else []
    rows = [["family", "less", "arms", "difference", *by_seed, "verdict (adjusted p)"]]
    for d in differences:
        pays = [study.trainings.get(family) for family in (d.a, d.b)]
        names = [
            study.short(family) + (f" ({count})" if len(set(pays)) > 1 else "")
            for family, count in zip((d.a, d.b), pays, strict=True)
        ]
        digits = decimals(d.estimate)
        own = [", ".join(number(d.by_seed.get(s, math.nan), digits, plus=True) for s in seeds)] if seeds else []
        verdict = f"{d.verdict} ({d.p_adjusted:.2g})" if d.verdict else "–"
        rows.append([*names, d.sizes_short, interval(d.estimate, plus=True), *own, verdict])
    return aligned(rows, left=(0, 1, 2, len(rows[0]) - 1))


def _role(study: StudyResult, x: str) -> str:
    """The reward on the x axis of a plane: its role, if it has one, and its name."""
    role = study.role_of(x)
    return f"the {role} ({x})" if role in ROLES[:2] else x
