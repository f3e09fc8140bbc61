"""The images dataset as it is read: a run's units, each image once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import ConfigError
from pipelines.evaluate import failures
from pipelines.evaluate.scorers import PART
from pipelines.evaluate.units import units
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import Drawable


@dataclass(frozen=True)
class Images:
    """The images dataset as it was read: one row an id, and what was found against what the configuration asks for.

    What was expected is found, missing, or left out with the prompt of a unit that failed, for all arms alike.
    """

    table: pa.Table
    expected: int
    found: int
    missing: int
    duplicate: int
    cost: dict[str, Any]
    paths: tuple[Path, ...] = ()
    """The units' files."""
    failed: int = 0
    left_out: tuple[int, ...] = ()
    """Prompts of units that failed, by their places in evaluate.prompts."""
    others: int = 0
    """Units' files beside those that are asked for."""

    def require_complete(self) -> None:
        """ConfigError where images are missing."""
        if self.missing:
            others = f", and there are {self.others} groups of them {OTHERWISE}" if self.others else ""
            raise ConfigError(
                f"{self.missing} of {self.expected} images are missing{others}: run `python -m pipelines evaluate` "
                "with the same configuration"
            )

    def check(self) -> dict[str, int]:
        """The counts, for a record."""
        counts = ("expected", "found", "missing", "duplicate", *(("failed",) if self.failed else ()))
        return {name: getattr(self, name) for name in counts}


def read(study: Drawable, without: Sequence[str] = ()) -> Images:
    """Read the run's units, each id once, all columns but some; files of other units are left alone.

    Prompts of units that failed are left out whole, so that all arms have the same. One unit is in memory beside what
    is kept of the others: columns that are not needed, the images above all, belong into `without`.
    """
    run, folder = study.directory, study.directory.images
    run.pull(folder)
    asked = units(study)
    failed = {row["unit"] for row in failures.of_run(run)}
    left_out = tuple(sorted({unit.prompt_id for unit in asked if unit.name in failed}))
    expected, rows, tables, paths = 0, 0, [], []
    for unit in asked:
        if unit.prompt_id in left_out:
            continue
        path = folder / PART.format(unit=unit.name)
        ids = set(unit.ids)
        expected += len(ids)
        if path.exists():
            found, kept = _read_unit(run, path, ids, without)
            rows += found
            tables.append(kept)
            paths.append(path)
    every = len(study.arms) * sum(len(unit.seeds) for unit in asked)
    others = {path.name for path in folder.glob(PART.format(unit="*"))} - {PART.format(unit=u.name) for u in asked}
    about: dict[str, Any] = {
        "expected": every, "failed": every - expected, "left_out": left_out, "others": len(others)
    }  # fmt: skip
    if not paths:
        empty = pa.table({"id": pa.array([], pa.string())})
        return Images(empty, found=0, missing=expected, duplicate=0, cost={}, **about)
    unique = pa.concat_tables(tables)
    counts = {"found": len(unique), "missing": expected - len(unique), "duplicate": rows - len(unique)}
    return Images(unique, cost=_mean_cost(paths), paths=tuple(paths), **counts, **about)


def _read_unit(run: RunDir, path: Path, ids: set[str], without: Sequence[str]) -> tuple[int, pa.Table]:
    """How many rows a unit's file has, and the first of each of these ids."""
    table = run.read_parquet(path, REMAKE, without=[name for name in without if name != "id"])
    first: dict[str, int] = {}
    for row, name in enumerate(table["id"].to_pylist()):
        if name in ids:
            first.setdefault(name, row)
    kept = table.take(pa.array(first.values(), pa.int64())) if len(first) < len(table) else table
    return len(table), kept.drop_columns("id" if "id" in without else []).replace_schema_metadata(None)


REMAKE = "delete it, and run `python -m pipelines evaluate` with the same configuration"


def _mean_cost(paths: Sequence[Path]) -> dict[str, float]:
    """Predictions a (prompt, seed) for all arms, as the units say, and what loops without shared states would make."""
    costs = [json.loads((pq.read_schema(path).metadata or {}).get(b"cost", b"{}")) for path in paths]
    names = [name for name in costs[0] if all(name in cost for cost in costs)]  # earlier versions have others
    return {name: sum(cost[name] for cost in costs) / len(costs) for name in names}


OTHERWISE = "that an earlier version made, or whose model, adapters, rewards or features have changed since"
