"""Pareto fronts of every study, with intervals, written to `front.json`.

Reward on x, diversity on y, both up. The unit is the prompt, resampled for all arms at once. Hypervolumes start at
`front.reference` and are in units of `front.scale`, else at the least of the arms' means and in units of their range;
both are written and printed beside them. Each family (`pipelines.families`) has the base and the tuned model as its end
points, since every one reaches both; `trainings` says how many trainings it pays for. `dominance` has in
row a and column b the probability that arm a dominates arm b. Arms whose images are unsound are listed with the
reason, and are on no front and in no hypervolume; arms of little precision are listed with a warning, and take part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aig.pareto import Bootstrap, bootstrap, optimal_mask
from pipelines import arm_table, layout, rewarding, study, trials
from pipelines.config import Config, ConfigError, Front
from pipelines.families import FAMILIES, counted, family_name, members
from pipelines.layout import RunFiles
from pipelines.measure import Table, read_rows, read_table
from pipelines.prompts import prompt_lists
from pipelines.report.words import cost_words
from pipelines.scoring import GOLD
from pipelines.study import Study

RIVALS = ("kl", "trial", "lora", "fixed", "early")
# Hypervolumes that are compared where a study has both families: AIG on KL 0 alone, and on every training.
COMPARISONS = (
    *(("aig", rival) for rival in RIVALS),
    *(("kl-aig", rival) for rival in (*RIVALS, "kl-lora", "kl-fixed")),
    *(("trial-aig", rival) for rival in (*RIVALS, "trial-lora", "trial-fixed")),
)
# The KL where there is one: the path length of deterministic sampling is none.
DISTANCE_UNITS = {"kl_to_base": "nats per image", "path": "mean squared difference of predictions (eps_mse)"}


def write_front(config: Config) -> Path:
    """Write `front.json`, and all arms as `table.csv`, from the metrics that `evaluate` left.

    ConfigError where they are missing.
    """
    files, front = RunFiles(config.directory), config.front
    table, measured = read_table(config), _measured(read_rows(config))
    _check_axes(front, table)
    every = [*study.mean_studies(config), *study.studies(config)]
    found = [_study(config, single, table, measured) for single in every]
    content = {
        "reward": found[0]["reward"],
        "diversity": front.diversity,
        "level": front.level,
        "n_bootstrap": front.bootstrap,
        "seed": front.seed,
        "interval": front.interval,
        "prompts": len(table.prompts),
        "prompt_lists": prompt_lists(config),
        "seeds": table.seeds,
        "reference": found[0]["reference"],
        "normalization": found[0]["normalization"],
        "cost": json.loads(files.arms.read_text())["cost"] if files.arms.exists() else {},
        "studies": found,
    }
    arm_table.write(files.table, every, found)
    layout.write_json(files.front, _finite(content))
    return files.front


def _check_axes(front: Front, table: Table) -> None:
    """ConfigError for a reference or scale of what is no metric: it would go unheeded."""
    for key in ("reference", "scale"):
        unknown = [metric for metric in getattr(front, key) if metric not in table.values]
        if unknown:
            raise ConfigError(f"front.{key}: {unknown[0]!r} is no metric of the run; it has {', '.join(table.values)}")


def summary(path: Path) -> str:
    """The fronts of every study in a few lines each."""
    lines, found = [], json.loads(path.read_text())
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
            lines.append(f"  {claim['claim']}: {_interval(claim)}")
        called = {f: counted(family_name(f, single["trainings"]), n) for f, n in single["trainings"].items()}
        for x, plane in planes.items():
            if plane["differences"]:
                where = box((x, found["diversity"]), plane["reference"], plane["normalization"])
                lines.append(f"  by {roles[x]}, {where}")
            for row in plane["differences"]:
                lines.append(f"    {called[row['a']]} less {called[row['b']]}: {_interval(row)}")
    cost = cost_words(found["cost"], " a (prompt, seed)")
    return "\n".join([*lines, f"cost: {cost}"] if cost else lines)


def _roles(single: dict[str, Any]) -> dict[str, str]:
    """What the rewards on the x axes of a study's planes are to it, in words; an adapter from elsewhere has no
    proxy."""
    known = {single["held_out"]: "the held-out reward"}
    if single["train_seeds"]:
        known[single["reward"]] = "the proxy"
    return {x: f"{known[x]} ({x})" if x in known else x for x in (single["reward"], *single["planes"])}


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


def _interval(row: dict[str, float | None]) -> str:
    value, low, high = (math.nan if row[key] is None else row[key] for key in ("value", "low", "high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _study(config: Config, single: Study, table: Table, measured: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    names = [arm.arm.name for arm in single.arms]
    proxy, y = layout.slug(single.reward), config.front.diversity
    other = rewarding.held_out(config, single.reward)
    held_out = layout.slug(other) if other else None
    result = _bootstrap(config, single, table, proxy)
    planes = [x for x in (held_out, GOLD) if x is not None and x in table.values]
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
        "trained_with": trials.words(config, single.tuned) if single.tuned else "", "arms": arms,
        "trainings": {family: single.trainings(members) for family, members in families(single).items()},
        "dominance": [[result.dominates(a, b) for b in range(len(names))] for a in range(len(names))],
        **_plane(result, names),
        "planes": {x: _plane(_bootstrap(config, single, table, x), names) for x in planes},
        "reward_vs_kl": _reward_vs_kl(single, proxy, measured),
        "claims": _claims(config, single, table, result, proxy, held_out),
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


def _bootstrap(config: Config, single: Study, table: Table, x: str) -> Bootstrap:
    front, names = config.front, [arm.arm.name for arm in single.arms]
    return bootstrap(
        table.rows(names), x=x, y=front.diversity, families=families(single),
        broken=[a for a, name in enumerate(names) if name in table.broken],
        **normalization(front, x), **front.resampling,
    )  # fmt: skip


def _plane(result: Bootstrap, names: list[str]) -> dict[str, Any]:
    """Fronts, hypervolumes and their differences on (x, diversity)."""
    points = np.stack([result.mean[result.x], result.mean[result.y]], axis=-1)
    points[list(result.broken)] = np.nan
    fronts = {}
    for family, arms in result.families.items():
        optimal = [arm for arm, keep in zip(arms, optimal_mask(points[list(arms)]), strict=True) if keep]
        fronts[family] = [names[arm] for arm in sorted(optimal, key=lambda a: points[a, 0])]
    return {
        "fronts": fronts,
        "hypervolume": {family: list(result.hypervolume(family)) for family in result.families},
        "differences": [
            {"a": a, "b": b, **_estimate(result.hypervolume_difference(a, b))}
            for a, b in COMPARISONS
            if a in result.families and b in result.families
        ],
        "reference": result.reference.tolist(),
        "normalization": result.scale.tolist(),
    }


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


def _claims(
    config: Config, single: Study, table: Table, result: Bootstrap, proxy: str, held_out: str | None
) -> list[dict[str, Any]]:
    """The statements that hacking makes, each as a paired difference with its interval."""
    base, tuned = (single.arms.index(single.one(family)) for family in ("base", "tuned"))
    wanted = [
        ("proxy reward rises" if single.trained else f"{proxy} rises", proxy, 1),
        ("diversity falls", config.front.diversity, -1),
    ]
    wanted += [("held-out reward rises", held_out, 1)] if held_out in table.values else []
    wanted += [("prompt accuracy falls", "accuracy", -1)] if "accuracy" in table.values else []
    claims = [
        {"claim": f"{text} (tuned - base)", "expected": sign, **_estimate(result.difference(str(metric), tuned, base))}
        for text, metric, sign in wanted
    ]
    if GOLD in table.values and single.trained:
        text = "gold falls under its peak along training (tuned - peak; the peak's step is chosen on other prompts)"
        claims.append({"claim": text, "expected": -1, **_estimate(gold_from_peak(config, single, table))})
    return claims


def gold_from_peak(config: Config, single: Study, table: Table) -> tuple[float, float, float]:
    """Gold of the tuned model less gold at its peak along training: estimate, low, high.

    The best of many snapshots on the same prompts looks better than it is. So the peak is chosen on one half of the
    prompts and measured on the other, both ways round, and the prompts' differences are resampled. Early stops that are
    broken have no peak.
    """
    snapshots = [arm for arm in single.arms if arm.family in ("base", "early", "tuned")]
    rows = [arm.arm.name for arm in snapshots if arm.family != "early" or arm.arm.name not in table.broken]
    gold = table.rows(rows)[GOLD]  # (snapshots, prompts)
    tuned = rows.index(single.one("tuned").arm.name)
    halves = np.arange(gold.shape[1]) % 2
    at_peak = np.empty(gold.shape[1])
    for half in (0, 1):
        peak = gold[:, halves != half].mean(axis=1).argmax()
        at_peak[halves == half] = gold[peak, halves == half]
    pair = np.stack([gold[tuned], at_peak])
    return bootstrap({"gold": pair}, **config.front.resampling).difference("gold", 0, 1)


def _measured(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """arm -> metric -> [value, low, high]."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["metric"]] = [row["value"], row["low"], row["high"]]
    return found


def _estimate(estimate: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), estimate, strict=True))


def _finite(content: Any) -> Any:
    """JSON has no NaN: null stands for what was not measured."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content
