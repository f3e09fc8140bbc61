"""Runs in an object store, or another filesystem of pyarrow's: a local mirror of each, pushed at every commit.

All other code reads and writes the mirror, as it does a run in a local folder. What is committed there is pushed at
once, whole, before anything depends on it; when a driver starts, it pulls what the store has. So the store alone says
what is done, and a mirror may be deleted whenever nothing works in it. Hidden files (`.lock`, `.part`) stay local.

A file's local modification time is set to the store's, in whole seconds, when it is pushed or pulled: equal times and
sizes mean that the two are the same.
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
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipelines.config import RunError
from pipelines.config.uris import joined
from pipelines.runs.files import whole

T = TypeVar("T")

# pyarrow itself is imported where it is needed: --help and a misspelled key answer without it.
ATOMIC = ("s3", "gcs", "abfs")  # by pyarrow's names: a file there appears when it is closed
INCOMPLETE = ".incomplete"  # in a folder that is being pushed, or whose push was cut off: it does not count
PROBE = ".aig-probe"
AT_ONCE = 8  # downloads
CHECK_SECONDS = 30.0
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between tries, each of which pyarrow tries for seconds itself
LONGEST = 300  # characters of a reason
# Parts of a run that are not pulled with it: Ray writes to the store itself, and images are pulled where they are read.
APART = ("ray", "images")
BRING_BACK = "bring the store within reach, check its credentials, and give the same command again"


class StorageError(RunError):
    """A store cannot be reached or written; the message names it, the reason and the fix."""


@dataclass(frozen=True)
class Mirror:
    """A run's folder on this machine and its URI in the store; paths are those of the folder."""

    root: Path
    uri: str

    def shown(self, path: Path) -> str:
        """The URI of what a path mirrors, without its query, as users see it."""
        return joined(self.uri.partition("?")[0], *path.relative_to(self.root).parts)

    def storage_path(self, path: Path) -> str:
        """The URI of what a path mirrors, as Ray takes it."""
        return joined(self.uri, *path.relative_to(self.root).parts)

    def place(self, path: Path) -> tuple[Any, str]:
        """pyarrow's filesystem of the store, and the path there."""
        filesystem, base = _opened(self.uri)
        return filesystem, "/".join([base, *path.relative_to(self.root).parts])

    def names(self, folder: Path) -> list[str]:
        """What a folder of the store holds, but for hidden entries; nothing if there is no folder."""
        from pyarrow import fs

        filesystem, base = self.place(folder)
        selector = fs.FileSelector(base, allow_not_found=True)
        infos = self.patiently(folder, lambda: filesystem.get_file_info(selector))
        return [info.base_name for info in infos if not info.base_name.startswith(".")]

    def push(self, path: Path) -> None:
        """Upload a file, or a folder's changed files; each is there whole, or as it was before."""
        if not path.is_dir():
            self._upload(path)
            return
        there = self._remote_files(path)
        for relative in sorted(_local_files(path)):
            if relative not in there or not _same(path / relative, there[relative]):
                self._upload(path / relative)

    def push_whole(self, folder: Path) -> None:
        """Replace a folder of the store: the new one counts once all of it is there."""
        filesystem, base = self.place(folder)
        files, mark = _local_files(folder), folder / INCOMPLETE
        stale = [relative for relative in self._remote_files(folder, incomplete=True) if relative not in files]

        def begin() -> None:
            _make_parents(filesystem, f"{base}/{INCOMPLETE}")
            with filesystem.open_output_stream(f"{base}/{INCOMPLETE}") as file:
                file.write(b"\n")  # some stores take an empty object for a folder

        self.patiently(mark, begin)
        for relative in sorted(files):
            self._upload(folder / relative)
        for relative in stale:
            self.remove(folder / relative)
        self.remove(mark)

    def complete(self) -> None:
        """Push again every folder whose push was cut off, if it is here: ours is whole, this one or the last."""
        for folder in sorted(self.root / name for name in _incomplete(self._every_file(self.root, (), APART))):
            if folder.is_dir():
                self.push_whole(folder)

    def remove(self, path: Path) -> None:
        """Remove a file or a folder from the store alone."""
        from pyarrow import fs

        filesystem, there = self.place(path)

        def work() -> None:
            kind = filesystem.get_file_info(there).type
            if kind == fs.FileType.Directory:
                filesystem.delete_dir(there)
            elif kind != fs.FileType.NotFound:
                filesystem.delete_file(there)

        with suppress(FileNotFoundError):
            self.patiently(path, work)

    def pull(self, path: Path, *patterns: str, without: Collection[str] = (), newer: bool = False) -> None:
        """Make a local file or folder what the store has: download what differs, delete what the store lacks.

        `patterns` choose among a folder's own entries, `without` leaves some out. With `newer` nothing is deleted, and
        only what is newer in the store is downloaded.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        there = self._remote_files(path, patterns, without)
        for relative in () if newer else _local_files(path, patterns, without) - there.keys():
            _delete(path, path / relative)
        stale = [
            (path / relative, info)
            for relative, info in there.items()
            if not _same(path / relative, info) and not (newer and _is_newer(path / relative, info))
        ]
        if stale:
            with ThreadPoolExecutor(min(AT_ONCE, len(stale))) as pool:
                list(pool.map(lambda item: self._download(*item), stale))

    def set_aside(self) -> Path | None:
        """If the store has nothing at all of the run, rename its mirror, which may be the last copy; the new path."""
        if not _local_files(self.root) or self.names(self.root):
            return None
        kept = self.root.with_name(f"{self.root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        self.root.rename(kept)
        return kept

    def check(self, writing: bool) -> None:
        """StorageError, after seconds, if the store cannot be read or, with `writing`, written."""
        from pyarrow import fs

        def work() -> None:
            filesystem, base = self.place(self.root)
            filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
            if not writing:
                return
            probe = f"{base.rpartition('/')[0]}/{PROBE}"
            _make_parents(filesystem, probe)
            with filesystem.open_output_stream(probe) as file:
                file.write(b"\n")
            filesystem.delete_file(probe)

        errors: list[Exception] = [TimeoutError(f"no answer in {CHECK_SECONDS:g} seconds")]

        def attempt() -> None:
            try:
                work()
                errors.clear()
            except Exception as error:  # whatever it is, it is raised where the check was asked for
                errors[:] = [error]

        # Some of pyarrow's filesystems try for a quarter of an hour, and cannot be told otherwise.
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(CHECK_SECONDS)
        if errors:
            raise self._error(self.root, errors[0]) from errors[0]

    def patiently(self, path: Path, work: Callable[[], T]) -> T:
        """What `work` on a path returns, tried again if the store fails; FileNotFoundError, or StorageError at last."""
        for wait in (*WAITS, None):
            try:
                return work()
            except FileNotFoundError:
                raise
            except (OSError, ValueError) as error:  # pyarrow's own errors are among them
                if wait is None or not isinstance(error, OSError) or _fix(error) != BRING_BACK:
                    raise self._error(path, error) from error
            time.sleep(wait)
        raise AssertionError  # the last try has returned or raised

    def _error(self, path: Path, error: Exception) -> StorageError:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."
        return StorageError(f"{self.shown(path)}: the store does not do as asked ({reason}): {_fix(error)}")

    def _remote_files(
        self, path: Path, patterns: Collection[str] = (), without: Collection[str] = (), incomplete: bool = False
    ) -> dict[str, Any]:
        """What pyarrow knows of each file of a folder in the store, by relative name, or "" for a file.

        Hidden files are left out, and incomplete folders unless they are asked for.
        """
        files = self._every_file(path, patterns, without)
        cut_off = _incomplete(files)
        return {
            name: info
            for name, info in files.items()
            if not _is_hidden(name) and (incomplete or name.rpartition("/")[0] not in cut_off)
        }

    def _every_file(self, path: Path, patterns: Collection[str], without: Collection[str]) -> dict[str, Any]:
        """The same, hidden files and incomplete folders included."""
        from pyarrow import fs

        filesystem, base = self.place(path)

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

        infos = {info.path[len(base) :].strip("/"): info for info in self.patiently(path, work)}
        return {name: info for name, info in infos.items() if info.type == fs.FileType.File}

    def _upload(self, file: Path) -> None:
        from pyarrow import fs

        filesystem, target = self.place(file)
        atomic = filesystem.type_name in ATOMIC
        folder, _, name = target.rpartition("/")
        part = target if atomic else f"{folder}/.{name}.{os.getpid()}.part"

        def work() -> Any:
            _make_parents(filesystem, target)
            # In one call, which Ctrl-C does not break: a Python loop would close, and so commit, half a file. And
            # without threads, with which pyarrow's uploads to S3 may hang (apache/arrow#32372).
            fs.copy_files(
                str(file), part, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem,
                use_threads=False,
            )  # fmt: skip
            if not atomic:
                if filesystem.type_name == "hdfs" and filesystem.get_file_info(target).type != fs.FileType.NotFound:
                    filesystem.delete_file(target)  # it moves nothing onto a file
                filesystem.move(part, target)
            return filesystem.get_file_info(target)

        _mark(file, self.patiently(file, work))

    def _download(self, file: Path, info: Any) -> None:
        from pyarrow import fs

        (filesystem, source), local = self.place(file), fs.LocalFileSystem()
        try:
            with whole(file, by=f".{os.getpid()}-{threading.get_ident()}") as part:
                self.patiently(file, lambda: fs.copy_files(source, str(part), filesystem, local))
                _mark(part, info)
        except FileNotFoundError:  # removed since it was listed
            if file.exists():
                _delete(file.parent, file)


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


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _chosen(name: str, patterns: Collection[str], without: Collection[str]) -> bool:
    return name not in without and (not patterns or any(fnmatch(name, pattern) for pattern in patterns))


def _local_files(path: Path, patterns: Collection[str] = (), without: Collection[str] = ()) -> set[str]:
    """Relative names of a local folder's files, hidden ones left out; "" for a file."""
    if not path.is_dir():
        return {""} if path.exists() else set()
    entries = [entry for entry in path.iterdir() if _chosen(entry.name, patterns, without)]
    files = [file for entry in entries for file in (entry.rglob("*") if entry.is_dir() else (entry,))]
    relative = {file.relative_to(path).as_posix() for file in files if not file.is_dir()}
    return {name for name in relative if not _is_hidden(name)}


