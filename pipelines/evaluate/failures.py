"""Units that could not be made: each tried twice, kept in a table with its reason, and left out with its prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import pyarrow as pa

from pipelines.config import RunError
from pipelines.evaluate.scorers import PART
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import Resolved

SCHEMA = pa.schema({
    "unit": pa.string(), "prompt_id": pa.int32(), "prompt": pa.string(), "seeds": pa.list_(pa.int32()),
    "stage": pa.string(), "error": pa.string(),
})  # fmt: skip


class Unit(Protocol):
    """What is told of a unit that failed."""

    @property
    def name(self) -> str: ...
    @property
    def prompt_id(self) -> int: ...
    @property
    def prompt(self) -> str: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...


class EvaluationError(RunError):
    """More failed than the configuration lets pass."""


class Failures:
    """The units that fail while a plan is carried out: written as they come, and a stop to what fails without end."""

    def __init__(self, run: RunDir, units: Iterable[Unit], most_in_a_row: int) -> None:
        self.run, self.path, self.most = run, run.failures, most_in_a_row
        self.units: Mapping[str, Unit] = {unit.name: unit for unit in units}
        self.known = {row["unit"] for row in read(run)}
        self.rows: list[dict[str, Any]] = []
        self.in_a_row = 0

    def add(self, unit: str, stage: str, error: str) -> None:
        """Record a failure; EvaluationError where it is one too many in a row.

        One that failed before, in an earlier run of the same plan, says nothing about this run.
        """
        told = self.units[unit]
        about = {"prompt_id": told.prompt_id, "prompt": told.prompt, "seeds": list(told.seeds)}
        self.rows.append({"unit": unit, **about, "stage": stage, "error": error})
        self.run.write_parquet(self.path, pa.Table.from_pylist(self.rows, SCHEMA))
        self.in_a_row += unit not in self.known
        if self.in_a_row >= self.most:
            raise EvaluationError(
                f"{self.in_a_row} groups of images failed in a row ({self.path}); the last while it was to be "
                f"{stage}, with {error}"
            )

    def succeeded(self) -> None:
        self.in_a_row = 0

    def close(self) -> None:
        """At the plan's end: of what had failed before, everything that is not in the table now has been made."""
        if not self.rows and self.path.exists():
            self.run.forget(self.path)


def read(run: RunDir) -> list[dict[str, Any]]:
    """The rows of a table of failures; none where there is no table."""
    return run.read_parquet(run.failures, FIX).to_pylist() if run.failures.exists() else []


FIX = "delete it, and run `python -m pipelines evaluate` again, which tells of what fails anew"


def of_run(files: RunDir) -> list[dict[str, Any]]:
    """The run's failures whose images are not there."""
    return [row for row in read(files) if not (files.images / PART.format(unit=row["unit"])).exists()]


def conclude(study: Resolved) -> None:
    """Tell what failed; EvaluationError if it is a larger share of the groups than evaluate.max_failed."""
    files = study.directory
    failed = of_run(files)
    if not failed:
        return
    made = sum(1 for _ in files.images.glob(PART.format(unit="*")))
    share, most = len(failed) / (made + len(failed)), study.config.evaluate.max_failed
    prompts = list(dict.fromkeys(row["prompt"] for row in failed))
    told = (
        f"{len(failed)} of {made + len(failed)} groups of images failed, and {len(prompts)} prompts are left out: "
        f"{prompts[0]!r} ({failed[0]['error']}); see {files.failures}. The same command tries "
        "them again"
    )
    if share > most:
        raise EvaluationError(f"{told}. This is more than evaluate.max_failed = {most:g}")
    print(f"{told}.")
