"""The files of a diffusers folder that its pipeline loads, and a model's fingerprint from their content."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from aig import digests

INDEX = "model_index.json"


def fingerprint(folder: Path, variant: str | None = None, without: Collection[str] = ()) -> str:
    """A hash, 32 hex digits, of the names and contents of `loaded`, whatever the folder's path and other files."""
    return digests.of_files({path.relative_to(folder).as_posix(): path for path in loaded(folder, variant, without)})


def loaded(folder: Path, variant: str | None = None, without: Collection[str] = ()) -> list[Path]:
    """The files that diffusers reads from a pipeline's folder: its index, and settings and weights of its parts.

    Parts in `without` are left out. Weights are the variant's safetensors if there are any, else the plain ones.
    """
    parts = json.loads((folder / INDEX).read_text())
    files = [folder / INDEX]
    for name, part in parts.items():
        if isinstance(part, list) and part[0] is not None and name not in without and (folder / name).is_dir():
            files += [path for path in (folder / name / each for each in digests.SETTINGS) if path.is_file()]
            files += _weights(folder / name, part[0] == "transformers", variant)
    return files


def _weights(folder: Path, transformers: bool, variant: str | None) -> list[Path]:
    """One file, or an index and its shards; none if a part has none (a tokenizer) or none that is read."""
    # diffusers' test of whether a part exists in the variant; if not, it reads the plain weights.
    seconds = [path.name.split(".")[1] for path in folder.iterdir() if "." in path.name]
    own = variant if variant and any(second.startswith(variant) for second in seconds) else None
    for path in _candidates(folder, transformers, own):
        if path.is_file() and path.suffix == ".json":
            shards = set(json.loads(path.read_text())["weight_map"].values())
            return [path, *(folder / shard for shard in sorted(shards))]
        if path.is_file():
            return [path]
    return []


def _candidates(folder: Path, transformers: bool, variant: str | None) -> Iterator[Path]:
    """The files that the part's library looks for, in its order."""
    middle = f".{variant}" if variant else ""
    stem = "model" if transformers else "diffusion_pytorch_model"
    single, index = f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"
    if transformers:
        yield from (folder / single, folder / index)
        return
    earlier = f"{stem}.safetensors{middle}.index.json"  # a variant's index as diffusers wrote it until 2024
    yield from (folder / index, folder / earlier, folder / single)
