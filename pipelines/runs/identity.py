"""Which run a directory holds: the configuration that it keeps, and whether another one may go on with it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pipelines.config import CONFIG_FILE, ONCE_L2, SECTIONS, Config, from_dict, to_yaml, uris
from pipelines.config import ConfigError as ConfigError
from pipelines.config.loading import merge, parse_override, read_yaml
from pipelines.config.values import plain
from pipelines.runs import locks, mirror
from pipelines.runs.directory import RunDir


def of_run(directory: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run's directory keeps, wherever it lies now, with overrides; ConfigError for no run."""
    path = find_run(directory)
    if not (path / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{mirror.shown(path)} is no run (it has no {CONFIG_FILE}): give the directory of one, as ~/aig-runs/demo"
        )
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    merge(values, _read_kept(path / CONFIG_FILE), str(path / CONFIG_FILE))
    for text in overrides:
        merge(values, parse_override(text), text)
    values["run"] |= {"name": path.name, "storage": mirror.storage_of(path)}
    return Config(**{name: SECTIONS[name](**given) for name, given in values.items()})  # type: ignore[arg-type]


def find_run(directory: str | Path) -> Path:
    """The folder that a run's path or URI names; of a URI its mirror, with the run's configuration if there is one.

    ConfigError where a store cannot be read.
    """
    if not uris.is_uri(str(directory)):
        return Path(directory).expanduser().absolute()
    storage, name = uris.parted(str(directory))
    path = mirror.mirror(storage, name)
    _check_store(path, writing=False)
    return path


def _check_store(path: Path, writing: bool) -> None:
    """Whether a run's store can be used; then its configuration is here, if it has one.

    The mirror of a run in which a process of this machine works is that one's, and is left as it is.
    """
    if not mirror.is_mirror(path):
        return
    try:
        mirror.check(path, writing)
        path.mkdir(parents=True, exist_ok=True)
        file = locks.take(path / LOCK_FILE)
        if file is None:
            return
        with file:
            kept = mirror.set_aside(path)
            mirror.pull(path / CONFIG_FILE)
    except mirror.StorageError as error:
        raise ConfigError(f"run.storage: {error}") from error
    if kept is not None:
        print(f"{mirror.shown(path)} is empty: what was mirrored of a run there is kept in {kept}")


def check_directory(config: Config) -> Path:
    """The run's directory, which is new, empty or this run's own, and can be written; nothing is written yet.

    ConfigError where it is something else.
    """
    path = RunDir.of(config).root
    made = path / CONFIG_FILE
    _check_store(path, writing=True)
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file: choose another run.name or run.storage")
        if made.exists():
            _check_same_run(config, made)
        elif any(name not in OWN_FILES for name in mirror.names(path)):
            raise ConfigError(
                f"{mirror.shown(path)} is not empty and holds no {CONFIG_FILE} of ours: choose another run.name or "
                "run.storage"
            )
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the run directory ({error.strerror}): choose another run.storage"
        ) from error
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot write there ({there} is not a writable folder): choose another run.storage")
    return path


def lock_directory(config: Config) -> TextIO:
    """Make the run's directory, and hold its lock on this machine until the file that is returned is closed.

    ConfigError where another process holds it.
    """
    path = RunDir.of(config).root
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        file = locks.take(path / LOCK_FILE)
    if file is None:
        raise ConfigError(
            f"another process is working in {mirror.shown(path)}: wait for it, or choose another run.name"
        )
    return file


def claim_directory(config: Config) -> Path:
    """Make the run's directory, after `check_directory`, and write its `config.yaml`.

    Where other processes may do the same, hold its lock before: what was checked is still so when it is written.
    """
    path = check_directory(config)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        part = path / f".{CONFIG_FILE}.part"
        part.write_text(to_yaml(config))
        part.replace(path / CONFIG_FILE)
        mirror.push(path / CONFIG_FILE)
    return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot write the run directory ({error.strerror}): choose another run.storage"
        ) from error


LOCK_FILE = mirror.LOCK_FILE
# What a first start that was killed may leave before there is a configuration.
OWN_FILES = (f".{CONFIG_FILE}.part", LOCK_FILE)


def _check_same_run(config: Config, made: Path) -> None:
    try:
        existing = from_dict(_read_kept(made))
    except ConfigError as error:
        raise ConfigError(
            f"{mirror.shown(made.parent)} belongs to another version or program ({error}): choose another run.name"
        ) from error
    differing = [
        f"{key} = {plain(theirs)}, not {plain(ours)}"
        for (key, theirs), (_, ours) in zip(identity(existing), identity(config), strict=True)
        if theirs != ours
    ]
    if differing:
        raise ConfigError(
            f"run {config.run.name!r} in {mirror.storage_of(made.parent)} was made with {'; '.join(differing)}: "
            "choose another run.name, or give the same configuration to resume it"
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
    """The configuration that a run keeps. A key that it lacks is younger than the run, and its default what was done
    then; only the optimizer's has changed."""
    values = read_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("train", {}), dict):
        return values
    return {**values, "train": {"optimizer": ONCE_L2[0], **values.get("train", {})}}
