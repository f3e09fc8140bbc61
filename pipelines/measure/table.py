"""The tables that measuring leaves, and how they are read."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.config import CONFIG_FILE, Config, ConfigError
from pipelines.runs import directory, mirror
from pipelines.runs.directory import IMAGES_FORMAT, RunDir
from pipelines.study.prompts import EVALUATE, resolve_prompts

PER_PROMPT = "per_prompt.parquet"
PER_SUBSET = "per_subset.parquet"
SCHEMA = pa.schema({
    "arm": pa.string(), "metric": pa.string(), "value": pa.float64(), "low": pa.float64(), "high": pa.float64(),
    "prompts": pa.int64(), "seeds": pa.int64(), "n": pa.int64(), "interval": pa.string(), "broken": pa.string(),
    "warning": pa.string(),
})  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Metrics prompt by prompt: (arms, prompts) a metric, arms by name."""

    arms: list[str]
    prompts: list[str]
    seeds: int
    values: dict[str, np.ndarray]
    broken: dict[str, str] = field(default_factory=dict)
    """Arms whose images are unsound, and how."""
    warned: dict[str, str] = field(default_factory=dict)
    """What to know of arms whose images are sound."""

    def rows(self, arms: list[str]) -> dict[str, np.ndarray]:
        """The metrics of these arms, in this order."""
        index = [self.arms.index(arm) for arm in arms]
        return {metric: values[index] for metric, values in self.values.items()}


def measured_prompts(config: Config) -> dict[int, str]:
    """Every prompt by its place in evaluate.prompts, the number of its images in the dataset."""
    return dict(enumerate(resolve_prompts(config, EVALUATE)))


def notes(rows: list[dict[str, Any]], column: str) -> dict[str, str]:
    """What a column says of arms."""
    return {row["arm"]: row[column] for row in rows if row[column]}


def again(config: Config) -> str:
    """The command that measures a run anew."""
    return shlex.join(["python", "-m", "pipelines", "measure", mirror.storage_path(config.directory)])


def read_table(config: Config) -> Table:
    """The table prompt by prompt that `measure` wrote; ConfigError where it did not."""
    long = read_written(config, RunDir.of(config).root / PER_PROMPT)
    arms, metrics = (list(dict.fromkeys(long[name].to_pylist())) for name in ("arm", "metric"))
    known = measured_prompts(config)
    prompts = [known[i] for i in dict.fromkeys(long["prompt_id"].to_pylist())]
    grid = long["value"].to_numpy().reshape(len(metrics), len(arms), len(prompts))
    rows = read_rows(config)
    told = notes(rows, "broken"), notes(rows, "warning")
    return Table(arms, prompts, config.evaluate.seeds, dict(zip(metrics, grid, strict=True)), *told)


def read_rows(config: Config) -> list[dict[str, Any]]:
    """The rows of `metrics.parquet`; ConfigError where it is missing or another version measured."""
    files = RunDir.of(config)
    path = files.metrics
    if (made := directory.other_format(files)) is not None:
        raise ConfigError(
            f"{path} was measured by another version, on images of format {made} where this one makes {IMAGES_FORMAT}: "
            f"run `python -m pipelines evaluate --config {files.root / CONFIG_FILE}` first, or use that version"
        )
    table = read_written(config, path)
    if table.schema.names != SCHEMA.names:
        raise ConfigError(f"{path} has columns {table.schema.names}, not {SCHEMA.names}: {_made_by(config)}")
    return table.to_pylist()


def read_written(config: Config, path: Path) -> pa.Table:
    """A table that `measure` wrote; ConfigError with the command that makes it where it is missing or spoilt."""
    if not path.exists():
        raise ConfigError(f"{mirror.shown(path)} is missing: {_made_by(config)}")
    return directory.read_parquet(path, _made_by(config))


def _made_by(config: Config) -> str:
    """What to run for the measures of a run: `evaluate` where it has no images yet."""
    if any(name.startswith("part-") for name in mirror.names(RunDir.of(config).images)):
        return f"run `{again(config)}` first"
    return "run `python -m pipelines evaluate` with the same configuration first"
