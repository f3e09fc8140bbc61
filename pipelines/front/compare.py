"""Two runs against each other: the same arms on the same prompts, seeds and noise, so that differences are paired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aig.pareto import Bootstrap, bootstrap, no_interval
from pipelines.config import Config, ConfigError
from pipelines.config.values import slug
from pipelines.front import front
from pipelines.measure.measure import read_sets
from pipelines.measure.sets import SHARES, SetMeasures
from pipelines.measure.table import Table, read_table
from pipelines.rewards import names
from pipelines.rewards.scores import GOLD
from pipelines.runs import identity
from pipelines.show import tables
from pipelines.show.estimates import Estimate
from pipelines.study.resolved import Resolved

# What has to be the same, so that an image of one run and one of the other differ by the arm alone.
NOISE = ("run.seed", "model.name", "model.revision", "model.variant", "model.height", "model.width")
SAME = {"seeds": ("evaluate.seeds",), "noise": NOISE, "features": ("evaluate.features",)}
FOLDER = "comparisons"
SCHEMA = pa.schema({
    "what": pa.string(), "name": pa.string(), "metric": pa.string(), "a": pa.float64(), "b": pa.float64(),
    "value": pa.float64(), "low": pa.float64(), "high": pa.float64(), "prompts": pa.int64(), "seeds": pa.int64(),
    "broken": pa.string(), "warning": pa.string(), "interval": pa.string(),
    "x": pa.string(), "y": pa.string(), "reference": pa.list_(pa.float64()), "scale": pa.list_(pa.float64()),
})  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Rows of the table: an arm's metric or a family's hypervolume in a and b, and b less a with its interval."""

    rows: list[dict[str, Any]]
    path: Path
    prompts: int
    differing: list[str]
    """Settings that the runs differ in, as text."""
    alone: tuple[list[str], list[str]]
    """Arms that only a has, and only b."""


def compare(a: Resolved, b: Resolved, *, shared: bool = False) -> Comparison:
    """Compare run b with run a, and write the rows to `comparisons/NAME-OF-A.parquet` of b.

    Arms go by their names, and families of arms by their studies' names. With `shared`, prompts that only one of the
    runs has are left out; else they are refused. Raises ConfigError for runs that differ in prompts, seeds, noise or
    features, and where one is not measured yet.
    """
    check_comparable(a.config, b.config)
    table_a, table_b = read_table(a), read_table(b)
    prompts = _shared_prompts(table_a, table_b, shared)
    arms = [name for name in table_a.arms if name in table_b.arms]
    metrics = [name for name in table_a.values if name in table_b.values]
    joint = _joint(table_a, table_b, arms, metrics, prompts)
    broken = {name: _told(table_a.broken, table_b.broken, name) for name in arms}
    warned = {name: _told(table_a.warned, table_b.warned, name) for name in arms}
    whole = table_a.prompts == table_b.prompts
    found = [
        *_arm_rows(b.config, joint, arms, broken),
        *(_set_rows(read_sets(a), read_sets(b), arms, broken) if whole else ()),
        *_family_rows(b, joint, arms, broken),
    ]
    shared_by_all = {"prompts": len(prompts), "seeds": table_a.seeds}
    rows = [{**row, **shared_by_all, "warning": warned.get(row["name"])} for row in found]
    path = b.directory.root / FOLDER / f"{a.config.run.name}.parquet"
    b.directory.write_parquet(path, pa.Table.from_pylist(rows, SCHEMA))
    alone = ([n for n in table_a.arms if n not in table_b.arms], [n for n in table_b.arms if n not in table_a.arms])
    return Comparison(rows, path, len(prompts), differences(a.config, b.config), alone)


def check_comparable(a: Config, b: Config) -> None:
    """ConfigError with the settings in which the runs differ and must not."""
    for what, keys in SAME.items():
        found = [text for text in differences(a, b) if text.partition(" ")[0] in keys]
        if found:
            raise ConfigError(
                f"the runs differ in their {what} ({'; '.join(found)}): their images cannot be paired, so evaluate one "
                "of them anew like the other"
            )


