"""Pareto fronts of every study, with intervals, written to `front.json`.

Reward on x, diversity on y, both up. The unit is the prompt, resampled for all arms at once. Hypervolumes start at
`front.reference` and are in units of `front.scale`, else at the least of the arms' means and in units of their range;
both are written and printed beside them. Each family (`families`) has the base and the tuned model as its end
points, since every one reaches both; `trainings` says how many trainings it pays for. `dominance` has in
row a and column b the probability that arm a dominates arm b. Arms whose images are unsound are listed with the
reason, and are on no front and in no hypervolume; arms of little precision are listed with a warning, and take part.

`differences` compare families at equal size, as `aig.pareto` does. Of several training seeds both hypervolumes and
differences are means over the seeds, each seed's own in `by_seed`. The verdict of a difference is adjusted for the
number of all that the report compares (`multiplicity`): every pair of families on every plane of every setting, where
a setting of several training seeds counts once, as their mean. Its single seeds have no verdict of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aig.pareto import Bootstrap, bootstrap, holm, no_interval, optimal_mask
from pipelines.config import Config, ConfigError, Front
from pipelines.config.values import slug
from pipelines.front import table as front_table
from pipelines.front.claims import claims, entry
from pipelines.front.families import FAMILIES, counted, family_name, members
from pipelines.front.results import AHEAD, BEHIND, UNDECIDED
from pipelines.measure.table import Table, read_rows, read_table
from pipelines.rewards import names as reward_names
from pipelines.rewards.scores import GOLD
from pipelines.study import trials
from pipelines.study.arms import Study
from pipelines.study.prompts import prompt_lists
from pipelines.study.resolved import Resolved

RIVALS = ("kl", "trial", "lora", "fixed", "early")
# Hypervolumes that are compared where a study has both families: AIG on KL 0 alone, and on every training.
COMPARISONS = (
    *(("aig", rival) for rival in RIVALS),
    *(("kl-aig", rival) for rival in (*RIVALS, "kl-lora", "kl-fixed")),
    *(("trial-aig", rival) for rival in (*RIVALS, "trial-lora", "trial-fixed")),
)
# The KL where there is one: the path length of deterministic sampling is none.
DISTANCE_UNITS = {"kl_to_base": "nats per image", "path": "mean squared difference of predictions (eps_mse)"}


def write_front(study: Resolved) -> Path:
    """Write `front.json`, and all arms as `table.csv`, from the metrics that `evaluate` left.

    ConfigError where they are missing.
    """
    files, config = study.directory, study.config
    table, measured = read_table(study), _measured(read_rows(files))
    _check_axes(config.front, table)
    cost = files.read_json(files.arms)["cost"] if files.arms.exists() else None
    found = content(config, study.studies, table, measured, cost)
    front_table.write(files, study.studies, found["studies"])
    files.write_json(files.front, _finite(found))
    return files.front


def content(
    config: Config,
    every: Sequence[Study],
    table: Table,
    measured: dict[str, dict[str, list[float]]],
    cost: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What `front.json` says of the studies, means over training seeds first, whose single seeds follow.

    measured: each arm's metrics, [value, low, high], as `evaluate` left them. cost: predictions per (prompt, seed).
    """
    front = config.front
    found = [_study(config, single, _same_setting(every, single), table, measured) for single in every]
    compared = decide(found, front.level)
    return {
        "reward": found[0]["reward"],
        "diversity": front.diversity,
        "level": front.level,
        "n_bootstrap": front.bootstrap,
        "seed": front.seed,
        "interval": front.interval,
        "no_interval": no_interval(len(table.prompts)),
        "multiplicity": {"method": "holm", "level": front.level, "comparisons": compared},
        "prompts": len(table.prompts),
        "prompt_lists": prompt_lists(config),
        "seeds": table.seeds,
        "reference": found[0]["reference"],
        "normalization": found[0]["normalization"],
        "cost": dict(cost or {}),
        "studies": found,
    }


def _check_axes(front: Front, table: Table) -> None:
    """ConfigError for a reference or scale of what is no metric: it would go unheeded."""
    for key in ("reference", "scale"):
        unknown = [metric for metric in getattr(front, key) if metric not in table.values]
        if unknown:
            raise ConfigError(f"front.{key}: {unknown[0]!r} is no metric of the run; it has {', '.join(table.values)}")


