"""Folders and files that exist whole or not at all, whenever the process that writes or removes them is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASIDE = ".aside"


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to, which replaces `folder` at the end.

    The old folder is moved aside and removed once the new one is in place. Between the two moves neither has its name:
    readers `put_back` the old one, as does `recover` at the next start.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        _replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(part: Path, folder: Path) -> None:
    """Move `part` to `folder`; the old folder ends at `part`, or is gone."""
    aside = _aside(folder)
    while True:
        recover(folder)  # so that nothing is aside
        with suppress(FileNotFoundError):
            folder.rename(aside)
        try:
            part.rename(folder)
            break
        except OSError:
            if not folder.exists():
                put_back(folder)
                raise
            # A reader has put the old one back meanwhile.
    with suppress(FileNotFoundError):
        aside.rename(part)


@contextmanager
def whole_file(path: Path, by: str = "") -> Iterator[Path]:
    """Yield a path to write to, which is moved to `path` at the end; `by` names the writer if there may be several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}{by}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def put_back(folder: Path) -> None:
    """Restore the old folder if a writer was killed before the new one was in place; nothing is removed."""
    if not folder.exists():
        with suppress(OSError):  # there is none, or somebody else has put it back, or the new one is in place
            _aside(folder).rename(folder)


def recover(folder: Path) -> None:
    """`put_back`, and remove an old folder that has been replaced."""
    put_back(folder)
    if _aside(folder).exists():
        remove(_aside(folder))


def recover_all(parent: Path, prefix: str = "") -> None:
    """`recover` every folder in `parent` whose name begins with `prefix`."""
    for aside in parent.glob(f".{prefix}*{ASIDE}"):
        recover(parent / aside.name.removeprefix(".").removesuffix(ASIDE))


def remove(folder: Path) -> None:
    """Remove a folder; if killed midway, nothing of that name is left, and at most a hidden folder beside it."""
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name.removeprefix('.')}.", dir=folder.parent))
    with suppress(FileNotFoundError):
        os.rename(folder, part)  # onto an empty folder
    shutil.rmtree(part, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{ASIDE}")