def differences(a: Config, b: Config) -> list[str]:
    """Every setting that decides a run's files and is not the same, as `key: a's, b's`."""
    pairs = zip(identity.identity(a), identity.identity(b), strict=True)
    return [f"{key} is {first!r} and {second!r}" for (key, first), (_, second) in pairs if first != second]


def summary(found: Comparison, a: str, b: str) -> str:
    """The comparison as text: differences with their intervals, and what the runs do not share."""
    how = dict.fromkeys(row["interval"] for row in found.rows if row["what"] == "arm")
    about = no_interval(found.prompts) or f"paired intervals by {' and by '.join(how)}, not adjusted for their number"
    lines = [f"{b} less {a}, on {found.prompts} shared prompts; {about}"]
    for what in ("arm", "family"):
        cells: dict[str, dict[str, Estimate]] = {}
        for row in found.rows:
            if row["what"] == what:
                cells.setdefault(row["name"], {})[row["metric"]] = Estimate(row["value"], row["low"], row["high"])
        broken, warned = ({row["name"]: row[key] for row in found.rows if row[key]} for key in ("broken", "warning"))
        columns = list(dict.fromkeys(row["metric"] for row in found.rows if row["what"] == what))
        lines += ["", tables.estimates(cells, columns, broken, warned)] if cells else []
    boxes = [
        front.box((row["x"], row["y"]), row["reference"], row["scale"]) for row in found.rows if row.get("reference")
    ]
    lines += [f"{text[0].upper()}{text[1:]}" for text in dict.fromkeys(boxes)]
    for name, arms in zip((a, b), found.alone, strict=True):
        lines += [f"Only in {name}: {', '.join(arms)}"] if arms else []
    lines += [f"The runs differ in {text}" for text in found.differing]
    return "\n".join(lines)


def _shared_prompts(a: Table, b: Table, shared: bool) -> list[str]:
    both = [prompt for prompt in a.prompts if prompt in b.prompts]
    only = [[p for p in table.prompts if p not in both] for table in (a, b)]
    if any(only) and not shared:
        raise ConfigError(
            f"the runs differ in their prompts ({len(only[0])} only in the first{_first(only[0])}, {len(only[1])} only "
            f"in the second{_first(only[1])}): pass --shared to compare them on the {len(both)} that both have"
        )
    if len(both) < 2:
        raise ConfigError(f"the runs share {len(both)} prompts: give runs that share at least two")
    return both


def _first(prompts: list[str]) -> str:
    return f", as {prompts[0]!r}" if prompts else ""


def _joint(a: Table, b: Table, arms: list[str], metrics: list[str], prompts: list[str]) -> dict[str, np.ndarray]:
    """Both runs' metrics (2 arms, prompts), a's arms before b's; those that were measured on every prompt."""
    joint = {}
    for metric in metrics:
        parts = [
            table.values[metric][[table.arms.index(arm) for arm in arms]][:, [table.prompts.index(p) for p in prompts]]
            for table in (a, b)
        ]
        if np.isfinite(np.vstack(parts)).any(axis=0).all():
            joint[metric] = np.vstack(parts)
    return joint


def _told(a: dict[str, str], b: dict[str, str], arm: str) -> str | None:
    """What either run says of an arm."""
    return "; ".join(f"{run}: {told[arm]}" for run, told in (("a", a), ("b", b)) if arm in told) or None


def _arm_rows(
    config: Config, joint: dict[str, np.ndarray], arms: list[str], broken: dict[str, str | None]
) -> Iterator[dict[str, Any]]:
    result = bootstrap(joint, **config.front.resampling)
    for i, arm in enumerate(arms):
        for metric in joint:
            value, low, high = result.difference(metric, len(arms) + i, i)
            means = {"a": result.mean[metric][i], "b": result.mean[metric][len(arms) + i]}
            estimate = {"value": value, "low": low, "high": high, "broken": broken[arm]}
            how = f"{result.method} bootstrap of prompts"
            yield {"what": "arm", "name": arm, "metric": metric, **means, **estimate, "interval": how}


