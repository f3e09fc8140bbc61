"""The Ray Data actor that scores the images of a unit of work and commits its file."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipelines.evaluate.attempt import attempt
from pipelines.rewards.scores import Scores

PART = "part-{unit}.parquet"


@dataclass(frozen=True)
class Pictures:
    """The images of a unit of work, as files' bytes or the error of reading one, and the other columns of its table."""

    ids: list[str]
    contents: list[bytes | OSError]
    prompts: list[str]
    columns: dict[str, pa.Array]
    """The columns before the scores, in the table's order."""
    metadata: dict[str, str] = field(default_factory=dict)


RESULT = pa.schema({
    "unit": pa.string(), "images": pa.int32(), "predictions": pa.int64(), "said": pa.list_(pa.string()),
    "stage": pa.string(), "error": pa.string(),
})  # fmt: skip


class Job(Protocol):
    """What a scorer is started with: where images come from and scores go; it is pickled to the actors."""

    threads: int
    batch: int
    warns: bool
    """Whether to warn of an image without a score; the column `error` has the reason in any case."""
    keeps_failures: bool
    """Whether a unit whose scoring raises is tried again and then reported as failed, instead of ending the plan."""

    def save(self, unit: str, table: pa.Table) -> None:
        """Write a unit's file, whole."""
        ...

    def scores(self) -> Scores:
        """The loaded rewards and feature extractor."""
        ...

    def pictures(self, row: Mapping[str, Any]) -> Pictures:
        """The images of a row of the dataset."""
        ...


class Scorer:
    """Scores a unit's images as they are saved, and commits the unit: its file appears whole or not at all."""

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.set_num_threads(job.threads)
        self.scores = job.scores()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """What became of each unit (`RESULT`): its number of images, or why it has none."""
        return pa.Table.from_pylist([self.unit(row) for row in batch.to_pylist()], RESULT)

    def unit(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Score and commit a unit, unless it failed already in the generator."""
        name, error = row["unit"], row.get("error")
        if error is not None:
            return {"unit": name, "images": 0, "predictions": 0, "said": [], "stage": "drawn", "error": error}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            table, error = self.twice(row) if self.job.keeps_failures else (self.table(row), None)
        warned = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        if table is None:
            return {"unit": name, "images": 0, "predictions": 0, "said": warned, "stage": "scored", "error": error}
        self.job.save(name, table)
        predictions = row.get("predictions") or 0
        return {"unit": name, "images": len(table), "predictions": predictions, "said": warned}

    def twice(self, row: Mapping[str, Any]) -> tuple[pa.Table | None, str | None]:
        """The unit's table, or why there is none after two tries."""
        table, error = attempt(lambda: self.table(row))
        return (table, error) if error is None else attempt(lambda: self.table(row))

    def table(self, row: Mapping[str, Any]) -> pa.Table:
        """One row per image."""
        pictures = self.job.pictures(row)
        decoded, errors = decode(pictures.contents)
        columns, vectors = self._score(decoded, pictures.prompts, errors)
        if errors and self.job.warns:
            first = min(errors)
            more = f" ({len(errors)} such images in its group)" if len(errors) > 1 else ""
            warnings.warn(
                f"image {pictures.ids[first]} of the prompt {pictures.prompts[first]!r}: {errors[first]}{more}",
                stacklevel=2,
            )
        sizes = [(None, None) if image is None else image.shape[:2] for image in decoded]
        table = dict(pictures.columns)
        for side, name in enumerate(("height", "width")):
            table[name] = pa.array([size[side] for size in sizes], pa.int32())
        table |= {name: pa.array(values, pa.float32(), mask=np.isnan(values)) for name, values in columns.items()}
        if vectors is not None:
            flat = pa.array(vectors.ravel(), pa.float32())
            table["features"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table["error"] = pa.array([errors.get(place) for place in range(len(decoded))], pa.string())
        return pa.table(table).replace_schema_metadata(pictures.metadata)

    def _score(
        self, images: Sequence[np.ndarray | None], prompts: Sequence[str], errors: dict[int, str]
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Columns (N,) and features (N, d), NaN for a missing score, whose reason is added to `errors`."""
        columns = {name: np.full(len(images), np.nan, np.float32) for name in self.scores.columns}
        vectors: np.ndarray | None = None
        for places in batches(images, self.job.batch):
            stack = np.stack([images[place] for place in places])  # type: ignore[arg-type]  # (B, H, W, 3)
            pixels = torch.from_numpy(stack).permute(0, 3, 1, 2)
            scores = self.scores(pixels, [prompts[place] for place in places])
            features = scores.pop("features", None)
            if features is not None:
                vectors = np.full((len(images), features.shape[1]), np.nan, np.float32) if vectors is None else vectors
                vectors[places] = features.numpy()
            for name, values in scores.items():
                columns[name][places] = np.where(np.isfinite(values), values, np.nan)
                for place, value in zip(places, values.tolist(), strict=True):
                    if not np.isfinite(value):
                        errors[place] = f"the score of {name} is {value}"
        return columns, vectors


def scoring_device() -> torch.device:
    """The scorer's device: Ray shows it only the GPUs that it holds."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(images: Sequence[np.ndarray | None], size: int) -> list[list[int]]:
    """Indices of images of equal height and width, at most `size` together, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        if image is not None:
            groups.setdefault(image.shape, []).append(place)
    return [group[begin : begin + size] for group in groups.values() for begin in range(0, len(group), size)]


def decode(contents: Sequence[bytes | OSError]) -> tuple[list[np.ndarray | None], dict[int, str]]:
    """Pixels (H, W, 3) uint8 of each image file, or None, and by index why."""
    images: list[np.ndarray | None] = []
    errors: dict[int, str] = {}
    for place, content in enumerate(contents):
        try:
            if isinstance(content, OSError):
                raise content
            images.append(from_png(content))
        # Pillow raises SyntaxError for a broken PNG.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            images.append(None)
            reason = getattr(error, "strerror", None) or str(error).partition(" <_io")[0]
            errors[place] = f"not an image that can be read ({reason})"
    return images, errors


def to_png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def from_png(content: bytes) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of any image file that Pillow reads, without transparency."""
    image = Image.open(io.BytesIO(content))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode}: save it with 8 bits a channel")
    return np.asarray(image.convert("RGB"))


@dataclass
class WarningLog:
    """The warnings of many actors, each once: those that differ only in numbers are one."""

    first: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, messages: Sequence[str]) -> None:
        for message in messages:
            kind = "".join(c for c in message if not c.isdigit())
            self.first.setdefault(kind, message)
            self.counts[kind] += 1

    def lines(self) -> Iterator[str]:
        """One line per warning, with the number of others like it."""
        for kind, message in self.first.items():
            more = self.counts[kind] - 1
            yield f"warning: {message}{f' (and {more} more such warnings)' if more else ''}"
