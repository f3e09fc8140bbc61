"""Reading the images dataset: a run's units, each image once."""

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
from pipelines.show.program import command_line
from pipelines.study.resolved import Drawable


@dataclass(frozen=True)
class Images:
    """The images of a run, one row per id, and counts of them against what the configuration asks for.

    Prompts of failed units are left out for all arms and not expected.
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
    """Prompts of units that failed, by number."""
    others: int = 0
    """Number of files of other units."""

    def require_complete(self) -> None:
        """ConfigError if images are missing."""
        if self.missing:
            others = f", and there are {self.others} groups of them {OTHERWISE}" if self.others else ""
            raise ConfigError(
                f"{self.missing} of {self.expected} images are missing{others}: run `{command_line('evaluate')}` "
                "with the same configuration"
            )

    def check(self) -> dict[str, int]:
        """The counts, for a record."""
        counts = ("expected", "found", "missing", "duplicate", *(("failed",) if self.failed else ()))
        return {name: getattr(self, name) for name in counts}


def read(study: Drawable, without: Sequence[str] = ()) -> Images:
    """Read the run's units, each id once, `without` some columns; files of other units are left alone.

    Prompts of failed units are left out, so all arms have the same ones. Leave out columns that are not needed, the
    images above all: the others are kept in memory.
    """
    run, folder = study.directory, study.directory.images
    run.pull(folder)
    asked = {unit.name: unit for unit in units(study)}
    failed = {row["unit"] for row in failures.of_run(run)}
    left_out = {unit.prompt_id for unit in asked.values() if unit.name in failed}
    kept = [unit for unit in asked.values() if unit.prompt_id not in left_out]
    paths = {unit.name: path for unit in kept if (path := folder / PART.format(unit=unit.name)).exists()}
    rows, tables = 0, [pa.table({"id": pa.array([], pa.string())})] if not paths else []
    for name, path in paths.items():
        count, table = _read_unit(run, path, set(asked[name].ids), without)
        rows += count
        tables.append(table)
    table = pa.concat_tables(tables)
    every, expected = (len(study.arms) * sum(len(unit.seeds) for unit in some) for some in (asked.values(), kept))
    there = {path.stem.removeprefix("part-") for path in folder.glob(PART.format(unit="*"))}
    return Images(
        table, expected=every, found=len(table), missing=expected - len(table), duplicate=rows - len(table),
        cost=_mean_cost(list(paths.values())), paths=tuple(paths.values()), failed=every - expected,
        left_out=tuple(sorted(left_out)), others=len(there - asked.keys()),
    )  # fmt: skip


def _read_unit(run: RunDir, path: Path, ids: set[str], without: Sequence[str]) -> tuple[int, pa.Table]:
    """The number of rows of a unit's file, and the first row of each of these ids."""
    table = run.read_parquet(path, REMAKE, without=[name for name in without if name != "id"])
    first: dict[str, int] = {}
    for row, name in enumerate(table["id"].to_pylist()):
        if name in ids:
            first.setdefault(name, row)
    kept = table.take(pa.array(first.values(), pa.int64())) if len(first) < len(table) else table
    return len(table), kept.drop_columns("id" if "id" in without else []).replace_schema_metadata(None)


REMAKE = f"delete it, and run `{command_line('evaluate')}` with the same configuration"


def _mean_cost(paths: Sequence[Path]) -> dict[str, float]:
    """The units' mean predictions per (prompt, seed) for all arms, beside those of loops that share no states."""
    costs = [json.loads((pq.read_schema(path).metadata or {}).get(b"cost", b"{}")) for path in paths]
    names = [name for name in costs[0] if all(name in cost for cost in costs)] if costs else []
    return {name: sum(cost[name] for cost in costs) / len(costs) for name in names}


OTHERWISE = "that an earlier version made, or whose model, adapters, rewards or features have changed since"
