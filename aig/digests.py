"""Hashes of files (large ones through a cache), of tensors, and of the source of a user's callable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

LARGE = 2**24  # bytes from which a digest is cached: smaller files are hashed in milliseconds
PIECE = 2**24  # bytes read at once
SETTLED = 2 * 10**9  # ns since a file's last change, before which another change could have the same time
CACHE = "digests.json"
# The files of models, schedulers, processors and tokenizers that diffusers and transformers read beside weights.
SETTINGS = (
    "config.json", "scheduler_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model",
)  # fmt: skip

Stamp = tuple[int, ...]
_known: dict[str, tuple[Stamp, str]] = {}


def of_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    A link into the hub's cache is not read: its blob is named by this hash. For other files from 16 MiB on it is
    cached, with the file's size, times and inode, in `digests.json` of `$AIG_CACHE` (by default `~/.cache/aig`): a
    model is read once per machine, not once per command.
    """
    return _blob(path) or _remembered(path, "", _hashed)


def of_tensors(path: Path) -> str:
    """A hash, 64 hex digits, of a safetensors file's tensors and metadata, whatever their order in the file.

    Two adapters of one hash do the same, even if the same tensors were saved as two different files. Raises ValueError
    for a file that is truncated or no safetensors file.
    """
    return _remembered(path, "#tensors", _hashed_tensors)


def _remembered(path: Path, what: str, hashed: Callable[[Path], str]) -> str:
    key, stamp = f"{path.resolve()}{what}", _stamp(path)
    if stamp[0] >= LARGE and key not in _known:
        _known.update({other: entry for other, entry in _read().items() if other not in _known})
    if key in _known and _known[key][0] == stamp:
        return _known[key][1]
    digest = hashed(path)
    if stamp == _stamp(path) and time.time_ns() - max(stamp[1:3]) > SETTLED:
        _known[key] = stamp, digest
        if stamp[0] >= LARGE:
            _write({key: (stamp, digest)})
    return digest


def of_files(files: Mapping[str, Path]) -> str:
    """A hash, 32 hex digits, of files' contents and their given names, whatever their order."""
    return of_texts([*(f"{name}\0{of_file(path)}" for name, path in sorted(files.items()))])


def of_texts(texts: Iterable[str]) -> str:
    """A hash, 32 hex digits, of texts in their order."""
    return hashlib.blake2b("\0\0".join(texts).encode(), digest_size=16).hexdigest()


def imported(name: str) -> Any:
    """The object of `package.module:attribute`; ImportError or AttributeError if there is none."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def of_callable(name: str) -> str:
    """A hash of a `package.module:callable`: its name, and the sources of its module and of the one that defines it.

    Modules that these import, and files that they read, are not part of it.
    """
    module, _, attribute = name.partition(":")
    function = imported(name)
    defined = getattr(function, "__module__", None)
    texts = [attribute, getattr(function, "__qualname__", None) or type(function).__qualname__]
    for each in dict.fromkeys([module, defined or module]):
        source = getattr(sys.modules.get(each), "__file__", None)
        texts.append(of_file(Path(source)) if source and Path(source).is_file() else each)
    return of_texts(texts)


def _hashed(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _hashed_tensors(path: Path) -> str:
    """Hash by the format: 8 bytes with the length of a JSON header, the header, and the tensors at its offsets."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError(f"{path}: it is no safetensors file, or truncated")
        try:
            header = json.loads(file.read(length))
            about = header.pop("__metadata__", {})
            places = {name: (at["dtype"], at["shape"], *at["data_offsets"]) for name, at in header.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: the header of this safetensors file cannot be read ({error})") from None
        if max((end for *_, end in places.values()), default=0) != size - 8 - length:
            raise ValueError(f"{path}: it is truncated, or has more than its tensors")
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, (dtype, shape, begin, end) in sorted(places.items()):
            digest.update(f"\0{json.dumps([name, dtype, shape])}\0".encode())
            file.seek(8 + length + begin)
            for first in range(begin, end, PIECE):
                digest.update(file.read(min(PIECE, end - first)))
    return digest.hexdigest()


def _blob(path: Path) -> str | None:
    """The hash in the name of a blob that this link into the hub's cache points to, as large files have; else None."""
    if not path.is_symlink():
        return None
    target = Path(os.readlink(path))
    sealed = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name) is not None
    return target.name if sealed and path.exists() else None


def _stamp(path: Path) -> Stamp:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


def _cache() -> Path:
    return Path(os.environ.get("AIG_CACHE") or "~/.cache/aig").expanduser() / CACHE


def _read() -> dict[str, tuple[Stamp, str]]:
    """The cache's valid entries; anything else in it only costs the hashing."""
    with suppress(OSError, ValueError):
        entries = json.loads(_cache().read_text())
        if isinstance(entries, dict):
            return {key: (tuple(entry[0]), entry[1]) for key, entry in entries.items() if _is_entry(entry)}
    return {}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], list)
        and isinstance(entry[1], str)
        and re.fullmatch("[0-9a-f]{64}", entry[1]) is not None
    )


def _write(new: dict[str, tuple[Stamp, str]]) -> None:
    """Add entries to the cache atomically, dropping files that are gone; do nothing if it cannot be written."""
    path = _cache()
    kept = {key: entry for key, entry in {**_read(), **new}.items() if Path(key.removesuffix("#tensors")).exists()}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{CACHE}.", delete=False) as part:
            json.dump(kept, part)
        try:
            os.replace(part.name, path)
        except OSError:
            os.unlink(part.name)
