"""Score any folder of images with prompts: run the evaluation's scorers over files, into one parquet file.

Units of images are committed one by one beside that file, so an interrupted run resumes where it was. Images that are
scored and have not changed since are not scored again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aig import rewards
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster
from pipelines.config import Config, ConfigError, RunError, given, uris
from pipelines.evaluate.scorers import PART, Pictures, scoring_device
from pipelines.rewards import names as reward_names
from pipelines.rewards.names import Columns
from pipelines.rewards.scores import Scores
from pipelines.runs import locks
from pipelines.runs.files import write_parquet
from pipelines.score import listing
from pipelines.score.listing import Listed, Listing
from pipelines.show.bar import Bar

KEY = b"aig.scores"  # the metadata entry that identifies the rewards of a file's columns


class ScoreError(RunError):
    """Some images have no score; the message names them."""


@dataclass(frozen=True)
class Request:
    """What to score, with which rewards, and where the scores go."""

    source: Path
    rewards: tuple[str, ...]
    metadata: Path | None = None
    names: listing.Names = field(default_factory=listing.Names)
    out: Path | None = None


@dataclass(frozen=True)
class Files:
    """The file of the scores, and the folder of its units beside it."""

    out: Path
    key: str
    """A hash of what the scores depend on beside the images."""

    @property
    def parts(self) -> Path:
        return self.out.with_name(f".{self.out.name}.{self.key}.parts")


class FolderJob:
    """The scorers' job for images in files, which records why an image cannot be read or scored."""

    warns = keeps_failures = False  # failures are listed by file at the end

    def __init__(self, folder: Path, columns: Columns, threads: int, batch: int) -> None:
        self.folder, self.columns, self.threads, self.batch = folder, columns, threads, batch

    def save(self, unit: str, table: pa.Table) -> None:
        write_parquet(self.folder / PART.format(unit=unit), table)

    def scores(self) -> Scores:
        return Scores(self.columns, device=scoring_device())

    def pictures(self, row: Mapping[str, Any]) -> Pictures:
        contents = [read_image(path, inside) for path, inside in zip(row["path"], row["row"], strict=True)]
        columns = {"id": pa.array(row["id"], pa.string())}
        return Pictures(row["id"], contents, row["prompt"], columns)


def read_image(path: str, row: int | None) -> bytes | OSError:
    """The bytes of an image file, or of a row of a parquet file; or the error that kept them from being read."""
    try:
        if row is None:
            return Path(path).read_bytes()
        first = 0
        for group in range(_parquet(path).num_row_groups):
            count = _parquet(path).metadata.row_group(group).num_rows
            if row < first + count:
                content = _images(path, group)[row - first].as_py()
                content = content["bytes"] if isinstance(content, dict) else content
                return content if content is not None else OSError("the image is null")
            first += count
        return OSError(f"the file has no row {row} any more")
    except OSError as error:
        return error


@lru_cache(maxsize=4)
def _parquet(path: str) -> pq.ParquetFile:
    return pq.ParquetFile(path)


@lru_cache(maxsize=1)
def _images(path: str, group: int) -> pa.ChunkedArray:
    return _parquet(path).read_row_group(group, columns=[listing.IMAGE])[listing.IMAGE]


def check(config: Config, request: Request) -> tuple[Listing, Columns, Files]:
    """Read the listing and resolve the rewards and files; ConfigError names what is wrong before any worker starts."""
    with given():
        for name in request.rewards:
            reward_names.check(config, name)
        columns = reward_names.columns(config, request.rewards)
    needed = any(rewards.reads_prompts(spec) for spec in columns.parts.values())
    images = listing.read(request.source, request.metadata, request.names, prompts_needed=needed)
    source = request.source.absolute()
    key = _key(columns)
    default = f"{source.stem}-{_hash([str(source), key])}.parquet"
    if request.out is None and uris.is_uri(config.run.storage):
        raise ConfigError(f"run.storage is {config.run.storage}, and scores go to a file: name a local one by --out")
    out = request.out or Path(config.run.storage).expanduser() / "scores" / default
    files = Files(out.absolute(), key)
    _check_out(files)
    return images, columns, files


def _check_out(files: Files) -> None:
    """Raise ConfigError if the file of the scores exists and holds something else."""
    out = files.out
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: give the path of a file, as in {out / 'scores.parquet'}")
    if out.exists() and _key_of(out) != files.key:
        raise ConfigError(
            f"{out} is there already and holds something else: give another --out, or remove it (scores by other "
            "weights of the rewards, or by an earlier version, are something else too)"
        )


