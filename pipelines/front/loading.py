"""Reads JSON files into dataclasses; errors name the file, the place in it and the fix."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.config import CONFIG_FILE, ConfigError
from pipelines.front.results import Front
from pipelines.runs.directory import FRONT_FORMAT, RunDir
from pipelines.show.program import command_line

T = TypeVar("T")
SHOWN = 40  # characters of a wrong value


def load(path: Path, kind: type[T], fix: str) -> T:
    """A JSON file as an object of `kind`, a dataclass; ConfigError with `fix` if it is none."""
    return validate(parse(path, fix), kind, path.name, fix)


def parse(path: Path, fix: str) -> Any:
    """What a JSON file holds; ConfigError with `fix` if it is none."""
    try:
        return json.loads(text(path, fix))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path.name} is not JSON (line {error.lineno}: {error.msg}): {fix}") from error


def text(path: Path, fix: str) -> str:
    """A file's text; ConfigError with `fix` if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path.name} is missing in {path.parent.name}/: {fix}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not text: {fix}") from error


def validate(content: Any, kind: type[T], name: str, fix: str) -> T:
    """An object of `kind` from what JSON holds; ConfigError with `name`, the place in it and `fix` if it is none."""
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]).lstrip(".")
        reason = first["msg"][0].lower() + first["msg"][1:]
        shown = repr(first["input"])
        shown = f"{shown[:SHOWN]}…" if len(shown) > SHOWN else shown
        problem = f"is wrong at {place or 'its top'}: {shown}, {reason}"
        if first["type"] == "missing":
            problem = f"has no {place}"
        raise ConfigError(f"{name} {problem}: {fix}") from error


def read_front(files: RunDir) -> Front:
    """A run's results; ConfigError with the command that makes them anew if another version wrote them."""
    fix = front_fix(files)
    content = parse(files.front, fix)
    if isinstance(content, dict) and (made := content.get("format", 1)) != FRONT_FORMAT:
        raise ConfigError(f"front.json was written by another version (format {made}, not {FRONT_FORMAT}): {fix}")
    front = validate(content, Front, files.front.name, fix)
    if not front.studies:
        raise ConfigError(f"front.json has no studies: {fix}")
    return front


def front_fix(files: RunDir) -> str:
    """What makes a run's results anew."""
    return f"run `{command_line('front', '--config', files.root / CONFIG_FILE)}`, which is cheap"


def write_front(files: RunDir, front: Front) -> None:
    """Write `front.json`: NaN becomes null."""
    with files.whole(files.front) as part:
        part.write_bytes(_adapter(Front).dump_json(front, indent=2) + b"\n")


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)
