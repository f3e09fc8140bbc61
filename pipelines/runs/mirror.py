"""Runs that are kept in an object store or another filesystem of pyarrow's: a local mirror of each, pushed at every
commit.

All other code reads and writes the mirror, as it does a run in a local folder. What is committed there is pushed at
once, whole, before anything depends on it; what is there when a driver starts is what the store has. So the store alone
says what is done, and a mirror may be deleted whenever nothing works in it. Hidden files (`.lock`, `.part`) stay here.

A file's time of change here is set to the store's, in whole seconds, when it is pushed or pulled: equal times and sizes
say that the two are the same. Of local folders nothing here knows: every function leaves them alone at once.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipelines.config import RunError
from pipelines.config.uris import is_uri, joined, local_folder, parted
from pipelines.runs import locks

T = TypeVar("T")

# pyarrow itself is imported where it is needed: --help and a misspelled key answer without it.
ATOMIC = ("s3", "gcs", "abfs")  # by pyarrow's names: a file there appears when it is closed
LOCK_FILE = ".lock"
INCOMPLETE = ".incomplete"  # in a folder that is being pushed, or whose push was cut off: it does not count
PROBE = ".aig-probe"
AT_ONCE = 8  # downloads
CHECK_SECONDS = 30.0
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between tries, each of which pyarrow tries for seconds itself
LONGEST = 300  # characters of a reason
PUSH_SECONDS = 15.0  # between two pushes of what grows all the time


class StorageError(RunError):
    """A store cannot be reached or written; the message names it, the reason and the fix."""


_runs: dict[Path, str] = {}
"""The mirrors that this process knows, and the URIs of their runs."""


def mirror(storage: str, name: str) -> Path:
    """The local folder of a run: its mirror, which this process knows from now on; of file:// the folder itself."""
    root = local_folder(storage, name)
    if is_uri(storage) and not storage.startswith("file://"):
        _runs[root] = joined(storage, name)
    return root


def is_mirror(path: Path) -> bool:
    return _root(path) is not None


def shown(path: Path) -> str:
    """What a path is called before the user: the URI without its query, of what is mirrored."""
    root = _root(path)
    return str(path) if root is None else joined(_runs[root].partition("?")[0], *path.relative_to(root).parts)


def storage_path(path: Path) -> str:
    """The path, or the URI of what is mirrored, as Ray takes it."""
    root = _root(path)
    return str(path) if root is None else joined(_runs[root], *path.relative_to(root).parts)


def storage_of(root: Path) -> str:
    """`run.storage` of the run in a folder or a mirror."""
    return parted(_runs[root])[0] if root in _runs else str(root.parent)


def place(path: Path) -> tuple[Any, str]:
    """pyarrow's filesystem in which a path really lies, and the path there."""
    from pyarrow import fs

    root = _root(path)
    if root is None:
        return fs.LocalFileSystem(), str(path)
    filesystem, base = _opened(_runs[root])
    return filesystem, "/".join([base, *path.relative_to(root).parts])


def names(folder: Path) -> list[str]:
    """What lies in a folder, but for what is hidden where it is mirrored; nothing where there is no folder."""
    if not is_mirror(folder):
        return [entry.name for entry in folder.iterdir()] if folder.exists() else []
    from pyarrow import fs

    filesystem, base = place(folder)
    selector = fs.FileSelector(base, allow_not_found=True)
    found = patiently(folder, lambda: filesystem.get_file_info(selector))
    return [info.base_name for info in found if not info.base_name.startswith(".")]


def push(path: Path) -> None:
    """Put a file, or what has changed of a folder's files, into the store; each is there whole, or as it was before."""
    if not is_mirror(path):
        return
    if not path.is_dir():
        _upload(path)
        return
    there = _there(path, (), ())
    for relative in sorted(_here(path, (), ())):
        if relative not in there or not _same(path / relative, there[relative]):
            _upload(path / relative)


def push_whole(folder: Path) -> None:
    """Put a folder into the place of the one in the store, if any: it counts as there when all of it is."""
    if not is_mirror(folder):
        return
    filesystem, base = place(folder)
    files, mark = _here(folder, (), ()), folder / INCOMPLETE
    others = [relative for relative in _there(folder, (), (), incomplete=True) if relative not in files]

    def begin() -> None:
        _make_room(filesystem, f"{base}/{INCOMPLETE}")
        with filesystem.open_output_stream(f"{base}/{INCOMPLETE}") as file:
            file.write(b"\n")  # some stores take an empty object for a folder

    patiently(mark, begin)
    for relative in sorted(files):
        _upload(folder / relative)
    for relative in others:
        remove(folder / relative)
    remove(mark)