def score(
    config: Config, listed: Listing, columns: Columns, files: Files, connect: Callable[[], Cluster]
) -> tuple[pa.Table, int]:
    """Score what is not scored yet and write the file; return its table and the number of images scored now.

    `connect` connects to Ray; it is called only if something is left to score.
    """
    with _locked(files):
        _check_out(files)
        files.parts.mkdir(exist_ok=True)
        done = _done(files, listed)
        missing = [image for image in listed.images if image.id not in done]
        if missing:
            if len(missing) < len(listed.images):
                print(f"{len(listed.images) - len(missing)} of {len(listed.images)} images are scored already.")
            connect().room(resources.scorers(config.evaluate), resources.SPARE)
            _stream(config, columns, files, missing)
        table = _collect(files, columns, listed)
        if not files.out.exists() or pq.read_table(files.out) != table:
            write_parquet(files.out, table)
        shutil.rmtree(files.parts)
    return table, len(missing)


def _stream(config: Config, columns: Columns, files: Files, missing: Sequence[Listed]) -> None:
    from pipelines.evaluate import streaming  # here: a run with nothing left to do needs no Ray

    evaluate = config.evaluate
    size = evaluate.score_batch
    units = []
    for first in range(0, len(missing), size):
        images = missing[first : first + size]
        unit = {name: [getattr(image, name) for image in images] for name in ("id", "path", "row", "prompt")}
        units.append({"unit": _hash(unit["id"]), **unit})
    streaming.quiet_data()
    job = FolderJob(files.parts, columns, evaluate.threads, size)
    plan = streaming.scored(streaming.rows(units), job, config, len(units))
    streaming.run(plan, Bar("scored", len(missing)))


def _done(files: Files, listed: Listing) -> set[str]:
    """The ids of the images that have their scores; failed ones are tried again."""
    done: set[str] = set()
    for path in _paths(files):
        table = pq.read_table(path, columns=["id", "error"])
        done |= {name for name, error in zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True) if not error}
    return done & {image.id for image in listed.images}


def _paths(files: Files) -> list[Path]:
    """The finished file, then its units, the newest last."""
    units = sorted(files.parts.glob(PART.format(unit="*")), key=lambda path: path.stat().st_mtime_ns)
    return [*([files.out] if files.out.exists() else []), *units]


def _collect(files: Files, columns: Columns, listed: Listing) -> pa.Table:
    """One row per image, in the listing's order, each with its latest scores."""
    scores = ["height", "width", *columns.parts, *columns.sums, "error"]
    whole = pa.concat_tables([pq.read_table(path, columns=["id", *scores]) for path in _paths(files)])
    place = {name: row for row, name in enumerate(whole["id"].to_pylist())}
    chosen = whole.take(pa.array([place[image.id] for image in listed.images], pa.int64()))
    about = {name: pa.array([getattr(image, name) for image in listed.images], pa.string()) for name in ABOUT}
    about = {name: values for name, values in about.items() if name not in OPTIONAL or values.null_count < len(values)}
    table = pa.table({**about, **{name: chosen[name] for name in scores}})
    return table.replace_schema_metadata({KEY: files.key.encode()})


ABOUT = ("id", "image_id", "file", "prompt", "group")
OPTIONAL = ("image_id", "group")  # left out if no image has one


@contextmanager
def _locked(files: Files) -> Iterator[None]:
    """Lock the file of the scores: no second process scores into it meanwhile, with whatever rewards."""
    path = files.out.with_name(f".{files.out.name}.lock")
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            ours = held.enter_context(locks.hold(path))
        except OSError as error:
            raise ConfigError(f"{files.out}: cannot write there ({error.strerror}): choose another --out") from error
        if not ours:
            raise ConfigError(f"another process is scoring into {files.out}: wait for it")
        held.callback(path.unlink)
        yield


def _key(columns: Columns) -> str:
    """A hash of what the scores depend on beside the images: the rewards, and the content of their weights and code."""
    return _hash([columns.to_json(), reward_names.digests(columns.parts.values())])


def _key_of(path: Path) -> str | None:
    try:
        return (pq.read_schema(path).metadata or {}).get(KEY, b"").decode()
    except (OSError, pa.ArrowException):
        return None


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def failures(table: pa.Table) -> list[str]:
    """Images without a score, each with its reason."""
    rows = zip(table["file"].to_pylist(), table["error"].to_pylist(), strict=True)
    return [f"{file}: {error}" for file, error in rows if error]