def decide(found: Sequence[dict[str, Any]], level: float) -> int:
    """Give each difference of the studies, as they stand in `front.json`, its verdict; returns how many were compared.

    The p-values are adjusted by Holm's method over all of them, so that where no family is ahead of another a report
    says so of any in at most a share 1 − level. A study that is one seed of a mean has no verdict: null.
    """
    every = [row for single in found for plane in _planes(single) for row in plane["differences"]]
    rows = [row for single in found if single["leading"] for plane in _planes(single) for row in plane["differences"]]
    for row in every:
        row |= {"p_adjusted": math.nan, "verdict": None}
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        sign = (AHEAD if row["value"] > 0 else BEHIND) if adjusted < 1 - level else UNDECIDED
        row |= {"p_adjusted": adjusted, "verdict": None if math.isnan(adjusted) else sign}
    return sum(row["verdict"] is not None for row in rows)


def summary(path: Path) -> str:
    """The fronts of every study in a few lines each; differences where they are compared, not in each training seed."""
    found = json.loads(path.read_text())
    lines = [found["no_interval"]] if found["no_interval"] else []
    for single in found["studies"]:
        how = f"training seeds {single['train_seeds']}" if single["train_seeds"] else "an adapter from elsewhere"
        lines.append(f"{single['study']}: reward {single['reward']}, {how}")
        labels = {arm["arm"]: arm["label"] for arm in single["arms"]}
        planes, roles = {single["reward"]: single, **single["planes"]}, _roles(single)
        for x, plane in planes.items():
            lines.append(f"  front by {roles[x]}: {', '.join(labels[name] for name in plane['fronts']['all'])}")
        for arm in single["arms"]:
            if arm["broken"]:
                lines.append(f"  broken, on no front: {arm['label']} ({arm['broken']})")
            if arm["warning"]:
                lines.append(f"  warning: {arm['label']} ({arm['warning']})")
        for claim in single["claims"]:
            lines.append(f"  {claim['claim']}: {_interval(claim)}{_by_seed(claim)}")
        called = {f: counted(family_name(f, single["trainings"]), n) for f, n in single["trainings"].items()}
        for x, plane in planes.items() if single["leading"] else ():
            if plane["differences"]:
                where = box((x, found["diversity"]), plane["reference"], plane["normalization"])
                lines.append(f"  by {roles[x]}, {where}")
            for row in plane["differences"]:
                lines.append(f"    {called[row['a']]} less {called[row['b']]}{_sizes(row)}: {_told(row)}")
    if found["multiplicity"]["comparisons"]:
        lines.append(
            f"verdicts hold together at {100 * found['level']:g} % (Holm, {found['multiplicity']['comparisons']} "
            "comparisons: every plane of every study)"
        )
    cost = cost_words(found["cost"], " a (prompt, seed)")
    return "\n".join([*lines, f"cost: {cost}"] if cost else lines)


def _roles(single: dict[str, Any]) -> dict[str, str]:
    """What the rewards on the x axes of a study's planes are to it, in words; an adapter from elsewhere has no
    proxy."""
    known = {single["held_out"]: "the held-out reward"}
    if single["train_seeds"]:
        known[single["reward"]] = "the proxy"
    return {x: f"{known[x]} ({x})" if x in known else x for x in (single["reward"], *single["planes"])}


def _planes(single: dict[str, Any]) -> list[dict[str, Any]]:
    return [single, *single["planes"].values()]


def _sizes(row: dict[str, Any]) -> str:
    """How many arms were compared, and of how many."""
    (a, b), size = row["arms"], row["size"]
    return f" ({a} arm{'s' * (a != 1)} each)" if a == b else f" ({a} and {b} arms, at {size} each)"


def _told(row: dict[str, Any]) -> str:
    """A difference with its interval, its values by training seed and its verdict."""
    said = f", {row['verdict']} (adjusted p {row['p_adjusted']:.2g})" if row["verdict"] else ""
    return f"{_interval(row)}{_by_seed(row)}{said}"


def _by_seed(row: dict[str, Any]) -> str:
    """The values of several training seeds."""
    told = [f"{seed}: {value:+.3f}" for seed, value in row["by_seed"].items() if value is not None]
    return f" (seed {', '.join(told)})" if len(told) > 1 else ""


