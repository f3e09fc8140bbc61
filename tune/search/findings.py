"""The result of a search: the schedules it keeps, their validation on held-out prompts, and the statement on them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aig import schedules
from aig.pareto import LEAST_PROMPTS, Bootstrap, bootstrap, hypervolume, optimal_mask
from pipelines.config.values import slug
from pipelines.front.names import cost_words
from pipelines.rewards import names as reward_names
from pipelines.runs import files
from pipelines.show import tables
from pipelines.show.estimates import Estimate, interval
from tune.search.plan import HELD_OUT, REFERENCES, SEARCH, Plan

if TYPE_CHECKING:
    from tune.search.run import Trial


@dataclass(frozen=True, eq=False)
class Box:
    """The origin and the unit of hypervolumes, (objectives,) each."""

    reference: np.ndarray
    scale: np.ndarray

    @staticmethod
    def around(points: np.ndarray) -> Box:
        """A box from the minimum of the points (n, objectives), with their range as the unit."""
        span = np.ptp(points, axis=0)
        return Box(points.min(axis=0), np.where(span > 0, span, 1.0))

    def volume(self, points: np.ndarray) -> float:
        return hypervolume((points - self.reference) / self.scale, np.zeros(len(self.scale)))


def points(plan: Plan, table: dict[str, np.ndarray]) -> np.ndarray:
    """Means of the objectives over prompts, (curves, objectives), from metrics (curves, prompts)."""
    return np.stack([table[name].mean(axis=1) for name in plan.objectives], axis=1)


def choose(plan: Plan, trials: Sequence[Trial], references: dict[str, np.ndarray]) -> list[Trial]:
    """Choose the trials to keep, in ascending order of the first objective; published curves do not count.

    Each in turn adds most to the hypervolume of the ends and those before it (greedy subset selection, Guerreiro et al.
    2016); one that adds nothing is not taken.
    """
    taken = {plan.curve(text) for text in REFERENCES}
    distinct = {trial.curve: trial for trial in reversed(trials) if trial.curve not in taken}
    new = [trial for trial in trials if distinct.get(trial.curve) is trial]
    at = _values(plan, new)
    known = points(plan, references)
    box, kept, inside = Box.around(known), [], known[:2]  # the ends
    while new and len(kept) < plan.config.search.keep:
        volumes = [box.volume(np.vstack([inside, point])) for point in at]
        best = int(np.argmax(volumes))
        if volumes[best] <= box.volume(inside):
            break
        kept.append(new[best])
        inside = np.vstack([inside, at[best]])
    return sorted(kept, key=lambda trial: trial.values[plan.objectives[0]])


def request(plan: Plan) -> dict[str, Any]:
    """All that a result depends on; if it changes, the result is written anew."""
    search, front = plan.config.search, plan.config.front
    asked = {
        "settings": plan.identity(), "trials": search.trials, "keep": search.keep, "bootstrap": front.bootstrap,
        "level": front.level, "seed": front.seed, "interval": front.interval,
    }  # fmt: skip
    return json.loads(json.dumps(asked))


def conclude(
    plan: Plan,
    trials: Sequence[Trial],
    chosen: Sequence[Trial],
    searched: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The result, from metrics (schedules, prompts) of the references, then the chosen schedules, on both sets."""
    names = [*REFERENCES, *labels(plan, len(chosen))]
    texts = [*REFERENCES, *(trial.candidate.schedule for trial in chosen)]
    families = [*("published" for _ in REFERENCES), *(trial.candidate.family for trial in chosen)]
    sets = {SEARCH: _bootstrap(plan, searched), HELD_OUT: _bootstrap(plan, held_out)}
    rows = [
        {
            "name": name, "schedule": text, "family": family, "found": a >= len(REFERENCES),
            SEARCH: _estimates(sets[SEARCH], a), HELD_OUT: _estimates(sets[HELD_OUT], a),
            "on_held_out_front": bool(sets[HELD_OUT].front[a]),
            "dominates": _dominated(sets[HELD_OUT], a, names),
        }
        for a, (name, text, family) in enumerate(zip(names, texts, families, strict=True))
    ]  # fmt: skip
    difference = {which: _difference(result) for which, result in sets.items()} if chosen else {}
    elsewhere = _elsewhere(plan, held_out) if chosen else {}
    front = optimal_mask(_values(plan, trials))
    return {
        "name": plan.name, "adapter": plan.adapter, "reward": slug(plan.reward),
        "objectives": plan.objectives, "x": plan.objectives[0], "y": plan.objectives[1],
        "level": plan.config.front.level, "n_bootstrap": plan.config.front.bootstrap,
        "trials": len(trials), "distinct_curves": len({trial.curve for trial in trials}),
        "search_front": sorted({trial.candidate.schedule for trial, on in zip(trials, front, strict=True) if on}),
        "prompts": {which: len(prompts) for which, prompts in plan.prompts.items()}, "seeds": plan.seeds,
        "held_out_prompts_trained_on": plan.trained_on, "search_prompts_evaluated": plan.evaluated,
        "normalization": {
            which: {"reference": result.reference.tolist(), "scale": result.scale.tolist()}
            for which, result in sets.items()
        },
        "schedules": rows, "hypervolume_difference": difference, "by_held_out_reward": elsewhere,
        "statement": _statement(plan, difference) + _describe_elsewhere(plan, elsewhere),
    }  # fmt: skip


