"""Which run a directory holds: the configuration that it keeps, and whether another one may go on with it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipelines.config import CONFIG_FILE, ONCE_L2, SECTIONS, Config, ConfigError, from_dict, to_yaml
from pipelines.config.loading import merge, parse_override, read_yaml
from pipelines.config.values import plain
from pipelines.runs.directory import LOCK_FILE, RunDir
from pipelines.runs.mirror import StorageError

# What a first start that was killed may leave before there is a configuration.
OWN_FILES = (f".{CONFIG_FILE}.part", LOCK_FILE)


def of_run(place: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run keeps, wherever its directory lies now, with overrides; ConfigError for no run."""
    run = find_run(place)
    kept = run.root / CONFIG_FILE
    if not kept.is_file():
        raise ConfigError(
            f"{run.shown()} is no run (it has no {CONFIG_FILE}): give the directory of one, as ~/aig-runs/demo"
        )
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    merge(values, _read_kept(kept), str(kept))
    for text in overrides:
        merge(values, parse_override(text), text)
    values["run"] |= {"name": run.root.name, "storage": run.storage}
    return Config(**{name: SECTIONS[name](**section) for name, section in values.items()})  # type: ignore[arg-type]


def find_run(place: str | Path) -> RunDir:
    """The directory that a run's path or URI names; for a URI its mirror, with the run's configuration if it has one.

    ConfigError if a store cannot be read.
    """
    run = RunDir.at(place)
    _check_store(run, writing=False)
    return run


def _check_store(run: RunDir, writing: bool) -> None:
    """Check that a run's store can be used, and pull its configuration if it has one.

    A mirror in which another process of this machine works is left as it is.
    """
    if run.mirror is None:
        return
    kept = None
    try:
        run.mirror.check(writing)
        run.root.mkdir(parents=True, exist_ok=True)
        with run.lock() as ours:
            if ours:
                kept = run.mirror.set_aside()
                run.pull(run.root / CONFIG_FILE)
    except StorageError as error:
        raise ConfigError(f"run.storage: {error}") from error
    if kept is not None:
        print(f"{run.shown()} is empty: what was mirrored of a run there is kept in {kept}")


def check_directory(config: Config) -> RunDir:
    """The run's directory, which is new, empty or this run's own, and can be written; nothing is written yet.

    ConfigError if it is something else.
    """
    run = RunDir.of(config)
    path, kept = run.root, run.root / CONFIG_FILE
    _check_store(run, writing=True)
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file: choose another run.name or run.storage")
        if kept.exists():
            _check_same_run(config, run)
        elif any(name not in OWN_FILES for name in run.names(path)):
            raise ConfigError(
                f"{run.shown()} is not empty and holds no {CONFIG_FILE} of ours: choose another run.name or run.storage"
            )
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the run directory ({error.strerror}): choose another run.storage"
        ) from error
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot write there ({there} is not a writable folder): choose another run.storage")
    return run


@contextmanager
def lock_directory(config: Config) -> Iterator[RunDir]:
    """Make the run's directory and hold its lock on this machine within the context.

    ConfigError if another process holds it.
    """
    run = RunDir.of(config)
    with ExitStack() as held:
        with _writing(run.root):
            run.root.mkdir(parents=True, exist_ok=True)
            ours = held.enter_context(run.lock())
        if not ours:
            raise ConfigError(f"another process is working in {run.shown()}: wait for it, or choose another run.name")
        yield run


def claim_directory(config: Config) -> RunDir:
    """Make the run's directory, after `check_directory`, and write its `config.yaml`.

    If other processes may do the same, hold its lock first: what was checked then still holds when it is written.
    """
    run = check_directory(config)
    with _writing(run.root), run.whole(run.root / CONFIG_FILE) as part:
        part.write_text(to_yaml(config))
    return run


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot write the run directory ({error.strerror or error}): choose another run.storage"
        ) from error


def _check_same_run(config: Config, run: RunDir) -> None:
    try:
        existing = from_dict(_read_kept(run.root / CONFIG_FILE))
    except ConfigError as error:
        raise ConfigError(
            f"{run.shown()} belongs to another version or program ({error}): choose another run.name"
        ) from error
    differing = [
        f"{key} = {plain(theirs)}, not {plain(ours)}"
        for (key, theirs), (_, ours) in zip(identity(existing), identity(config), strict=True)
        if theirs != ours
    ]
    if differing:
        raise ConfigError(
            f"run {config.run.name!r} in {run.storage} was made with {'; '.join(differing)}: choose another run.name, "
            "or give the same configuration to resume it"
        )


def identity(config: Config) -> Iterator[tuple[str, Any]]:
    """The keys and values that decide what a run's files hold."""
    for name in SECTIONS:
        section = getattr(config, name)
        for item in dataclasses.fields(section):
            if not item.metadata.get("execution") and not item.metadata.get("in_key"):
                value = getattr(section, item.name)
                if item.metadata.get("named"):
                    value = tuple(text.partition("=")[0] for text in value)
                yield f"{name}.{item.name}", value


def _read_kept(path: Path) -> Any:
    """The configuration that a run keeps.

    A key that it lacks is younger than the run, and its default is what was done then; only the optimizer's changed.
    """
    values = read_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("train", {}), dict):
        return values
    return {**values, "train": {"optimizer": ONCE_L2[0], **values.get("train", {})}}
