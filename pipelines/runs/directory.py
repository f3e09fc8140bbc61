"""A run's directory: where it keeps what, its lock, whole writes, and its mirror if it is kept in a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aig import folders
from pipelines.config import Config
from pipelines.config.uris import is_remote, is_uri, joined, local_folder, parted
from pipelines.runs import files, locks
from pipelines.runs.mirror import APART, Mirror, StorageError

RECORD = "adapter.json"  # `aig.adapters.RECORD`, without its torch
# Files of an earlier version have an earlier format: they are refused as such, never read as if they were of this one.
RECORD_FORMAT = 2  # of adapters' records; 1 had no such key, and a fingerprint of the ends of the model's files
FRONT_FORMAT = 2  # of front.json; 1 had no such key, claims as sentences, the proxy's plane apart from the others
IMAGES_FORMAT = 3  # of the units' files and what is measured of them; 2 had ids of (arm, prompt, seed index) alone
LOCK_FILE = ".lock"
PUSH_SECONDS = 15.0  # between two pushes of what grows all the time
T = TypeVar("T")


class Beneath:
    """A path beneath a run's root."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return run.root / self.name


@dataclass(frozen=True)
class RunDir:
    """A run's directory: a local folder or, for a run with a URI, the local mirror of its folder in a store.

    Paths are local; methods that take one expect it beneath `root`. Of a local run nothing is pushed or pulled.
    """

    root: Path
    uri: str | None = None

    @classmethod
    def of(cls, config: Config) -> RunDir:
        """The directory of a configuration's run."""
        return cls._of(config.run.storage, config.run.name)

    @classmethod
    def at(cls, place: RunDir | str | Path) -> RunDir:
        """The directory that a path or a URI names."""
        if isinstance(place, RunDir):
            return place
        if not is_uri(str(place)):
            return cls(Path(place).expanduser().absolute())
        return cls._of(*parted(str(place)))

    @classmethod
    def _of(cls, storage: str, name: str) -> RunDir:
        return cls(local_folder(storage, name), joined(storage, name) if is_remote(storage) else None)

    @property
    def mirror(self) -> Mirror | None:
        """The store's mirror; None for a local run."""
        return None if self.uri is None else Mirror(self.root, self.uri)

    @property
    def storage(self) -> str:
        """`run.storage` of the run."""
        return str(self.root.parent) if self.uri is None else parted(self.uri)[0]

    # --- names ---------------------------------------------------------------------------------------------------

    def shown(self, path: Path | None = None) -> str:
        """What users see of a path, the root by default: the path, or its URI in the store without the query."""
        path = path or self.root
        return str(path) if self.mirror is None else self.mirror.shown(path)

    def storage_path(self, path: Path | None = None) -> str:
        """A path, the root by default, as Ray takes it: the path, or its URI in the store."""
        path = path or self.root
        return str(path) if self.mirror is None else self.mirror.storage_path(path)

    def place(self, path: Path) -> tuple[Any, str]:
        """pyarrow's filesystem that really holds a path, and the path there."""
        from pyarrow import fs

        return (fs.LocalFileSystem(), str(path)) if self.mirror is None else self.mirror.place(path)

    def names(self, folder: Path) -> list[str]:
        """What a folder holds, without hidden entries for a store; nothing if there is no folder."""
        if self.mirror is not None:
            return self.mirror.names(folder)
        return [entry.name for entry in folder.iterdir()] if folder.exists() else []

    # --- reading and writing -------------------------------------------------------------------------------------

    @contextmanager
    def whole(self, path: Path) -> Iterator[Path]:
        """Yield a path to write to; at the end the file is there whole, or not at all, and in the store too."""
        with files.whole(path) as part:
            yield part
        self.push(path)

    @contextmanager
    def whole_folder(self, folder: Path) -> Iterator[Path]:
        """Yield an empty folder to write to, which replaces `folder` at the end, and in the store too."""
        with folders.whole(folder) as part:
            yield part
        self.push_whole(folder)

    def write_json(self, path: Path, content: Any) -> None:
        """Whole or not at all; ValueError for a number that is not finite."""
        files.write_json(path, content)
        self.push(path)

    def write_parquet(self, path: Path, table: Any) -> None:
        """Whole or not at all, and flushed to the disk; FileNotFoundError if the run's directory is gone."""
        files.write_parquet(path, table)
        self.push(path)

    def read_json(self, path: Path) -> Any:
        """The content of a JSON file; ConfigError if it cannot be read."""
        return files.read_json(path, self.shown(path))

    def read_parquet(
        self, path: Path, fix: str, columns: Sequence[str] | None = None, without: Sequence[str] = ()
    ) -> Any:
        """A table, of all its columns or some, but those `without`; ConfigError with the fix if it cannot be read."""
        return files.read_parquet(path, self.shown(path), fix, columns, without)

    def forget(self, path: Path) -> None:
        """Remove a file or a folder, here and in the store; nothing if there is none."""
        if path.is_dir():
            folders.remove(path)
        else:
            path.unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.remove(path)

    # --- the store -----------------------------------------------------------------------------------------------

    def push(self, path: Path) -> None:
        """Upload a file, or a folder's changed files, to the store."""
        if self.mirror is not None:
            self.mirror.push(path)

    def push_whole(self, folder: Path) -> None:
        """Replace a folder of the store: the new one counts once all of it is there."""
        if self.mirror is not None:
            self.mirror.push_whole(folder)

    def pull(self, path: Path, *patterns: str, without: Collection[str] = ()) -> None:
        """Make a local file or folder, or those of its entries that match `patterns`, what the store has."""
        if self.mirror is not None:
            self.mirror.pull(path, *patterns, without=without)

    def glance(self, folder: Path) -> None:
        """Download what is newer in the store, to show it; a store that fails is left to those who work with it."""
        if self.mirror is not None:
            with suppress(StorageError):
                self.mirror.pull(folder, newer=True)

    def bring(self) -> None:
        """Finish pushes that were cut off, then pull the run, but for images and Ray's own files."""
        if self.mirror is not None:
            self.mirror.complete()
            self.mirror.pull(self.root, without=APART)

    def refresh(self) -> None:
        """Pull the run in order to read it, unless a process of this machine works in the mirror."""
        if self.mirror is not None:
            self.root.mkdir(parents=True, exist_ok=True)
            with self.lock() as ours:
                if ours:
                    self.mirror.pull(self.root, without=APART)

    def patiently(self, path: Path, work: Callable[[], T]) -> T:
        """What `work` returns; on a store it is tried again for some seconds, on a local path once."""
        return work() if self.mirror is None else self.mirror.patiently(path, work)

    # --- the lock ------------------------------------------------------------------------------------------------

    def lock(self) -> AbstractContextManager[bool]:
        """Hold the run's lock on this machine within the context, if it is free: yields whether we hold it."""
        return locks.hold(self.root / LOCK_FILE)

    @property
    def is_locked(self) -> bool:
        """Whether a process of this machine holds the run."""
        return locks.is_held(self.root / LOCK_FILE)

    def recover(self) -> None:
        """Put back the folders that a killed writer had moved aside."""
        for parent in (self.root, self.adapters):
            folders.recover_all(parent)

    # --- paths ---------------------------------------------------------------------------------------------------

    adapters = Beneath("adapters")
    curves = Beneath("curves")
    validation = Beneath("validation")  # a folder per training, with a picture of each validation
    tensorboard = Beneath("tensorboard")  # a folder per training, for `tensorboard --logdir`
    tracking = Beneath("tracking")  # the names by which trackers know the trainings
    progress = Beneath("progress")  # one small file per training under way
    images = Beneath("images")
    failures = Beneath("failures.parquet")  # groups of images that could not be made; missing if there are none
    arms = Beneath("arms.json")
    metrics = Beneath("metrics.parquet")
    reward_statistics = Beneath("reward_statistics.json")  # the base's scores, which z-score terms of weighted sums
    front = Beneath("front.json")
    table = Beneath("table.csv")  # every arm of every study, with its settings and measures
    searches = Beneath("search")  # a folder per search for schedules
    schedules = Beneath("schedules")  # the schedules that searches found, one file each
    sweep = Beneath("sweep.json")  # drawn, stopped and failed trials: see `pipelines.study.trials`
    ray = Beneath("ray")  # checkpoints and state of Ray Train and Ray Tune

    def checkpoints(self, key: str) -> Path:
        """Ray Train's folder of a training under way, with its checkpoints."""
        return self.ray / "train" / key


def other_format(run: RunDir) -> int | None:
    """The format of the images that another version has measured; None if this one has, or nothing was."""
    return _other(run.arms, IMAGES_FORMAT, 2)


def other_front(run: RunDir) -> int | None:
    """The format of a front.json that another version wrote; None if this one did, or there is none."""
    return _other(run.front, FRONT_FORMAT, 1)


def _other(path: Path, current: int, first: int) -> int | None:
    """A file's format if it is not the current one; `first` if it has no such key."""
    try:
        number = json.loads(path.read_text()).get("format", first)
    except (OSError, ValueError, AttributeError):
        return None
    return None if number == current else number
