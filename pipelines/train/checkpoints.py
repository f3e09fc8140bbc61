"""Checkpoints of a training: sealed folders in the run's storage, of which the newest whole one counts.

Ray Train writes them to the storage itself, a folder or a store; nothing here looks into a local mirror.

Ray Train uploads in the background and lists what has arrived. A training does not go on from that list: after a kill,
whole checkpoints may be missing in it, listed ones may be spoiled, and a list that was cut off would end every later
start. So each checkpoint has a seal with the hash of its state, and every start begins Ray's list anew.
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
from pipelines.runs import files, locks
from pipelines.runs.directory import RunDir

STATE = "state.pt"
SEAL = "checkpoint.json"
SCRATCH = "aig-checkpoint-"
RAYS_LIST = "checkpoint_manager_snapshot.json"


def seal(folder: Path, step: int) -> None:
    """Seal a folder: write the step, and the hash of the state that it has."""
    files.write_json(folder / SEAL, {"step": step, STATE: files.file_digest(folder / STATE)})


def fault(run: RunDir, folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole.

    A store that does not answer raises StorageError: it says nothing about the checkpoint.
    """
    try:
        if _seal_of(run, folder)[STATE] != _digest(run, folder / STATE):
            return f"{STATE} has not the content that it was sealed with"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = os.strerror(number) if (number := getattr(error, "errno", None)) else "its seal cannot be read"
        return f"{reason}: {run.shown(folder / SEAL)}"
    return None


def _seal_of(run: RunDir, folder: Path) -> dict[str, Any]:
    filesystem, path = run.place(folder / SEAL)

    def work() -> bytes:
        with filesystem.open_input_stream(path) as file:
            return file.read()

    return json.loads(run.patiently(folder / SEAL, work))


def _digest(run: RunDir, state: Path) -> str:
    """`files.file_digest` of a file in the run's storage."""
    filesystem, path = run.place(state)

    def work() -> str:
        with filesystem.open_input_stream(path) as file:
            return files.digest_of(file.read)

    return run.patiently(state, work)


def step_of(run: RunDir, folder: Path) -> int:
    """The step in a checkpoint's seal; -1 if it cannot be read."""
    try:
        return int(_seal_of(run, folder)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def newest(run: RunDir, storage: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a training, and a warning for every newer one that is not whole."""
    steps = {folder: step_of(run, folder) for folder in _folders(run, storage)}
    spoiled = []
    # Those without a readable step may be the newest: they come first.
    for folder in sorted(steps, key=lambda f: (steps[f] < 0, steps[f], f.name), reverse=True):
        reason = fault(run, folder)
        if reason is None:
            return folder, [f"{warning}: going on from {folder.name}, step {steps[folder]}" for warning in spoiled]
        spoiled.append(f"checkpoint {run.shown(folder)} is skipped ({reason})")
    return None, [f"{warning}: starting from step 0" for warning in spoiled]


def _folders(run: RunDir, storage: Path) -> list[Path]:
    """The checkpoints of a training, whole or not."""
    filesystem, base = run.place(storage)
    infos = run.patiently(storage, lambda: filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True)))
    names = [info.base_name for info in infos if info.type == fs.FileType.Directory]
    return [storage / name for name in names if name.startswith("checkpoint_")]


@contextmanager
def local_copy(run: RunDir, folder: Path) -> Iterator[Path]:
    """A checkpoint's folder on this machine: itself, or for a store a copy within the context."""
    if run.mirror is None:
        yield folder
        return
    (filesystem, source), local, copy = run.place(folder), fs.LocalFileSystem(), scratch()
    try:
        run.patiently(folder, lambda: fs.copy_files(source, str(copy), filesystem, local))
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _remove(run: RunDir, folder: Path) -> None:
    filesystem, path = run.place(folder)
    with suppress(OSError):  # the next clean removes what is left
        filesystem.delete_dir(path)


def clean_saves(adapters: Path, key: str) -> None:
    """After a kill during a save: put back an old adapter that was not replaced yet, remove the rest."""
    folders.recover_all(adapters, key)
    for folder in [*adapters.glob(f".{key}.*"), *adapters.glob(f".{key}@*")]:
        shutil.rmtree(folder, ignore_errors=True)


def clean(run: RunDir, storage: Path, chosen: Path | None, listed: Collection[str], keep: int) -> None:
    """Remove what a crash has left: checkpoints that Ray does not list, and scratch folders of dead processes.

    The chosen checkpoint stays, and the newest before it, up to `keep` in all.
    """
    steps = {
        folder: step_of(run, folder)
        for folder in _folders(run, storage)
        if folder != chosen and folder.name not in listed
    }
    most = step_of(run, chosen) if chosen else -1
    before = sorted((f for f in steps if 0 <= steps[f] <= most), key=lambda f: steps[f], reverse=True)
    for folder in steps.keys() - set(before[: keep - 1]):
        _remove(run, folder)
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdecimal() and not locks.is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def scratch() -> Path:
    """A fresh local folder for a checkpoint on its way into storage; the upload removes it."""
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))


def begin(run: RunDir, storage: Path) -> None:
    """Begin Ray's own list of checkpoints anew, before a training starts or goes on."""
    filesystem, path = run.place(storage / RAYS_LIST)
    with suppress(FileNotFoundError):
        run.patiently(storage, lambda: filesystem.delete_file(path))


def discard(run: RunDir, storage: Path) -> None:
    """Remove a finished training's checkpoints: its adapter's record says that it is finished."""
    _remove(run, storage)