def complete(root: Path) -> None:
    """Push again each folder of a run whose push was cut off, where it is here: ours is whole, this one or the last."""
    if not is_mirror(root):
        return
    for folder in sorted(root / name for name in _half(_files(root, (), APART))):
        if folder.is_dir():
            push_whole(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder from the store; what is here is the caller's."""
    if not is_mirror(path):
        return
    from pyarrow import fs

    filesystem, there = place(path)

    def work() -> None:
        kind = filesystem.get_file_info(there).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(there)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(there)

    with suppress(FileNotFoundError):
        patiently(path, work)


def pull(path: Path, *patterns: str, without: Collection[str] = (), newer: bool = False) -> None:
    """Make a file or a folder here what the store has: fetch what differs, remove what it does not have.

    `patterns` choose among a folder's own entries, `without` leaves some out. With `newer` nothing is removed, and only
    what is newer there is fetched.
    """
    if not is_mirror(path):
        return
    (_root(path) or path).mkdir(parents=True, exist_ok=True)
    there = _there(path, patterns, without)
    here = _here(path, patterns, without)
    for relative in () if newer else here - there.keys():
        _forget(path, path / relative)
    wanted = [
        (path / relative, info)
        for relative, info in there.items()
        if not _same(path / relative, info) and not (newer and _is_newer(path / relative, info))
    ]
    if not wanted:
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(wanted))) as pool:
        for _ in pool.map(lambda item: _download(*item), wanted):
            pass


def glance(folder: Path) -> None:
    """Pull what is newer of a folder in the store, to show it; a store that fails is left to those who work with it."""
    with suppress(StorageError):
        pull(folder, newer=True)


def set_aside(root: Path) -> Path | None:
    """Where the store has nothing at all of a run, move its mirror out of the way: it may be the last copy."""
    if not is_mirror(root) or not _here(root, (), ()) or names(root):
        return None
    kept = root.with_name(f"{root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    root.rename(kept)
    return kept


# Of a run: what Ray keeps, which goes by the store itself, and what is large and pulled where it is read.
APART = ("ray", "images")


def refresh(root: Path) -> None:
    """`pull` a run in order to read it. Where a process of this machine works in it, the mirror is that one's."""
    if not is_mirror(root):
        return
    root.mkdir(parents=True, exist_ok=True)
    file = locks.take(root / LOCK_FILE)
    if file is not None:
        with file:
            pull(root, without=APART)


def check(root: Path, writing: bool) -> None:
    """StorageError, after seconds, where the store of a run cannot be read or, with `writing`, written."""
    if not is_mirror(root):
        return
    from pyarrow import fs

    def work() -> None:
        filesystem, base = place(root)
        filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
        if not writing:
            return
        probe = f"{base.rpartition('/')[0]}/{PROBE}"
        _make_room(filesystem, probe)
        with filesystem.open_output_stream(probe) as file:
            file.write(b"\n")
        filesystem.delete_file(probe)

    errors: list[Exception] = [TimeoutError(f"no answer in {CHECK_SECONDS:g} seconds")]

    def attempt() -> None:
        try:
            work()
            errors.clear()
        except Exception as error:  # whatever it is, it is said where the check was asked for
            errors[:] = [error]

    # Some of pyarrow's filesystems try for a quarter of an hour, and cannot be told otherwise.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS)
    if errors:
        raise _told(root, errors[0]) from errors[0]


def patiently(path: Path, work: Callable[[], T]) -> T:
    """What `work` returns, tried again where the store fails; FileNotFoundError, or StorageError in the end.

    Work on a local path is done once, and its errors are its own.
    """
    if not is_mirror(path):
        return work()
    for wait in (*WAITS, None):
        try:
            return work()
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:  # pyarrow's own errors are among them
            if wait is None or not isinstance(error, OSError) or _fix(error) != BRING_BACK:
                raise _told(path, error) from error
        time.sleep(wait)
    raise AssertionError  # the last try has returned or raised


BRING_BACK = "bring the store within reach, check its credentials, and give the same command again"


def _told(path: Path, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."
    return StorageError(f"{shown(path)}: the store does not do as asked ({reason}): {_fix(error)}")


def _fix(error: Exception) -> str:
    reason = str(error).upper().replace(" ", "_")
    refused = ("ACCESS_DENIED", "CREDENTIAL", "ACCESS_KEY", "SIGNATURE", "FORBIDDEN", "PERMISSION", "ACCESS_TOKEN")
    if "NO_SUCH_BUCKET" in reason or ("BUCKET" in reason and "NOT_FOUND" in reason):
        return "create the bucket, or choose another run.storage"
    if any(word in reason for word in refused) or re.search(r"\b403\b", str(error)):
        return (
            "give credentials that may list, read, write and delete there, by environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, ...), here and on every node"
        )
    if "LIBHDFS" in reason or "LIBJVM" in reason:
        return "install Java and Hadoop's client here and on every node, and set JAVA_HOME and ARROW_LIBHDFS_DIR"
    if isinstance(error, ValueError):
        return "give a URI with options that pyarrow.fs.FileSystem.from_uri knows"
    return BRING_BACK


@lru_cache(maxsize=64)
def _opened(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    filesystem, base = fs.FileSystem.from_uri(uri)
    return filesystem, base.rstrip("/")


def _root(path: Path) -> Path | None:
    """The mirror that a path lies in."""
    return next((root for root in _runs if path == root or root in path.parents), None) if _runs else None


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _chosen(name: str, patterns: Collection[str], without: Collection[str]) -> bool:
    return name not in without and (not patterns or any(fnmatch(name, pattern) for pattern in patterns))


def _here(path: Path, patterns: Collection[str], without: Collection[str]) -> set[str]:
    """Relative names of the files of a folder, or "" of a file."""
    if not path.is_dir():
        return {""} if path.exists() else set()
    entries = [entry for entry in path.iterdir() if _chosen(entry.name, patterns, without)]
    files = [file for entry in entries for file in (entry.rglob("*") if entry.is_dir() else (entry,))]
    relative = {file.relative_to(path).as_posix() for file in files if not file.is_dir()}
    return {name for name in relative if not _is_hidden(name)}


def _there(path: Path, patterns: Collection[str], without: Collection[str], incomplete: bool = False) -> dict[str, Any]:
    """The same of the store, with what pyarrow knows of each; folders that are incomplete only where asked for."""
    files = _files(path, patterns, without)
    half = _half(files)
    return {
        name: info
        for name, info in files.items()
        if not _is_hidden(name) and (incomplete or name.rpartition("/")[0] not in half)
    }


def _half(files: Collection[str]) -> set[str]:
    """The folders among a store's files that are incomplete."""
    return {name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == INCOMPLETE}


def _files(path: Path, patterns: Collection[str], without: Collection[str]) -> dict[str, Any]:
    """All files of a folder of the store, hidden ones too."""
    from pyarrow import fs

    filesystem, base = place(path)

    def listed(folder: str, recursive: bool) -> list[Any]:
        return filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive))

    def work() -> list[Any]:
        own = filesystem.get_file_info(base)
        if own.type != fs.FileType.Directory:
            return [own] if own.type == fs.FileType.File else []
        if not patterns and not without:
            return listed(base, True)
        entries = [info for info in listed(base, False) if _chosen(info.base_name, patterns, without)]
        folders = [info.path for info in entries if info.type == fs.FileType.Directory]
        return [*entries, *(info for folder in folders for info in listed(folder, True))]

    infos = {info.path[len(base) :].strip("/"): info for info in patiently(path, work)}
    return {name: info for name, info in infos.items() if info.type == fs.FileType.File}


def _seconds(info: Any) -> int | None:
    """Time of change in whole seconds, as far as every store tells it in a listing and for a single file alike."""
    return None if info.mtime_ns is None else info.mtime_ns // 10**9


def _same(file: Path, info: Any) -> bool:
    try:
        found = file.stat()
    except FileNotFoundError:
        return False
    seconds = _seconds(info)
    return seconds is not None and (found.st_size, found.st_mtime_ns) == (info.size, seconds * 10**9)


def _is_newer(file: Path, info: Any) -> bool:
    return file.exists() and file.stat().st_mtime >= (_seconds(info) or 0)


def _make_room(filesystem: Any, target: str) -> None:
    if filesystem.type_name not in ATOMIC:
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)


