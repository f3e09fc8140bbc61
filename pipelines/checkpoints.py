"""Checkpoints of a training: folders that say of themselves whether they are whole, found by what lies in storage.

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
from collections.abc import Collection
from pathlib import Path

from pipelines import layout

STATE = "state.pt"
SEAL = "checkpoint.json"
SCRATCH = "aig-checkpoint-"
RAYS_LIST = "checkpoint_manager_snapshot.json"


def seal(folder: Path, step: int) -> None:
    """Write down the step and the hash of the state that was written into this folder."""
    layout.write_json(folder / SEAL, {"step": step, STATE: layout.file_digest(folder / STATE)})


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        if sealed[STATE] != layout.file_digest(folder / STATE):
            return f"{STATE} has not the content that it was sealed with"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{getattr(error, 'strerror', None) or 'its seal cannot be read'}: {folder / SEAL}"
    return None


def step_of(folder: Path) -> int:
    """The step that a checkpoint says it is of; -1 where it does not say."""
    try:
        return int(json.loads((folder / SEAL).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def newest(storage: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a training, and a warning for every newer one that is not whole."""
    there = [folder for folder in storage.glob("checkpoint_*") if folder.is_dir()]
    spoiled = []
    # Those that do not say their step may be the newest: they come first.
    for folder in sorted(there, key=lambda f: (step_of(f) < 0, step_of(f), f.name), reverse=True):
        reason = fault(folder)
        if reason is None:
            return folder, [f"{said}: going on from {folder.name}, step {step_of(folder)}" for said in spoiled]
        spoiled.append(f"checkpoint {folder} is skipped ({reason})")
    return None, [f"{said}: starting from step 0" for said in spoiled]


def clean_saves(adapters: Path, key: str) -> None:
    """Remove what a worker that was killed while it saved the adapter or a snapshot has left."""
    for folder in [*adapters.glob(f".{key}.*"), *adapters.glob(f".{key}@*")]:
        shutil.rmtree(folder, ignore_errors=True)


def clean(storage: Path, chosen: Path | None, listed: Collection[str], keep: int) -> None:
    """Remove what a crash has left: checkpoints that Ray's list does not name, but for the chosen one and the newest
    before it up to `keep` in all; scratch folders of processes that are gone."""
    others = [f for f in storage.glob("checkpoint_*") if f.is_dir() and f != chosen and f.name not in listed]
    before = sorted((f for f in others if chosen and 0 <= step_of(f) <= step_of(chosen)), key=step_of, reverse=True)
    for folder in set(others) - set(before[: keep - 1]):
        shutil.rmtree(folder, ignore_errors=True)
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
    (storage / RAYS_LIST).unlink(missing_ok=True)


def discard(storage: Path) -> None:
    """After a training: its adapter's record says that it is finished, and its checkpoints would only take room."""
    shutil.rmtree(storage, ignore_errors=True)
