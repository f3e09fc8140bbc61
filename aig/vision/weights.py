"""Locate pretrained weights: a file, a folder, the hub or its cache; with one error that says what to do offline."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError

from aig import digests

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".json", ".ckpt")


@dataclass(frozen=True)
class Source:
    """The files that a reward or extractor needs from one place.

    Examples:
        >>> source = aig.vision.Source("reward 'fragile'", str(aig.world.weights.folder()), ("fragile.safetensors",))
        >>> aig.vision.fetch(source).name, aig.vision.missing([source]), len(aig.vision.digest([source]))
        ('weights', [], 32)
    """

    user: str
    """Their user's name in messages: `reward 'hpsv2.1'`."""
    place: str
    """A hub id `owner/name`, a folder, a file, or an https address of a file."""
    files: tuple[str, ...]
    """The files that must exist; `a|b` if either will do. A place that is a file stands for all of them."""
    extras: tuple[str, ...] = ()
    """Patterns of further files to download if they exist."""
    key: str = "weights"
    """The key of a specification that names another place."""

    @property
    def is_url(self) -> bool:
        return self.place.startswith(("https://", "http://"))

    @property
    def is_path(self) -> bool:
        """Whether the place can only be a path: it exists, or it does not read as a hub id."""
        plain = self.place.count("/") == 1 and not self.place.startswith((".", "/", "~")) and "\\" not in self.place
        return not self.is_url and (self.path.exists() or not plain or self.place.endswith(SUFFIXES))

    @property
    def path(self) -> Path:
        return Path(self.place).expanduser()

    def file(self, path: Path) -> Path:
        """The single file under the path that `fetch` returned: itself, or the first alternative in a folder."""
        if path.is_file():
            return path
        return next(path / name for name in self.files[0].split("|") if (path / name).exists())

    @property
    def downloaded(self) -> Path:
        """The path of a file from an https address."""
        return Path(torch.hub.get_dir()) / "checkpoints" / unquote(self.place.rsplit("/", 1)[1])


def find(source: Source) -> Path | None:
    """The local folder or file of a source; None if it must be downloaded. Never uses the network.

    Raises ValueError for a path that does not exist, and for a folder that lacks a file.
    """
    if source.is_url:
        return source.downloaded if source.downloaded.exists() else None
    if not source.is_path:
        cached = [_cached(source.place, names) for names in source.files]
        return cached[0].parent if cached and all(cached) and cached[0] is not None else None
    if not source.path.exists():
        raise ValueError(
            f"{source.user}: there is no {source.path} ({source.key}); give a file, a folder or a hub id that has "
            f"{_listed(source)}"
        )
    if source.path.is_file():
        return source.path
    for names in source.files:
        if not any((source.path / name).exists() for name in names.split("|")):
            raise ValueError(
                f"{source.user}: the folder {source.path} ({source.key}) has no {names.replace('|', ' or ')}; it needs "
                f"{_listed(source)}"
            )
    return source.path


def fetch(source: Source) -> Path:
    """The local folder or file of a source, downloaded if missing.

    Raises ValueError if that fails: what to download, from where, to which path.
    """
    path = find(source)
    if path is not None:
        return path
    try:
        if source.is_url:
            if constants.HF_HUB_OFFLINE:
                raise OSError("HF_HUB_OFFLINE is set")
            source.downloaded.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.place, str(source.downloaded))
            return source.downloaded
        for count in (1, None):  # all alternatives only if the first is missing: they can hold the same weights
            patterns = [name for names in source.files for name in names.split("|")[:count]]
            snapshot_download(source.place, allow_patterns=[*patterns, *source.extras])
            if (path := find(source)) is not None:
                return path
        raise OSError("the repository has no such file")
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable(source, error) from error


def digest(sources: Iterable[Source], *paths: str | None) -> str:
    """A hash, 32 hex digits, of the sources' files, downloaded if missing, and of the paths that are files.

    Raises ValueError as `fetch`.
    """
    files = {f"{i}/{name}": path for i, source in enumerate(sources) for name, path in _read(source).items()}
    others = [Path(path).expanduser() for path in paths if path]
    return digests.of_files(files | {f"path/{i}": path for i, path in enumerate(others) if path.is_file()})


def _read(source: Source) -> dict[str, Path]:
    """The files of a source by role: weights with their shards, and the settings and tokenizers beside them."""
    place = fetch(source)
    if place.is_file():
        return {source.files[0]: place}
    chosen = {names: next(place / n for n in names.split("|") if (place / n).exists()) for names in source.files}
    shards = {
        shard: path.parent / shard
        for path in chosen.values()
        if path.name.endswith(".index.json")
        for shard in json.loads(path.read_text())["weight_map"].values()
    }
    beside = [name for name in digests.SETTINGS if any(fnmatch(name, pattern) for pattern in source.extras)]
    return chosen | shards | {name: place / name for name in beside if (place / name).is_file()}


def pretrained(kind: Any, folder: Path, dtype: torch.dtype, user: str) -> Any:
    """Load a transformers class from a folder that sets every parameter; ValueError names what is wrong."""
    fix = f"give a folder that {kind.__name__}.save_pretrained wrote"
    try:
        model, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{user}: {folder} cannot be loaded ({reason}): {fix}") from error
    wrong = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"{user}: the weights in {folder} do not fit {kind.__name__} ({len(wrong)} parameters are missing or of "
            f"another shape, as {wrong[0]}); {fix}"
        )
    return model


def missing(sources: Iterable[Source]) -> list[str]:
    """The addresses that `fetch` would download, one per source; loads nothing.

    Raises one ValueError for all that cannot be downloaded: offline, or no such file.
    """
    addresses, errors = [], []
    for source in dict.fromkeys(sources):
        try:
            if find(source) is None:
                addresses.append(_reachable(source))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n".join(dict.fromkeys(errors)))
    return addresses


def unavailable(source: Source, why: object) -> ValueError:
    """The error for files that are neither here nor can be downloaded: what to get, from where, to which path."""
    reason = str(why).strip().split("\n")[0]
    if source.is_url:
        place, command, target = source.place, f"curl -Lo '{source.downloaded}' {source.place}", source.downloaded
    else:
        names = " ".join(names.split("|")[0] for names in source.files)
        place = f"https://huggingface.co/{source.place}"
        command, target = f"hf download {source.place} {names}", Path(constants.HF_HUB_CACHE)
    return ValueError(
        f"{source.user} needs {_listed(source)} from {place}, which is not in {target} and cannot be downloaded "
        f"({reason}). On a machine with a network run `{command}` and bring the result to that path, or download it to "
        f"any folder and set {source.key!r} to the folder or file"
    )


def _reachable(source: Source) -> str:
    address = source.place if source.is_url else hf_hub_url(source.place, source.files[-1].split("|")[0])
    if constants.HF_HUB_OFFLINE:
        raise unavailable(source, "HF_HUB_OFFLINE is set")
    try:
        if source.is_url:
            with urlopen(Request(address, method="HEAD"), timeout=10):
                return address
        get_hf_file_metadata(address, timeout=10)
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable(source, error) from error
    return address


def _cached(repository: str, names: str) -> Path | None:
    for name in names.split("|"):
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    return None


def _listed(source: Source) -> str:
    return ", ".join(names.replace("|", " or ") for names in source.files)