def _upload(file: Path) -> None:
    from pyarrow import fs

    filesystem, target = place(file)
    atomic = filesystem.type_name in ATOMIC
    folder, _, name = target.rpartition("/")
    part = target if atomic else f"{folder}/.{name}.{os.getpid()}.part"

    def work() -> Any:
        _make_room(filesystem, target)
        # In one call, which Ctrl-C does not break: a Python loop would close, and so commit, half a file. And without
        # threads, with which pyarrow's uploads to S3 may hang (apache/arrow#32372).
        fs.copy_files(
            str(file), part, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem,
            use_threads=False,
        )  # fmt: skip
        if not atomic:
            if filesystem.type_name == "hdfs" and filesystem.get_file_info(target).type != fs.FileType.NotFound:
                filesystem.delete_file(target)  # it moves nothing onto a file
            filesystem.move(part, target)
        return filesystem.get_file_info(target)

    _mark(file, patiently(file, work))


def _download(file: Path, info: Any) -> None:
    from pyarrow import fs

    filesystem, source = place(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    local = fs.LocalFileSystem()
    try:
        patiently(
            file,
            lambda: fs.copy_files(source, str(part), source_filesystem=filesystem, destination_filesystem=local),
        )
        _mark(part, info)
        part.replace(file)
    except FileNotFoundError:  # removed since it was listed
        if file.exists():
            _forget(file.parent, file)
    finally:
        part.unlink(missing_ok=True)


def _mark(file: Path, info: Any) -> None:
    """Say by its time that a file is what the store has."""
    seconds = _seconds(info)
    if seconds is not None and file.stat().st_size == info.size:
        os.utime(file, ns=(seconds * 10**9, seconds * 10**9))


def _forget(base: Path, file: Path) -> None:
    """Remove a file here, and its folders beneath `base` that are empty then."""
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == base or base not in folder.parents:
            return
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            return
        shutil.rmtree(folder, ignore_errors=True)