def _set_rows(
    a: dict[str, SetMeasures], b: dict[str, SetMeasures], arms: list[str], broken: dict[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Measures of sets, each against the base of its own run, where both were measured on the same subsets."""
    for arm in arms:
        if arm not in a or arm not in b:
            continue
        ours, theirs = a[arm].found, b[arm].found
        subsets = [(one.prompts, one.size, one.replicates.shape) for one in (ours, theirs)]
        if subsets[0] != subsets[1] or a[arm].names != b[arm].names or not len(ours.replicates):
            continue
        difference = theirs.less(ours)
        for place, metric in enumerate(a[arm].names):
            value, (low, high) = difference.estimate[place], difference.interval[place]
            if metric in SHARES:
                least, most = _newcombe(a[arm], b[arm], metric)
                low, high = min(low, least), max(high, most)
            values = {"a": ours.estimate[place], "b": theirs.estimate[place], "value": value, "low": low, "high": high}
            how = f"subsets of {ours.size} prompts"
            yield {"what": "arm", "name": arm, "metric": metric, **values, "broken": broken[arm], "interval": how}


def _newcombe(a: SetMeasures, b: SetMeasures, metric: str) -> tuple[float, float]:
    """The difference of two shares from their own intervals (Newcombe 1998, method 10): of some width at 0 and 1."""
    place = a.names.index(metric)
    first, second = a.found.estimate[place], b.found.estimate[place]
    (low_a, high_a), (low_b, high_b) = a.interval(metric), b.interval(metric)
    value = second - first
    return value - np.hypot(second - low_b, high_a - first), value + np.hypot(high_b - second, first - low_a)


def _family_rows(
    study: Resolved, joint: dict[str, np.ndarray], arms: list[str], broken: dict[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Hypervolumes of each family in both runs on each plane, from one reference and in one unit, where both have all
    its arms."""
    config, settings, y = study.config, study.config.front, study.config.front.diversity
    out = [i + offset for i, arm in enumerate(arms) if broken[arm] for offset in (0, len(arms))]
    for single in study.studies:
        other = names.held_out(config, single.reward)
        axes = {slug(single.reward): "hypervolume", slug(other or ""): "held-out hypervolume", GOLD: "gold hypervolume"}
        members = {
            family: [arms.index(single.arms[i].arm.name) for i in own]
            for family, own in front.families(single).items()
            if all(single.arms[i].arm.name in arms for i in own)
        }
        both = {f"a {family}": own for family, own in members.items()}
        both |= {f"b {family}": [len(arms) + i for i in own] for family, own in members.items()}
        ends = [
            arms.index(arm.arm.name) for arm in single.arms if arm.family in ("base", "tuned") and arm.arm.name in arms
        ]
        ends += [len(arms) + i for i in ends]
        for x, metric in axes.items():
            if not members or x not in joint or y not in joint:
                continue
            plane, box = {x: joint[x], y: joint[y]}, front.normalization(settings, x)
            result = bootstrap(plane, families=both, ends=ends, broken=out, **box, **settings.resampling)
            yield from (_family_row(result, single.name, family, metric) for family in members)


def _family_row(result: Bootstrap, name: str, family: str, metric: str) -> dict[str, Any]:
    value, low, high, *_ = result.hypervolume_difference((f"b {family}", f"a {family}"))
    volumes = {run: result.hypervolume(f"{run} {family}")[0] for run in ("a", "b")}
    estimate = {"value": value, "low": low, "high": high, "broken": None}
    box = {"x": result.x, "y": result.y, "reference": result.reference.tolist(), "scale": result.scale.tolist()}
    how = {"interval": "jackknife of prompts"}
    return {"what": "family", "name": f"{name} {family}", "metric": metric, **volumes, **estimate, **box, **how}
