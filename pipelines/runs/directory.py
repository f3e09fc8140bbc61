"""Where a run keeps what, and how its files are written: whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aig import folders
from pipelines.config import Config, ConfigError
from pipelines.runs import mirror

RECORD = "adapter.json"  # `aig.adapters.RECORD`, without its torch
# What an earlier version has left is of an earlier format, is said to be, and is never read as if it were of this one.
RECORD_FORMAT = 2  # of adapters' records; 1 had no such key, and a fingerprint of the ends of the model's files
FRONT_FORMAT = 2  # of front.json; 1 had no such key, claims as sentences, the proxy's plane apart from the others
IMAGES_FORMAT = 3  # of the units' files and what is measured of them; 2 had ids of (arm, prompt, seed index) alone


@dataclass(frozen=True)
class RunDir:
    """Where a run keeps what."""

    root: Path

    @classmethod
    def of(cls, config: Config) -> RunDir:
        """The directory of a configuration's run."""
        return cls(mirror.mirror(config.run.storage, config.run.name))

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def curves(self) -> Path:
        return self.root / "curves"

    @property
    def validation(self) -> Path:
        """A folder a training, with a picture of each validation."""
        return self.root / "validation"

    @property
    def tensorboard(self) -> Path:
        """A folder a training, for `tensorboard --logdir`."""
        return self.root / "tensorboard"

    @property
    def tracking(self) -> Path:
        """What trackers elsewhere know the trainings as."""
        return self.root / "tracking"

    @property
    def progress(self) -> Path:
        """One small file a training under way."""
        return self.root / "progress"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def failures(self) -> Path:
        """Groups of images that could not be made; missing where there are none."""
        return self.root / "failures.parquet"

    @property
    def arms(self) -> Path:
        return self.root / "arms.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.parquet"

    @property
    def reward_statistics(self) -> Path:
        """The base model's scores, by which the terms of weighted sums are z-scored."""
        return self.root / "reward_statistics.json"

    @property
    def front(self) -> Path:
        return self.root / "front.json"

    @property
    def table(self) -> Path:
        """Every arm of every study, its settings and what was measured of it."""
        return self.root / "table.csv"

    @property
    def searches(self) -> Path:
        """A folder a search for schedules."""
        return self.root / "search"

    @property
    def schedules(self) -> Path:
        """The schedules that searches have found, a file each."""
        return self.root / "schedules"

    @property
    def sweep(self) -> Path:
        """What a sweep has drawn, what it stopped and what failed: see `pipelines.study.trials`."""
        return self.root / "sweep.json"

    @property
    def ray(self) -> Path:
        """Checkpoints and state of Ray Train and Ray Tune."""
        return self.root / "ray"

    def checkpoints(self, key: str) -> Path:
        """Ray Train's folder of a training under way, with its checkpoints."""
        return self.ray / "train" / key


def other_format(files: RunDir) -> int | None:
    """The format of the images that another version has measured; None if this one has, or nothing was."""
    return _other(files.arms, IMAGES_FORMAT, 2)


def other_front(files: RunDir) -> int | None:
    """The format of a front.json that another version wrote; None if this one did, or there is none."""
    return _other(files.front, FRONT_FORMAT, 1)


def _other(path: Path, current: int, first: int) -> int | None:
    """A file's format if it is not the current one; `first` if it has no such key."""
    try:
        format = json.loads(path.read_text()).get("format", first)
    except (OSError, ValueError, AttributeError):
        return None
    return None if format == current else format


def file_digest(path: Path) -> str:
    """A hash of a file's content."""
    with path.open("rb") as file:
        return digest_of(file.read)


def digest_of(read: Callable[[int], bytes]) -> str:
    """A hash of what `read` gives, a piece of so many bytes at a time."""
    digest = hashlib.blake2b(digest_size=8)
    while piece := read(2**24):
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def whole(path: Path, by: str = "") -> Iterator[Path]:
    """A path beside to write to, which is moved into place at the end: the file is there whole, or not at all.

    So it is in the store of a run that is kept elsewhere. `by` names the writer where several may write the same file.
    A disk without room is named, in an OSError that says what to do.
    """
    part = path.with_name(f".{path.name}{by}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{os.strerror(error.errno)} for {path.name} in {path.parent}: make room there, and run the same command "
            "again"
        ) from None
    mirror.push(path)


def forget(path: Path) -> None:
    """Remove a file or a folder of a run, wherever that is kept; nothing where there is none."""
    if path.is_dir():
        folders.remove(path)
    else:
        path.unlink(missing_ok=True)
    mirror.remove(path)


def read_json(path: Path) -> Any:
    """The content of a file of ours; ConfigError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{mirror.shown(path)} cannot be read ({error}): restore it, or delete it to have it made again"
        ) from error


def read_parquet(path: Path, fix: str, columns: Sequence[str] | None = None, without: Sequence[str] = ()) -> Any:
    """A table of ours, of all its columns or some, but those `without`; ConfigError with the fix where it cannot be
    read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names if columns is None else columns
        return pq.read_table(path, columns=[name for name in names if name not in without])
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{mirror.shown(path)} cannot be read ({reason}): {fix}") from error


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