def box(axes: Sequence[str], reference: Sequence[float], scale: Sequence[float]) -> str:
    """Where hypervolumes on (x, y) start, and in which units they are."""
    at, unit = (", ".join(f"{value:.4g}" for value in values) for values in (reference, scale))
    return f"hypervolumes on ({', '.join(axes)}) start at ({at}), in units of ({unit})"


def normalization(front: Front, x: str) -> dict[str, Any]:
    """The arguments of a bootstrap that fix hypervolumes on (x, front.diversity); None where nothing is configured."""
    return {
        "reference": [front.reference.get(axis) for axis in (x, front.diversity)],
        "scale": [front.scale.get(axis) for axis in (x, front.diversity)],
    }


def _interval(row: dict[str, Any]) -> str:
    value, low, high = (math.nan if row[key] is None else row[key] for key in ("value", "low", "high"))
    return f"{value:+.3f}" if math.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _same_setting(every: Sequence[Study], single: Study) -> list[Study]:
    """The study, those of its setting's other training seeds, and their mean."""
    if single.tuned is None:
        return [single]
    name = trials.setting_name(single.tuned)
    return [other for other in every if other.tuned is not None and trials.setting_name(other.tuned) == name]


def _study(
    config: Config, single: Study, same: list[Study], table: Table, measured: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    names = [arm.arm.name for arm in single.arms]
    proxy, y = slug(single.reward), config.front.diversity
    other = reward_names.held_out(config, single.reward)
    held_out = slug(other) if other else None
    boxes = {x: _box(config.front, same, table, x) for x in (proxy, held_out, GOLD) if x and x in table.values}
    result = _bootstrap(config.front, single, table, proxy, boxes[proxy])
    arms = [
        {
            "arm": name, "label": arm.label, "family": arm.family,
            "x": result.mean[proxy][a], "x_low": result.interval[proxy][a, 0], "x_high": result.interval[proxy][a, 1],
            "y": result.mean[y][a], "y_low": result.interval[y][a, 0], "y_high": result.interval[y][a, 1],
            "on_front": bool(result.front[a]), "front_probability": result.front_probability[a],
            "broken": table.broken.get(name), "warning": table.warned.get(name), "metrics": measured[name],
        }
        for a, (name, arm) in enumerate(zip(names, single.arms, strict=True))
    ]  # fmt: skip
    return {
        "study": single.name, "reward": proxy, "held_out": held_out, "k": single.k, "train_seeds": single.train_seeds,
        "leading": single is same[0],
        "trained_with": trials.varied_settings(config, single.tuned) if single.tuned else "", "arms": arms,
        "trainings": {family: single.trainings(members) for family, members in families(single).items()},
        "dominance": [[result.dominates(a, b) for b in range(len(names))] for a in range(len(names))],
        **_plane(config.front, single, table, result),
        "planes": {
            x: _plane(config.front, single, table, _bootstrap(config.front, single, table, x, box))
            for x, box in boxes.items() if x != proxy
        },
        "reward_vs_kl": _reward_vs_kl(single, proxy, measured),
        "claims": claims(config.front, single, table, proxy, held_out),
    }  # fmt: skip


def families(single: Study) -> dict[str, list[int]]:
    """Indices of each family's arms with the base and the tuned model; a family without arms of its own is left out."""
    ends = [a for a, arm in enumerate(single.arms) if arm.family in ("base", "tuned")]
    present = {arm.family for arm in single.arms} - {"base", "tuned"}
    found = {
        family: ends + [a for a, arm in enumerate(single.arms) if arm.family in members(family)]
        for family in FAMILIES
        if family in present
    }
    return found | {"all": list(range(len(single.arms)))}


def _bootstrap(front: Front, single: Study, table: Table, x: str, box: dict[str, Any]) -> Bootstrap:
    names = [arm.arm.name for arm in single.arms]
    return bootstrap(
        table.rows(names), x=x, y=front.diversity, families=families(single),
        broken=[a for a, name in enumerate(names) if name in table.broken], **box, **front.resampling,
    )  # fmt: skip


def _each_seed(front: Front, single: Study, table: Table, mean: Bootstrap) -> tuple[Bootstrap, int]:
    """The arms of every training seed at once, each seed's families apart: `_of(family, seed)`; how many seeds."""
    names = single.by_seed(single.arms)
    seeds, arms = range(len(names)), len(single.arms)
    ends = [a for a, arm in enumerate(single.arms) if arm.family in ("base", "tuned")]
    values = table.rows([name for own in names for name in own])
    result = bootstrap(
        {axis: values[axis] for axis in (mean.x, mean.y)},
        families={_of(family, s): [s * arms + a for a in own] for family, own in mean.families.items() for s in seeds},
        ends=[s * arms + a for a in ends for s in seeds],
        broken=[s * arms + a for a in mean.broken for s in seeds],
        reference=mean.reference, scale=mean.scale, **front.resampling,
    )  # fmt: skip
    return result, len(names)


def _of(family: str, seed: int) -> str:
    return f"{family}, seed {seed}"


def _box(front: Front, same: Sequence[Study], table: Table, x: str) -> dict[str, Any]:
    """Where hypervolumes on (x, diversity) start and their units: as configured, else by the means of all sound arms.

    One box for all training seeds of a setting: the mean of their hypervolumes is then one, too.
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


def _plane(front: Front, single: Study, table: Table, result: Bootstrap) -> dict[str, Any]:
    """Fronts, hypervolumes and their differences on (x, diversity)."""
    names = [arm.arm.name for arm in single.arms]
    points = np.stack([result.mean[result.x], result.mean[result.y]], axis=-1)
    points[list(result.broken)] = np.nan
    fronts = {}
    for family, arms in result.families.items():
        optimal = [arm for arm, keep in zip(arms, optimal_mask(points[list(arms)]), strict=True) if keep]
        fronts[family] = [names[arm] for arm in sorted(optimal, key=lambda a: points[a, 0])]
    each, seeds = _each_seed(front, single, table, result)
    return {
        "fronts": fronts,
        "hypervolume": {
            family: list(each.hypervolume(*(_of(family, s) for s in range(seeds)))) for family in result.families
        },
        "differences": [
            _difference(single, each, [(_of(a, s), _of(b, s)) for s in range(seeds)]) | {"a": a, "b": b}
            for a, b in COMPARISONS
            if a in result.families and b in result.families
        ],
        "reference": result.reference.tolist(),
        "normalization": result.scale.tolist(),
    }


def _difference(single: Study, each: Bootstrap, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Of two families in each training seed, at equal size; `arms` are the sizes of both."""
    found = each.hypervolume_difference(*pairs)
    sizes = {"arms": [each.size(family) for family in pairs[0]], "size": each.compared_size(*pairs)}
    return entry(single, found) | {"p": found.p, **sizes}


def _reward_vs_kl(single: Study, proxy: str, measured: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Each arm's distance to the base and its reward, [value, low, high], where the distance was measured."""
    measures = [measure for measure in DISTANCE_UNITS if any(measure in metrics for metrics in measured.values())]
    return [
        {
            "arm": arm.arm.name, "kl_weight": arm.kl_weight, "metric": measures[0], "unit": DISTANCE_UNITS[measures[0]],
            "distance": measured[arm.arm.name][measures[0]], "reward": measured[arm.arm.name][proxy],
        }
        for arm in single.arms
        if measures and measures[0] in measured[arm.arm.name]
    ]  # fmt: skip


def _measured(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """arm -> metric -> [value, low, high]."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["metric"]] = [row["value"], row["low"], row["high"]]
    return found


def _finite(content: Any) -> Any:
    """JSON has no NaN: null stands for what was not measured."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def cost_words(cost: Mapping[str, float], unit: str = "") -> str:
    """Predictions made, and what loops without shared states would make; empty where that is not on record."""
    if not {"predictions", "separate", "published"} <= set(cost):
        return ""
    counts = [cost[name] for name in ("predictions", "separate", "published")]
    made, separate, published = (f"{count:.0f}" if count >= 1000 else f"{count:g}" for count in counts)
    less = [f"{100 * (1 - counts[0] / count):.0f} % fewer" for count in counts[1:]]
    return (
        f"{made} predictions{unit}; a loop for each arm that makes weights 0 and 1 by one prediction makes "
        f"{separate} ({less[0]}), the published script, with both at every step, {published} ({less[1]})"
    )
