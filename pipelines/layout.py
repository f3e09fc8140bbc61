"""Where a run keeps what, and what its trainings are called: read off the configuration, without loading torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from aig import folders
from pipelines import remote
from pipelines.config import Config, ConfigError, Train

RECORD = "adapter.json"  # `aig.adapters.RECORD`, without its torch
# What an earlier version has left is of an earlier format, is said to be, and is never read as if it were of this one.
RECORD_FORMAT = 2  # of adapters' records; 1 had no such key, and a fingerprint of the ends of the model's files
IMAGES_FORMAT = 3  # of the units' files and what is measured of them; 2 had ids of (arm, prompt, seed index) alone


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what."""

    root: Path

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
        """What a sweep has drawn, what it stopped and what failed: see `pipelines.trials`."""
        return self.root / "sweep.json"

    @property
    def ray(self) -> Path:
        """Checkpoints and state of Ray Train and Ray Tune."""
        return self.root / "ray"

    def checkpoints(self, key: str) -> Path:
        """Ray Train's folder of a training under way, with its checkpoints."""
        return self.ray / "train" / key


def slug(name: str) -> str:
    """A reward's name as a file name and a column name may hold it."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)


def adapter_key(train: Train) -> str:
    """The name of the adapter that a training makes, as in fragile-k1-kl10-s0 or fragile-k1-kl10-lr0.0003-s0."""
    label = f"-{train.label}" if train.label else ""
    return f"{slug(train.reward)}-k{train.k}-kl{train.kl_weight:g}{label}-s{train.seed}"


def training(config: Config, *, reward: str, k: int, kl_weight: float, lr: float, rank: int, seed: int) -> Train:
    """The training of `config.train` with these settings; its label names those that a key does not hold otherwise."""
    train = config.train
    varied = [train.label] * bool(train.label)
    varied += [f"lr{lr:g}"] * (lr != train.lr) + [f"r{rank}"] * (rank != train.rank)
    alpha = train.alpha if rank == train.rank else train.alpha * rank / train.rank  # the adapter's scale is kept
    return replace(
        train, reward=reward, k=k, kl_weight=kl_weight, lr=lr, rank=rank, alpha=alpha, seed=seed,
        label="-".join(varied),
    )  # fmt: skip


def trainings(config: Config) -> list[Train]:
    """Every training of the sweep; the unregularized ones first, since the most arms hang on them.

    Those of a grid, or of a search its references and what it has drawn so far.
    """
    sweep = config.sweep
    if sweep.search != "grid":
        return [*references(config), *(training(config, **settings) for settings in drawn(config))]
    varied = (sweep.kl_weights, sweep.rewards, sweep.ks, *learning(config), sweep.train_seeds)
    return [
        training(config, reward=r, k=k, kl_weight=w, lr=lr, rank=rank, seed=s)
        for w, r, k, lr, rank, s in sorted(product(*varied), key=lambda point: point[0])
    ]


def saved_adapters(files: RunFiles) -> list[str]:
    """The names of the adapters that are there whole, in their order; the folders of killed writers are hidden."""
    found = (path.parent.name for path in files.adapters.glob(f"*/{RECORD}"))
    return sorted(name for name in found if not name.startswith("."))


def external(config: Config) -> dict[str, Path]:
    """Adapters that were made elsewhere: their names, and where they came from; the run has copies."""
    return {name: Path(path) for name, _, path in (text.partition("=") for text in config.evaluate.adapters)}


def references(config: Config) -> list[Train]:
    """What a search compares its trials with: train.* with KL weight 0, for every reward and K."""
    train, sweep = config.train, config.sweep
    return [
        training(config, reward=r, k=k, kl_weight=0.0, lr=train.lr, rank=train.rank, seed=sweep.train_seeds[0])
        for r, k in product(sweep.rewards, sweep.ks)
    ]


def learning(config: Config) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The sweep's learning rates and ranks."""
    return config.sweep.lrs or (config.train.lr,), config.sweep.ranks or (config.train.rank,)


def drawn(config: Config) -> list[dict[str, Any]]:
    """The settings of the trials that a search has drawn, in their order; none where it has not begun."""
    return [settings for generation in read_sweep(config).get("drawn", []) for settings in generation]


def read_sweep(config: Config) -> dict[str, Any]:
    """The content of `sweep.json`, nothing where no sweep has begun; ConfigError where it cannot be read."""
    path = RunFiles(config.directory).sweep
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore it, or choose another run.name") from error


def other_format(files: RunFiles) -> int | None:
    """The format of the images that another version has measured; None where this one has, or nothing was."""
    try:
        found = json.loads(files.arms.read_text()).get("format", 2)
    except (OSError, ValueError, AttributeError):
        return None
    return None if found == IMAGES_FORMAT else found


def snapshot_steps(config: Config) -> list[int]:
    """The steps whose snapshots are kept, the last step excepted: that is the adapter itself."""
    return list(range(config.train.snapshot_every, config.train.steps, config.train.snapshot_every))


def adapter_folders(config: Config) -> list[tuple[str, int]]:
    """Names and steps of the folders that the training `config.train` leaves: snapshots, then the adapter itself.

    Where a guard has stopped it, no snapshot is of a later step than the adapter.
    """
    key, last = adapter_key(config.train), last_step(config)
    return [*((f"{key}@{step}", step) for step in snapshot_steps(config) if step <= last), (key, last)]


def last_step(config: Config) -> int:
    """The step of the adapter of `config.train`: train.steps, or what was kept where a guard has stopped it."""
    found = stopped(config)
    return config.train.steps if found is None else found["step"]


def stopped(config: Config) -> dict[str, Any] | None:
    """The record of the adapter of `config.train`, where a guard has stopped its training: see its key `stopped`."""
    if not config.train.limits:
        return None
    try:
        record = json.loads((RunFiles(config.directory).adapters / adapter_key(config.train) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    found = record.get("stopped")
    return record if found and found["step"] <= config.train.steps else None


def curve(config: Config) -> list[dict[str, Any]]:
    """The validations of `config.train`, from step 0 on; none where it has not begun."""
    path = RunFiles(config.directory).curves / f"{adapter_key(config.train)}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def validated(rows: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last of some validations that was made by a step; empty where none was."""
    return next((row for row in reversed(rows) if row["step"] <= step), {})


def standings(config: Config) -> list[dict[str, Any]]:
    """What the adapter of `config.train` was worth at each validation, the last being what the training came to: its
    curve, but after the step of what a guard kept the values of that."""
    rows, last = curve(config), last_step(config)
    kept = validated(rows, last)
    return [row if row["step"] <= last else {**kept, "step": row["step"]} for row in rows]


def best_folder(train: Train) -> str:
    """The name of the adapter of the validation with the best held-out reward, where train.keep_best asks for it."""
    return f"{adapter_key(train)}@best"


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
    remote.push(path)


def forget(path: Path) -> None:
    """Remove a file or a folder of a run, wherever that is kept; nothing where there is none."""
    if path.is_dir():
        folders.remove(path)
    else:
        path.unlink(missing_ok=True)
    remote.remove(path)


def read_json(path: Path) -> Any:
    """The content of a file of ours; ConfigError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{remote.shown(path)} cannot be read ({error}): restore it, or delete it to have it made again"
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
        raise ConfigError(f"{remote.shown(path)} cannot be read ({reason}): {fix}") from error


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
