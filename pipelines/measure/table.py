"""The tables that measuring writes, and reading them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.config import CONFIG_FILE, ConfigError
from pipelines.runs.directory import IMAGES_FORMAT, RunDir, other_format
from pipelines.show.program import command_line
from pipelines.study.resolved import Resolved

PER_PROMPT = "per_prompt.parquet"
PER_SUBSET = "per_subset.parquet"
SCHEMA = pa.schema({
    "arm": pa.string(), "metric": pa.string(), "value": pa.float64(), "low": pa.float64(), "high": pa.float64(),
    "prompts": pa.int64(), "seeds": pa.int64(), "n": pa.int64(), "interval": pa.string(), "broken": pa.string(),
    "warning": pa.string(),
})  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Metrics prompt by prompt: (arms, prompts) per metric."""

    arms: list[str]
    prompts: list[str]
    seeds: int
    values: dict[str, np.ndarray]
    broken: dict[str, str] = field(default_factory=dict)
    """By arm what is wrong with its images."""
    warned: dict[str, str] = field(default_factory=dict)
    """By arm a note on images that are sound."""

    def rows(self, arms: list[str]) -> dict[str, np.ndarray]:
        """The metrics of these arms, in this order."""
        index = [self.arms.index(arm) for arm in arms]
        return {metric: values[index] for metric, values in self.values.items()}


def notes(rows: list[dict[str, Any]], column: str) -> dict[str, str]:
    """A column's entries by arm."""
    return {row["arm"]: row[column] for row in rows if row[column]}


def again(files: RunDir) -> str:
    """The command that measures a run anew."""
    return command_line("measure", files.storage_path())


def read_table(study: Resolved) -> Table:
    """The table prompt by prompt that `measure` wrote; ConfigError if it did not."""
    files = study.directory
    long = read_written(files, files.root / PER_PROMPT)
    arms, metrics = (list(dict.fromkeys(long[name].to_pylist())) for name in ("arm", "metric"))
    prompts = [study.prompts[i] for i in dict.fromkeys(long["prompt_id"].to_pylist())]
    grid = long["value"].to_numpy().reshape(len(metrics), len(arms), len(prompts))
    rows = read_rows(files)
    values, seeds = dict(zip(metrics, grid, strict=True)), study.config.evaluate.seeds
    return Table(arms, prompts, seeds, values, notes(rows, "broken"), notes(rows, "warning"))


def read_rows(files: RunDir) -> list[dict[str, Any]]:
    """The rows of `metrics.parquet`; ConfigError if it is missing or another version measured."""
    path = files.metrics
    if (made := other_format(files)) is not None:
        raise ConfigError(
            f"{path} was measured by another version, on images of format {made} where this one makes {IMAGES_FORMAT}: "
            f"run `{command_line('evaluate', '--config', files.root / CONFIG_FILE)}` first, or use that version"
        )
    table = read_written(files, path)
    if table.schema.names != SCHEMA.names:
        raise ConfigError(f"{path} has columns {table.schema.names}, not {SCHEMA.names}: {_made_by(files)}")
    return table.to_pylist()


def read_written(files: RunDir, path: Path) -> pa.Table:
    """A table that `measure` wrote; ConfigError with the command that makes it if it is missing or spoilt."""
    if not path.exists():
        raise ConfigError(f"{files.shown(path)} is missing: {_made_by(files)}")
    return files.read_parquet(path, _made_by(files))


def _made_by(files: RunDir) -> str:
    """What to run for the measures of a run: `evaluate` if it has no images yet."""
    if any(name.startswith("part-") for name in files.names(files.images)):
        return f"run `{again(files)}` first"
    return f"run `{command_line('evaluate')}` with the same configuration first"
