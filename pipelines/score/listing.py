"""List the images of a folder and their prompts, from a metadata file or from parquet files that hold the images.

A metadata file is `metadata.jsonl`, `.csv` or `.parquet` as in Hugging Face's `imagefolder`, in the folder or in its
subfolders: one row per image, with the path relative to the metadata file. A parquet file may hold the images
themselves in a column `image`, as bytes or as Hugging Face's struct of bytes and path; so do the files of a run's
`images/`. If no prompt is needed, a folder of bare image files will do, and so will metadata without prompts.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import ConfigError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILES = ("file_name", "file", "path", "image")
PROMPTS = ("prompt", "text", "caption")
GROUP = "group"
IMAGE, ID = "image", "id"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Names:
    """The metadata's columns; None takes the first of `FILES` or `PROMPTS` that exists, and `GROUP` if it exists."""

    file: str | None = None
    prompt: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listed:
    """An image and its prompt."""

    id: str
    """A hash of the file's name, size and time and of the prompt, so that it changes with image or prompt."""
    file: str
    """The path to show, relative to the folder; `file#row` for a row of a parquet file."""
    path: str
    row: int | None
    """The row of a parquet file that holds the image; None for an image file."""
    prompt: str
    group: str | None
    image_id: str | None
    """The dataset's own id of the image."""


@dataclass(frozen=True)
class Listing:
    """The images of a folder, each once, and the number of image files there that no metadata name."""

    images: list[Listed]
    unlisted: int
    grouped: bool


def read(
    source: Path, metadata: Path | None = None, names: Names | None = None, *, prompts_needed: bool = True
) -> Listing:
    """List the images of a folder, or of a metadata or parquet file; ConfigError names what is wrong and the fix.

    Unless prompts are needed, an image may have an empty one.
    """
    names = names or Names()
    if not source.exists():
        raise ConfigError(f"{source} does not exist: give a folder of images{' with prompts' * prompts_needed}")
    root = source if source.is_dir() else source.parent
    files = _sources(source, metadata, prompts_needed)
    if not files:
        return Listing(_alone(source), 0, False)
    images = [
        image
        for file in files
        for image in _of_file(file, root if metadata else file.parent, root, names, prompts_needed)
    ]
    if not images:
        raise ConfigError(f"{files[0]} lists no image: give it one row per image")
    _refuse_twice(images)
    known = {image.path for image in images}
    lying = source.rglob("*") if source.is_dir() else ()
    unlisted = sum(path.suffix.lower() in SUFFIXES and str(path.absolute()) not in known for path in lying)
    return Listing(images, unlisted, any(image.group is not None for image in images))


