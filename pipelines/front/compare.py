"""Two runs compared: the same arms on the same prompts, seeds and noise, so differences are paired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from aig.pareto import Bootstrap, bootstrap, no_interval
from pipelines.config import Config, ConfigError
from pipelines.config.values import slug
from pipelines.front import planes
from pipelines.front.names import GOLD, box_words
from pipelines.measure.measure import read_sets
from pipelines.measure.sets import SHARES, SetMeasures
from pipelines.measure.table import Table, read_table
from pipelines.rewards import names
from pipelines.runs import identity
from pipelines.show import tables
from pipelines.show.estimates import Estimate
from pipelines.study.resolved import Resolved

# What has to be the same for an image of one run and one of the other to differ by the arm alone.
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
class Row:
    """An arm's metric, or a family's hypervolume on a plane, in both runs."""

    what: Literal["arm", "family"]
    name: str
    metric: str
    a: float
    b: float
    estimate: Estimate
    """b less a."""
    interval: str
    """How the interval is taken."""
    broken: str | None = None
    """How the arm's images are unsound in either run."""
    warning: str | None = None
    box: tuple[str, str, list[float], list[float]] | None = None
    """Axes, reference and scale of a hypervolume."""

    def to_dict(self) -> dict[str, Any]:
        """As a row of the file."""
        flat = dict(zip(("value", "low", "high"), self.estimate, strict=True))
        flat |= dict(zip(("x", "y", "reference", "scale"), self.box or (None,) * 4, strict=True))
        return {name: flat[name] if name in flat else getattr(self, name, None) for name in SCHEMA.names}


@dataclass(frozen=True)
class Comparison:
    """The differences of run b from run a."""

    rows: list[Row]
    path: Path
    prompts: int
    differing: list[str]
    """Settings that the runs differ in, as text."""
    alone: tuple[list[str], list[str]]
    """Arms that only a has, and only b."""


@dataclass(frozen=True)
class Pair:
    """The arms and metrics that two runs share."""

    arms: list[str]
    values: dict[str, np.ndarray]
    """Metrics measured on every prompt (2 arms, prompts), a's arms before b's."""
    broken: dict[str, str | None]
    warned: dict[str, str | None]

    @classmethod
    def of(cls, a: Table, b: Table, prompts: list[str]) -> Pair:
        """What two tables share on these prompts."""
        arms, values = [name for name in a.arms if name in b.arms], {}
        places = [
            np.ix_([table.arms.index(arm) for arm in arms], [table.prompts.index(prompt) for prompt in prompts])
            for table in (a, b)
        ]
        for metric in (name for name in a.values if name in b.values):
            both = np.vstack([table.values[metric][place] for table, place in zip((a, b), places, strict=True)])
            if np.isfinite(both).any(axis=0).all():
                values[metric] = both
        broken = {name: _reasons(a.broken, b.broken, name) for name in arms}
        return cls(arms, values, broken, {name: _reasons(a.warned, b.warned, name) for name in arms})


def compare(a: Resolved, b: Resolved, *, shared: bool = False) -> Comparison:
    """Compare run b with run a, and write the rows to `comparisons/NAME-OF-A.parquet` of b.

    Pairs arms by their names, and families of arms by their studies' names. `shared` leaves out prompts that only one
    run has; without it they are refused. Raises ConfigError for runs that differ in prompts, seeds, noise or features,
    and for one that is not measured yet.
    """
    check_comparable(a.config, b.config)
    table_a, table_b = read_table(a), read_table(b)
    prompts = _shared_prompts(table_a, table_b, shared)
    pair = Pair.of(table_a, table_b, prompts)
    sets = _set_rows(read_sets(a), read_sets(b), pair) if table_a.prompts == table_b.prompts else ()
    rows = [*_arm_rows(b.config, pair), *sets, *_family_rows(b, pair)]
    rows = [replace(row, warning=pair.warned.get(row.name)) for row in rows]
    path = b.directory.root / FOLDER / f"{a.config.run.name}.parquet"
    on = {"prompts": len(prompts), "seeds": table_a.seeds}
    b.directory.write_parquet(path, pa.Table.from_pylist([row.to_dict() | on for row in rows], SCHEMA))
    alone = ([n for n in table_a.arms if n not in pair.arms], [n for n in table_b.arms if n not in pair.arms])
    return Comparison(rows, path, len(prompts), differences(a.config, b.config), alone)


def check_comparable(a: Config, b: Config) -> None:
    """ConfigError with the settings in which the runs must not differ, if they do."""
    for what, keys in SAME.items():
        differing = [text for text in differences(a, b) if text.partition(" ")[0] in keys]
        if differing:
            raise ConfigError(
                f"the runs differ in their {what} ({'; '.join(differing)}): their images cannot be paired, so evaluate "
                "one of them anew like the other"
            )


def differences(a: Config, b: Config) -> list[str]:
    """Every setting that decides a run's files and differs, as `key is a's and b's`."""
    pairs = zip(identity.identity(a), identity.identity(b), strict=True)
    return [f"{key} is {first!r} and {second!r}" for (key, first), (_, second) in pairs if first != second]