def _values(plan: Plan, trials: Sequence[Trial]) -> np.ndarray:
    """The objectives of trials, (trials, objectives)."""
    return np.array([[trial.values[name] for name in plan.objectives] for trial in trials])


def labels(plan: Plan, count: int) -> list[str]:
    """Names of the chosen schedules: the search's name, in a schedule's characters, and a number."""
    stem = re.sub(r"[^A-Za-z0-9_.+-]+", "-", plan.name)
    return [f"{stem}-{i}" for i in range(1, count + 1)]


def _bootstrap(plan: Plan, table: dict[str, np.ndarray], x: str | None = None) -> Bootstrap:
    """Bootstrap the first two objectives, or x and the second, in units of the range of the references alone."""
    front, y = plan.config.front, plan.objectives[1]
    x = x or plan.objectives[0]
    box = Box.around(np.stack([table[name][: len(REFERENCES)].mean(axis=1) for name in (x, y)], axis=1))
    ends, count = (0, 1), len(table[x])
    families = {"published": range(len(REFERENCES)), "found": [*ends, *range(len(REFERENCES), count)]}
    given = {"reference": box.reference, "scale": box.scale, **front.resampling}
    return bootstrap(table, x=x, y=y, families=families, ends=ends, **given)


def _estimates(result: Bootstrap, a: int) -> dict[str, list[float | None]]:
    return {name: _finite([mean[a], *result.interval[name][a]]) for name, mean in result.mean.items()}


def _finite(values: Sequence[float]) -> list[float | None]:
    """Null for NaN, which JSON lacks: too few prompts give no interval."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _dominated(result: Bootstrap, a: int, names: Sequence[str]) -> list[str]:
    """Arms that this one dominates in at least `level` of the replicates; none with too few prompts."""
    if result.prompts < LEAST_PROMPTS:
        return []
    return [name for b, name in enumerate(names) if b != a and result.dominates(a, b) >= result.level]


def _difference(result: Bootstrap) -> list[float | None]:
    """[value, low, high] of the hypervolume's difference at equal size, with the ends in both families."""
    return _finite(result.hypervolume_difference(("found", "published"))[:3])


def _elsewhere(plan: Plan, table: dict[str, np.ndarray]) -> dict[str, Any]:
    """The difference on held-out prompts with the held-out reward in place of the trained one.

    Empty if there is no such reward, or the objectives are not the trained reward and another metric.
    """
    other = reward_names.held_out(plan.config, plan.reward)
    metric = slug(other) if other else None
    if metric not in table or plan.objectives[0] != slug(plan.reward) or metric == plan.objectives[1]:
        return {}
    return {"reward": metric, "hypervolume_difference": _difference(_bootstrap(plan, table, metric))}


def _describe_elsewhere(plan: Plan, elsewhere: dict[str, Any]) -> str:
    if not elsewhere:
        return ""
    place = f"the held-out reward {elsewhere['reward']} in place of {plan.objectives[0]}"
    return f" With {place}: {_shown(elsewhere['hypervolume_difference'], plus=True)} on the same prompts."


