"""Files that exist whole or not at all, and what is said when one cannot be read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aig import folders
from pipelines.config import ConfigError


@contextmanager
def whole(path: Path, by: str = "") -> Iterator[Path]:
    """Yield a path to write to, which is moved to `path` at the end: the file is there whole, or not at all.

    `by` names the writer if several may write the same file. OSError for a full disk says what to do.
    """
    try:
        with folders.whole_file(path, by) as part:
            yield part
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{os.strerror(error.errno)} for {path.name} in {path.parent}: make room there, and run the same command "
            "again"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all; ValueError for a number that is not finite."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_parquet(path: Path, table: Any) -> None:
    """Whole or not at all, and flushed to the disk; FileNotFoundError if the folder's own folder is gone.

    A mount that vanished is not made anew on the disk beneath it.
    """
    import pyarrow.parquet as pq

    try:
        path.parent.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent.parent} is gone, and {path.name} cannot be written there: bring the storage back, and run "
            "the same command again"
        ) from None
    with whole(path, by=f".{os.getpid()}") as part, part.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path, name: str) -> Any:
    """The content of a JSON file, called `name` in the ConfigError if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read ({error}): restore it, or delete it to have it made again") from error


def read_parquet(path: Path, name: str, fix: str, columns: Sequence[str] | None, without: Sequence[str]) -> Any:
    """A table, of all its columns or some, but those `without`; ConfigError with the fix if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names if columns is None else columns
        return pq.read_table(path, columns=[column for column in names if column not in without])
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{name} cannot be read ({str(error).splitlines()[0]}): {fix}") from error


def file_digest(path: Path) -> str:
    """A hash of a file's content."""
    with path.open("rb") as file:
        return digest_of(file.read)


def digest_of(read: Callable[[int], bytes]) -> str:
    """A hash of what `read(bytes)` returns until it returns nothing."""
    digest = hashlib.blake2b(digest_size=8)
    while piece := read(2**24):
        digest.update(piece)
    return digest.hexdigest()