def _incomplete(files: Collection[str]) -> set[str]:
    """The folders among a store's files whose push was cut off."""
    return {name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == INCOMPLETE}


def _seconds(info: Any) -> int | None:
    """Time of change in whole seconds, as far as every store tells it in a listing and for a single file alike."""
    return None if info.mtime_ns is None else info.mtime_ns // 10**9


def _same(file: Path, info: Any) -> bool:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return False
    seconds = _seconds(info)
    return seconds is not None and (stat.st_size, stat.st_mtime_ns) == (info.size, seconds * 10**9)


def _is_newer(file: Path, info: Any) -> bool:
    return file.exists() and file.stat().st_mtime >= (_seconds(info) or 0)


def _mark(file: Path, info: Any) -> None:
    """Set a file's time to the store's, which says that the two are the same."""
    seconds = _seconds(info)
    if seconds is not None and file.stat().st_size == info.size:
        os.utime(file, ns=(seconds * 10**9, seconds * 10**9))


def _make_parents(filesystem: Any, target: str) -> None:
    if filesystem.type_name not in ATOMIC:
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)


def _delete(base: Path, file: Path) -> None:
    """Delete a local file, and its folders beneath `base` that are empty then."""
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == base or base not in folder.parents:
            return
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            return
        shutil.rmtree(folder, ignore_errors=True)