def _statement(plan: Plan, difference: dict[str, list[float | None]]) -> str:
    """The verdict on found against published schedules, from held-out prompts: the search set flatters its choice."""
    if not difference:
        return "No candidate adds to what base and tuned span on the search set: nothing was found."
    seen, (value, low, high) = difference[SEARCH][0], difference[HELD_OUT]
    prompts = len(plan.prompts[HELD_OUT])
    if seen is None or value is None:
        return "The found schedules were not compared: an arm is not measured on every prompt."
    shown = _shown((value, low, high), plus=True)
    comparison = (
        f"hypervolume {shown} against as many of the published ones on {prompts} held-out prompts "
        f"({seen:+.3f} on the search set, which chose them)"
    )
    if low is None or high is None:
        return f"No verdict on the found schedules: {comparison}; no interval below {LEAST_PROMPTS} prompts."
    if low > 0:
        return f"The found schedules hold: {comparison}."
    if high < 0:
        return f"The found schedules are worse: {comparison}."
    if seen > 0:
        return f"The gain of the search set is not confirmed: {comparison}; the interval holds zero."
    return f"The search found nothing better than what was published: {comparison}."


def write_candidates(plan: Plan, trials: Sequence[Trial], path: Path) -> None:
    """Write one row per trial, with its metrics on the search set and whether it is on the front there."""
    front = optimal_mask(_values(plan, trials))
    rows = [
        {
            "trial": i, "generation": trial.generation, **asdict(trial.candidate), "curve": trial.curve,
            "on_front": bool(on), **trial.values,
        }
        for i, (trial, on) in enumerate(zip(trials, front, strict=True))
    ]  # fmt: skip
    plan.run.write_parquet(path, pa.Table.from_pylist(rows))


def write_schedules(plan: Plan, result: dict[str, Any], earlier: Path) -> None:
    """Write one file per found schedule, for `file:PATH`; remove those of an earlier result."""
    run, folder = plan.run, plan.run.schedules
    found = [row for row in result["schedules"] if row["found"]]
    for row in found:
        about = {
            "adapter": plan.adapter, "objectives": plan.objectives, "steps": len(plan.grid), HELD_OUT: row[HELD_OUT],
            "prompts": result["prompts"][HELD_OUT], "seeds": result["seeds"][HELD_OUT], "level": result["level"],
        }  # fmt: skip
        schedule = replace(schedules.parse(row["schedule"]), label=row["name"])
        schedules.write(folder / f"{row['name']}.json", schedule, about)
        run.push(folder / f"{row['name']}.json")
    names = {row["name"] for row in found}
    if earlier.exists():
        for row in run.read_json(earlier)["schedules"]:
            if row["found"] and row["name"] not in names:
                run.forget(folder / f"{row['name']}.json")


def _shown(estimate: Sequence[float | None], plus: bool = False) -> str:
    return interval(Estimate(*(math.nan if number is None else number for number in estimate)), plus)


def summary(path: Path) -> str:
    """The result as text: one line per schedule, and the statement with the difference in hypervolume."""
    result = files.read_json(path, str(path))
    x, y = result["x"], result["y"]
    more = (*result["objectives"], result.get("by_held_out_reward", {}).get("reward"), "gold")
    shown = list(dict.fromkeys([x, y, *(m for m in more if m in result["schedules"][0][HELD_OUT])]))
    lines = [
        f"held out: {result['prompts'][HELD_OUT]} prompts × {result['seeds'][HELD_OUT]} seeds, "
        f"{100 * result['level']:g} % intervals"
    ]
    rows = [["schedule", *shown, "", ""]]
    for row in result["schedules"]:
        better = f"dominates {', '.join(row['dominates'])}" if row["found"] and row["dominates"] else ""
        cells = [_shown(row[HELD_OUT][metric]) for metric in shown]
        rows.append([row["name"], *cells, row["schedule"] if row["found"] else "", better])
    lines.append(tables.aligned(rows, left=range(len(rows[0]))))
    candidates = f"{result['trials']} candidates, {result['distinct_curves']} distinct curves"
    lines.append(f"{candidates}, {cost_words(result['cost'])}")
    lines.append(result["statement"])
    if trained := result["held_out_prompts_trained_on"]:
        lines.append(
            f"Of the held-out prompts the adapter was trained on {trained}: they are held out from the search alone."
        )
    if result["search_prompts_evaluated"]:
        lines.append(
            f"Of evaluate.prompts {result['search_prompts_evaluated']} are in the search set: as arms, the schedules "
            "are judged there by what chose them."
        )
    return "\n".join(lines)