def _alone(folder: Path) -> list[Listed]:
    """List the image files of a folder, without prompts."""
    paths = sorted(path.absolute() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ConfigError(f"{folder} has no image files ({', '.join(SUFFIXES)}): give a folder of images")
    images = []
    for path in paths:
        shown, seen = _shown(path, folder), path.stat()
        identity = _hash([shown, seen.st_size, seen.st_mtime_ns, ""])
        images.append(Listed(identity, shown, str(path), None, "", None, None))
    return images


def _sources(source: Path, metadata: Path | None, prompts_needed: bool = True) -> list[Path]:
    """The files that list images; none for a folder of bare images if no prompt is needed."""
    if metadata is not None:
        if not metadata.is_file():
            raise ConfigError(f"--prompts {metadata} is not a file: give a .jsonl, .csv or .parquet file")
        return [metadata]
    if source.is_file():
        return [source]
    files = sorted(path for name in METADATA for path in source.rglob(name))
    if not files:
        tables = sorted(path for path in source.rglob("*.parquet") if not path.name.startswith("."))
        files = [path for path in tables if _open(path)[1]] or tables
    if not files and prompts_needed:
        raise ConfigError(
            f"{source} has no prompts: put a metadata.jsonl (or .csv or .parquet) there with the columns file_name and "
            "text, or name such a file with --prompts"
        )
    return files


def _of_file(file: Path, base: Path, root: Path, names: Names, prompts_needed: bool = True) -> Iterator[Listed]:
    """The images of one metadata file, whose paths are relative to `base`, or of one parquet file that holds them."""
    columns, holds, rows_of = _open(file)
    holds = holds and names.file is None
    prompt = None
    if prompts_needed or names.prompt or any(name in columns for name in PROMPTS):
        prompt = _column(file, columns, names.prompt, PROMPTS, "--prompt-column")
    group = names.group or (GROUP if GROUP in columns else None)
    if group is not None:
        _column(file, columns, group, (), "--group-column")
    name_of = None if holds else _column(file, columns, names.file, FILES, "--file-column")
    rows = rows_of([name for name in dict.fromkeys((prompt, group, name_of, ID)) if name in columns])
    own, absent = file.stat(), []
    for place, (where, row) in enumerate(rows):
        text = row.get(prompt or "")
        text = text if isinstance(text, str) else ""
        if prompts_needed and not text.strip():
            raise ConfigError(f"{file}, {where}: {prompt} is empty: give every image a prompt")
        path, inside, seen = file.absolute(), place, own
        if name_of is not None:
            name = row.get(name_of)
            if not isinstance(name, str) or not name:
                raise ConfigError(f"{file}, {where}: {name_of} is empty: give the image's path")
            path, inside = (base / name).absolute(), None
            if not path.is_file():
                absent.append(f"{name} ({where})")
                continue
            seen = path.stat()
        shown = _shown(path, root) + ("" if inside is None else f"#{inside}")
        identity = _hash([shown, seen.st_size, seen.st_mtime_ns, text])
        style, known = row.get(group or ""), row.get(ID) if holds else None
        yield Listed(identity, shown, str(path), inside, text, *(v if v is None else str(v) for v in (style, known)))
    if absent:
        raise ConfigError(
            f"{file}: {len(absent)} of {len(rows)} files do not exist, the first {absent[0]}; paths are relative to "
            f"{base}"
        )


Row = tuple[str, dict[str, Any]]  # its place in the file, and its values


def _open(file: Path) -> tuple[list[str], bool, Callable[[list[str]], list[Row]]]:
    """A file's columns, whether it holds the images themselves, and a function that reads the rows of some columns."""
    if file.suffix != ".parquet":
        rows = list(_csv_rows(file) if file.suffix == ".csv" else _json_rows(file))
        return list(dict.fromkeys(key for _, row in rows for key in row if key is not None)), False, lambda _: rows
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{file}: not a parquet file ({error})") from error
    kind = schema.field(IMAGE).type if IMAGE in schema.names else None
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
    holds = kind is not None and any(test(kind) for test in tests)

    def read_rows(columns: list[str]) -> list[Row]:
        return [(f"row {i}", row) for i, row in enumerate(pq.read_table(file, columns=columns).to_pylist())]

    return schema.names, holds, read_rows


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            for row in reader:
                yield f"line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: not a CSV file in UTF-8 that can be read ({error})") from error


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not text in UTF-8 that can be read ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file}, line {number}: not JSON ({error.msg}): give one object per line") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, line {number}: not a JSON object: write {{'file_name': ..., 'text': ...}}")
        yield f"line {number}", row


def _column(file: Path, columns: Sequence[str], asked: str | None, known: Sequence[str], option: str) -> str:
    column = asked if asked in columns else next((name for name in known if name in columns and asked is None), None)
    if column is None:
        missing = repr(asked) if asked else " or ".join(map(repr, known))
        raise ConfigError(
            f"{file} has no column {missing}; it has {', '.join(columns) or 'none'}: choose with {option}"
        )
    return column


def _refuse_twice(images: Sequence[Listed]) -> None:
    seen: set[tuple[str, int | None]] = set()
    for image in images:
        if (image.path, image.row) in seen:
            raise ConfigError(f"{image.file} is listed twice: give each file once")
        seen.add((image.path, image.row))


def _shown(path: Path, root: Path) -> str:
    root = root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
