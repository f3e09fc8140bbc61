"""Reads a run directory, and says which file is wrong, how, and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import CONFIG_FILE, ConfigError
from pipelines.front import loading
from pipelines.front.results import Arm, Front, StudyResult
from pipelines.runs.directory import IMAGES_FORMAT, RunDir, other_format
from pipelines.show.estimates import Number
from pipelines.show.program import command_line

_MEASURE = f"run `{command_line('measure', 'RUN')}` again"
_RUN = f"give the directory of a run that `{command_line('evaluate')}` made"
_TRAIN = f"run `{command_line('train')}` again for this adapter"


@dataclass(frozen=True)
class Listed:
    """An arm of arms.json."""

    name: str


@dataclass(frozen=True)
class Listing:
    """What `measure` keeps beside the metrics, in arms.json."""

    arms: tuple[Listed, ...]
    check: Mapping[str, Any] | None = None
    """How complete the images are."""
    command: str | None = None
    versions: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Validation:
    """One line of a training curve."""

    step: int
    reward: Number = math.nan
    held_out: Number = math.nan
    gold: Number = math.nan
    accuracy: Number = math.nan
    diversity: Number = math.nan
    path: Number = math.nan
    kl_to_base: Number = math.nan


@dataclass(frozen=True)
class Run:
    """All that a report needs of a run directory."""

    directory: Path
    config_text: str
    config: Mapping[str, Any]
    front: Front
    listing: Listing
    curves: Mapping[str, tuple[Validation, ...]] = field(repr=False)
    """By the training's key, in the order of steps."""

    @property
    def studies(self) -> tuple[StudyResult, ...]:
        """The studies that are compared."""
        return self.front.studies

    @property
    def command(self) -> str | None:
        """What was typed to make the run."""
        return self.listing.command or self.config.get("command")

    @property
    def stopped(self) -> dict[str, str]:
        """Why a guard stopped a training, by its key."""
        single = [arm for arm in self.front.by_name.values() if not arm.members]
        return {arm.training: arm.stopped for arm in single if arm.training and arm.stopped}

    def drawn(self, arm: Arm) -> list[Arm]:
        """The arms whose images are an arm's: itself, or the members of a mean."""
        return [self.front.by_name[name] for name in arm.drawn if name in self.front.by_name]


def read_run(directory: Path) -> Run:
    """Read and check a run directory; raises ConfigError naming the file, what is wrong with it and the fix."""
    files = RunDir(Path(directory))
    if not files.root.is_dir():
        raise ConfigError(f"{files.root} is not a directory: {_RUN}")
    config_text = loading.text(files.root / CONFIG_FILE, _RUN)
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{CONFIG_FILE} is not YAML ({str(error).splitlines()[0]}): {_RUN}") from error
    config = loading.validate(config, dict[str, Any], CONFIG_FILE, _RUN)
    if (made := other_format(files)) is not None:
        raise ConfigError(
            f"arms.json was written by another version (format {made}, not {IMAGES_FORMAT}): run "
            f"`{command_line('evaluate')}` again, or use that version"
        )
    listing = loading.load(files.arms, Listing, _MEASURE)
    front = loading.read_front(files)
    known = {arm.name for arm in listing.arms}
    gone = [arm.name for arm in front.by_name.values() if arm.name not in known]
    if gone:
        raise ConfigError(f"front.json is out of date: arms.json has no arm {gone[0]!r}: {loading.front_fix(files)}")
    curves = {path.stem: _curve(path) for path in sorted(files.curves.glob("*.jsonl"))}
    return Run(files.root, config_text, config, front, listing, curves)


def _curve(path: Path) -> tuple[Validation, ...]:
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            name = f"curves/{path.name}, line {i},"
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{name} is not JSON ({error.msg}): {_TRAIN}") from error
            rows.append(loading.validate(content, Validation, name, _TRAIN))
    return tuple(sorted(rows, key=lambda row: row.step))
