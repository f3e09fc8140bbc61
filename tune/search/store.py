"""The measurements of a search: an append-only file of JSON lines, one per unit of work.

A measurement goes by what was drawn (set of prompts, prompt, curve), not by when: samplers depend on their seed and the
values alone, so a repeated search proposes the same candidates and draws only what is missing.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import ConfigError
from pipelines.runs.directory import PUSH_SECONDS, RunDir

SETTINGS = "settings.json"
EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class Unit:
    """Some prompts of a set with all their seeds, and the curves to draw together on them."""

    set: str
    prompt_ids: tuple[int, ...]
    curves: tuple[str, ...]
    """Names of the curves, by `Plan.curve`."""
    schedules: tuple[str, ...]
    """Their schedules."""


@dataclass(frozen=True)
class Measured:
    """The values and the cost of a unit."""

    values: dict[str, list[list[float]]]
    """Metric -> (curves, prompts), each the mean or the diversity of one prompt's seeds."""
    cost: dict[str, float]
    """Predictions made, over all images, and those that loops without shared states would make: `Cost.counts`."""


# Yields each unit with its measurements, in any order.
Draw = Callable[[Sequence[Unit]], Iterable[tuple[Unit, Measured]]]


class Store:
    """The measurements of one search; ConfigError if the folder has a search with other settings."""

    def __init__(self, run: RunDir, folder: Path, identity: dict[str, Any]) -> None:
        self.run, self.path = run, folder / EVALUATIONS
        self.known: dict[tuple[str, int, str], dict[str, float]] = {}
        self.cost: Counter[str] = Counter()
        self.pushed = time.monotonic()
        _claim(run, folder, identity)
        for line in self._lines():
            self._take(line)

    def add(self, unit: Unit, measured: Measured) -> None:
        """Keep a unit's measurements, on disk first."""
        line = {
            "set": unit.set, "prompts": unit.prompt_ids, "curves": unit.curves, "schedules": unit.schedules,
            "values": measured.values, "cost": measured.cost,
        }  # fmt: skip
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)
        if time.monotonic() - self.pushed >= PUSH_SECONDS:
            self.push()

    def push(self) -> None:
        """For a run in a store: upload the file, which grows all the time."""
        if self.path.exists():
            self.run.push(self.path)
        self.pushed = time.monotonic()

    def has(self, which: str, prompt_id: int, curve: str) -> bool:
        return (which, prompt_id, curve) in self.known

    def table(self, which: str, prompts: int, curves: Sequence[str]) -> dict[str, np.ndarray]:
        """Metric -> (curves, prompts) of curves that are measured on every prompt of the set."""
        rows = [[self.known[which, prompt, curve] for prompt in range(prompts)] for curve in curves]
        return {name: np.array([[cell[name] for cell in row] for row in rows]) for name in rows[0][0]}

    def _take(self, line: dict[str, Any]) -> None:
        for c, curve in enumerate(line["curves"]):
            for p, prompt in enumerate(line["prompts"]):
                self.known[line["set"], prompt, curve] = {name: cells[c][p] for name, cells in line["values"].items()}
        self.cost.update(line["cost"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        """All whole lines; the part of a line that a killed writer left is cut off."""
        data = self.path.read_bytes() if self.path.exists() else b""
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self.path, end)
        for number, line in enumerate(data[:end].splitlines(), 1):
            try:
                content = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{self.path}: line {number} is corrupt ({error}): delete that line") from error
            if "cost" not in content:
                raise ConfigError(
                    f"{self.path}: line {number} is of an earlier version (it has no 'cost'): delete "
                    f"{self.path.parent}, or choose another search.name"
                )
            yield content


def _claim(run: RunDir, folder: Path, identity: dict[str, Any]) -> None:
    """Write the search's settings into its folder, or check that they are the same."""
    path = folder / SETTINGS
    if not path.exists():
        run.write_json(path, identity)
        return
    try:
        kept = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is corrupt ({error}): delete {folder} to search anew") from error
    ours = json.loads(json.dumps(identity))
    if kept.get("format", 1) != ours.get("format", 1):
        raise ConfigError(
            f"search {folder.name!r} in {folder.parent} was made by another version, which identified models and "
            f"rewards in another way (format {kept.get('format', 1)}, not {ours.get('format', 1)}): choose another "
            "search.name"
        )
    differing = [
        f"{key} = {_short(kept.get(key))}, not {_short(value)}" for key, value in ours.items() if kept.get(key) != value
    ]
    if differing:
        raise ConfigError(
            f"search {folder.name!r} in {folder.parent} was made with {'; '.join(differing)}: choose another "
            "search.name, or give the same settings to resume it"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}..."
