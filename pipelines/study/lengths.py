"""How far each adapter goes from the base, by which `auto` weights are fitted: read without torch and Ray.

`pipelines.evaluate.lengths` measures it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.runs.directory import RunDir


def file(config: Config, adapter: str) -> Path:
    """Where an adapter's path length is kept, beside its weights."""
    return RunDir.of(config).adapters / adapter / "length.json"


def record(config: Config, adapter: str) -> dict[str, Any] | None:
    """The path length and what it was measured on; None before that."""
    path = file(config, adapter)
    return RunDir.of(config).read_json(path) if path.exists() else None


def read(config: Config, adapter: str) -> float | None:
    """The path length, the root of the mean over steps in units of eps; None before it is measured."""
    known = record(config, adapter)
    return None if known is None else known["length"]
