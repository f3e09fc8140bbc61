"""Units that failed twice: listed in a table with the reason, and left out of the evaluation with their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.config import RunError
from pipelines.evaluate.scorers import PART
from pipelines.evaluate.units import Unit
from pipelines.runs.directory import RunDir
from pipelines.show.program import command_line
from pipelines.study.resolved import Resolved

SCHEMA = pa.schema({
    "unit": pa.string(), "prompt_id": pa.int32(), "prompt": pa.string(), "seeds": pa.list_(pa.int32()),
    "stage": pa.string(), "error": pa.string(),
})  # fmt: skip


class EvaluationError(RunError):
    """More failed than the configuration lets pass."""


class Failures:
    """The table of units that fail while a plan runs, written as they come; it ends a hopeless plan."""

    def __init__(self, run: RunDir, units: Iterable[Unit], most_in_a_row: int) -> None:
        self.run, self.path, self.most = run, run.failures, most_in_a_row
        self.units: Mapping[str, Unit] = {unit.name: unit for unit in units}
        self.known = {row["unit"] for row in read(run)}
        self.rows: list[dict[str, Any]] = []
        self.in_a_row = 0

    def add(self, unit: str, stage: str, error: str) -> None:
        """Record a failure; EvaluationError if it is one too many in a row.

        Units that failed in an earlier run of the same plan do not count.
        """
        failed = self.units[unit]
        about = {"prompt_id": failed.prompt_id, "prompt": failed.prompt, "seeds": list(failed.seeds)}
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
        """Remove an earlier run's table after a plan without failures: its units have been made since."""
        if not self.rows and self.path.exists():
            self.run.forget(self.path)


def read(run: RunDir) -> list[dict[str, Any]]:
    """The rows of a table of failures; none if there is no table."""
    return run.read_parquet(run.failures, FIX).to_pylist() if run.failures.exists() else []


FIX = f"delete it, and run `{command_line('evaluate')}` again, which tells of what fails anew"


def of_run(files: RunDir) -> list[dict[str, Any]]:
    """The run's failures that still have no images."""
    return [row for row in read(files) if not (files.images / PART.format(unit=row["unit"])).exists()]


def conclude(study: Resolved) -> None:
    """Report what failed; EvaluationError if it is a larger share of the groups than evaluate.max_failed."""
    files = study.directory
    failed = of_run(files)
    if not failed:
        return
    made = sum(1 for _ in files.images.glob(PART.format(unit="*")))
    share, most = len(failed) / (made + len(failed)), study.config.evaluate.max_failed
    prompts = list(dict.fromkeys(row["prompt"] for row in failed))
    report = (
        f"{len(failed)} of {made + len(failed)} groups of images failed, and {len(prompts)} prompts are left out: "
        f"{prompts[0]!r} ({failed[0]['error']}); see {files.failures}. The same command tries "
        "them again"
    )
    if share > most:
        raise EvaluationError(f"{report}. This is more than evaluate.max_failed = {most:g}")
    print(f"{report}.")
