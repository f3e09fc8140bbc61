"""Checkpoints of a training: folders that say of themselves whether they are whole, found by what lies in storage.

Storage is a folder, or what a mirror stands for: see `pipelines.runs.mirror`. Ray Train writes there itself, and
nothing here looks into the mirror.

Ray Train uploads them in the background and keeps a list of those that have arrived. Its list is not what a training
goes on from: a kill leaves checkpoints that are whole and not in it, some that are in it may be spoiled, and a list
that was cut off would end every later start. So each checkpoint holds a seal with the hash of its state, the newest
whole one counts, and Ray's list is begun anew at every start.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from aig import folders
from pipelines.runs import directory, mirror

STATE = "state.pt"
SEAL = "checkpoint.json"
SCRATCH = "aig-checkpoint-"
RAYS_LIST = "checkpoint_manager_snapshot.json"


def seal(folder: Path, step: int) -> None:
    """Write down the step and the hash of the state that was written into this folder."""
    directory.write_json(folder / SEAL, {"step": step, STATE: directory.file_digest(folder / STATE)})


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole.

    A store that does not answer says nothing about what lies there: its StorageError spoils no checkpoint.
    """
    try:
        if _seal_of(folder)[STATE] != _digest(folder / STATE):
            return f"{STATE} has not the content that it was sealed with"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = os.strerror(number) if (number := getattr(error, "errno", None)) else "its seal cannot be read"
        return f"{reason}: {mirror.shown(folder / SEAL)}"
    return None


def _seal_of(folder: Path) -> dict[str, Any]:
    filesystem, path = mirror.place(folder / SEAL)

    def work() -> bytes:
        with filesystem.open_input_stream(path) as file:
            return file.read()

    return json.loads(mirror.patiently(folder / SEAL, work))


def _digest(state: Path) -> str:
    """As `layout.file_digest`, wherever the file lies."""
    filesystem, path = mirror.place(state)

    def work() -> str:
        with filesystem.open_input_stream(path) as file:
            return directory.digest_of(file.read)

    return mirror.patiently(state, work)


def step_of(folder: Path) -> int:
    """The step that a checkpoint says it is of; -1 where it does not say."""
    try:
        return int(_seal_of(folder)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def newest(storage: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a training, and a warning for every newer one that is not whole."""
    steps = {folder: step_of(folder) for folder in _folders(storage)}
    spoiled = []
    # Those that do not say their step may be the newest: they come first.
    for folder in sorted(steps, key=lambda f: (steps[f] < 0, steps[f], f.name), reverse=True):
        reason = fault(folder)
        if reason is None:
            return folder, [f"{said}: going on from {folder.name}, step {steps[folder]}" for said in spoiled]
        spoiled.append(f"checkpoint {mirror.shown(folder)} is skipped ({reason})")
    return None, [f"{said}: starting from step 0" for said in spoiled]


def _folders(storage: Path) -> list[Path]:
    """The checkpoints of a training, whole or not."""
    filesystem, base = mirror.place(storage)
    infos = mirror.patiently(storage, lambda: filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True)))
    names = [info.base_name for info in infos if info.type == fs.FileType.Directory]
    return [storage / name for name in names if name.startswith("checkpoint_")]


@contextmanager
def here(folder: Path) -> Iterator[Path]:
    """A checkpoint's folder on this machine: itself, or of a store a copy for the length of the context."""
    if not mirror.is_mirror(folder):
        yield folder
        return
    filesystem, source = mirror.place(folder)
    copy = scratch()
    try:
        local = fs.LocalFileSystem()
        mirror.patiently(
            folder,
            lambda: fs.copy_files(source, str(copy), source_filesystem=filesystem, destination_filesystem=local),
        )
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _remove(folder: Path) -> None:
    filesystem, path = mirror.place(folder)
    with suppress(OSError):  # what is left is found, and removed, another time
        filesystem.delete_dir(path)


def clean_saves(adapters: Path, key: str) -> None:
    """What a worker that was killed while it saved the adapter or a snapshot has left: an old one is put back that the
    new one had not replaced, the rest is removed."""
    folders.recover_all(adapters, key)
    for folder in [*adapters.glob(f".{key}.*"), *adapters.glob(f".{key}@*")]:
        shutil.rmtree(folder, ignore_errors=True)


def clean(storage: Path, chosen: Path | None, listed: Collection[str], keep: int) -> None:
    """Remove what a crash has left: checkpoints that Ray's list does not name, but for the chosen one and the newest
    before it up to `keep` in all; scratch folders of processes that are gone."""
    steps = {folder: step_of(folder) for folder in _folders(storage) if folder != chosen and folder.name not in listed}
    most = step_of(chosen) if chosen else -1
    before = sorted((f for f in steps if 0 <= steps[f] <= most), key=lambda f: steps[f], reverse=True)
    for folder in steps.keys() - set(before[: keep - 1]):
        _remove(folder)
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True


def scratch() -> Path:
    """A fresh folder of this machine for a checkpoint on its way into storage; the upload removes it."""
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))


def begin(storage: Path) -> None:
    """Before a training starts, or goes on: Ray's own list of checkpoints is begun anew."""
    filesystem, path = mirror.place(storage / RAYS_LIST)
    with suppress(FileNotFoundError):
        mirror.patiently(storage, lambda: filesystem.delete_file(path))


def discard(storage: Path) -> None:
    """After a training: its adapter's record says that it is finished, and its checkpoints would only take room."""
    _remove(storage)