def summary(comparison: Comparison, a: str, b: str) -> str:
    """The comparison as text: differences with their intervals, and what the runs do not share."""
    how = dict.fromkeys(row.interval for row in comparison.rows if row.what == "arm")
    about = no_interval(comparison.prompts)
    about = about or f"paired intervals by {' and by '.join(how)}, not adjusted for their number"
    lines = [f"{b} less {a}, on {comparison.prompts} shared prompts; {about}"]
    broken = {row.name: row.broken for row in comparison.rows if row.broken}
    warned = {row.name: row.warning for row in comparison.rows if row.warning}
    for what in ("arm", "family"):
        rows = [row for row in comparison.rows if row.what == what]
        cells: dict[str, dict[str, Estimate]] = {}
        for row in rows:
            cells.setdefault(row.name, {})[row.metric] = row.estimate
        if cells:
            lines += ["", tables.estimates(cells, list(dict.fromkeys(row.metric for row in rows)), broken, warned)]
    boxes = [box_words(row.box[:2], *row.box[2:]) for row in comparison.rows if row.box]
    lines += [f"{text[0].upper()}{text[1:]}" for text in dict.fromkeys(boxes)]
    for name, arms in zip((a, b), comparison.alone, strict=True):
        lines += [f"Only in {name}: {', '.join(arms)}"] if arms else []
    lines += [f"The runs differ in {text}" for text in comparison.differing]
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


def _reasons(a: dict[str, str], b: dict[str, str], arm: str) -> str | None:
    """What either run says of an arm."""
    return "; ".join(f"{run}: {reasons[arm]}" for run, reasons in (("a", a), ("b", b)) if arm in reasons) or None


def _arm_rows(config: Config, pair: Pair) -> Iterator[Row]:
    result, count = bootstrap(pair.values, **config.front.resampling), len(pair.arms)
    for i, arm in enumerate(pair.arms):
        for metric, mean in result.mean.items():
            estimate = Estimate(*result.difference(metric, count + i, i))
            how = f"{result.method} bootstrap of prompts"
            yield Row("arm", arm, metric, mean[i], mean[count + i], estimate, how, pair.broken[arm])


def _set_rows(a: dict[str, SetMeasures], b: dict[str, SetMeasures], pair: Pair) -> Iterator[Row]:
    """Measures of sets, each against the base of its own run, if both were measured on the same subsets."""
    for arm in pair.arms:
        if arm not in a or arm not in b:
            continue
        first, second = a[arm].found, b[arm].found
        subsets = [(one.prompts, one.size, one.replicates.shape) for one in (first, second)]
        if subsets[0] != subsets[1] or a[arm].names != b[arm].names or not len(first.replicates):
            continue
        difference = second.less(first)
        for i, metric in enumerate(a[arm].names):
            low, high = difference.interval[i]
            if metric in SHARES:
                least, most = _newcombe(a[arm], b[arm], metric)
                low, high = min(low, least), max(high, most)
            estimate, how = Estimate(difference.estimate[i], low, high), f"subsets of {first.size} prompts"
            yield Row("arm", arm, metric, first.estimate[i], second.estimate[i], estimate, how, pair.broken[arm])


def _newcombe(a: SetMeasures, b: SetMeasures, metric: str) -> tuple[float, float]:
    """The difference of two shares from their own intervals (Newcombe 1998, method 10): of some width at 0 and 1."""
    place = a.names.index(metric)
    first, second = a.found.estimate[place], b.found.estimate[place]
    (low_a, high_a), (low_b, high_b) = a.interval(metric), b.interval(metric)
    value = second - first
    return value - np.hypot(second - low_b, high_a - first), value + np.hypot(high_b - second, first - low_a)


def _family_rows(study: Resolved, pair: Pair) -> Iterator[Row]:
    """Hypervolumes of each family in both runs on each plane, from one reference and in one unit; of families whose
    arms both runs have."""
    settings, y, count = study.config.front, study.config.front.diversity, len(pair.arms)
    broken = [i + offset for i, arm in enumerate(pair.arms) if pair.broken[arm] for offset in (0, count)]
    for single in study.studies:
        own = [pair.arms.index(arm.arm.name) if arm.arm.name in pair.arms else -1 for arm in single.arms]
        members = {
            family: indices
            for family, arms in planes.families(single).items()
            if min(indices := [own[i] for i in arms]) >= 0
        }
        both = {f"a {family}": indices for family, indices in members.items()}
        both |= {f"b {family}": [count + i for i in indices] for family, indices in members.items()}
        ends = [own[i] for i, arm in enumerate(single.arms) if arm.family in planes.ENDS and own[i] >= 0]
        ends += [count + i for i in ends]
        other = names.held_out(study.config, single.reward)
        axes = {slug(single.reward): "hypervolume", slug(other or ""): "held-out hypervolume", GOLD: "gold hypervolume"}
        for x, metric in axes.items():
            if members and x in pair.values and y in pair.values:
                axis, box = {x: pair.values[x], y: pair.values[y]}, planes.normalization(settings, x)
                result = bootstrap(axis, families=both, ends=ends, broken=broken, **box, **settings.resampling)
                yield from (_family_row(result, single.name, family, metric) for family in members)


def _family_row(result: Bootstrap, study: str, family: str, metric: str) -> Row:
    a, b = (result.hypervolume(f"{run} {family}")[0] for run in ("a", "b"))
    estimate = Estimate(*result.hypervolume_difference((f"b {family}", f"a {family}"))[:3])
    box = (result.x, result.y, result.reference.tolist(), result.scale.tolist())
    return Row("family", f"{study} {family}", metric, a, b, estimate, "jackknife of prompts", box=box)
