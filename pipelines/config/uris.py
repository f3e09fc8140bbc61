"""URIs of storages, and of the runs in them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

# What pyarrow knows.
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")


def is_uri(storage: str) -> bool:
    return "://" in storage


def is_remote(storage: str) -> bool:
    """Whether runs there have a local mirror: file:// is the local disk."""
    return is_uri(storage) and not storage.startswith("file://")


def wrong_with(uri: str) -> str | None:
    """What is wrong with a storage URI in itself, with the fix; None if nothing is."""
    scheme, parts = uri.partition("://")[0], urlsplit(uri)
    if scheme not in SCHEMES:
        return f"scheme {scheme!r} is unknown: give a folder, or a URI that begins with {', '.join(SCHEMES)}"
    if parts.password:
        return "it holds a password, and a run's configuration is no place for one: give credentials by environment"
    if not parts.netloc and scheme not in ("file", "hdfs"):
        return f"it names no bucket: give {scheme}://BUCKET/PREFIX"
    return None


def censored(uri: str) -> str:
    """The URI without user name and password."""
    return re.sub("//[^@/]*@", "//...@", uri)


def joined(uri: str, *names: str) -> str:
    """The URI of something beneath; a query stays at the end."""
    head, mark, query = uri.partition("?")
    scheme, _, place = head.partition("://")
    return f"{scheme}://{'/'.join([place.rstrip('/'), *map(quote, names)])}{mark}{query}"


def parted(uri: str) -> tuple[str, str]:
    """Storage and name of a run's URI."""
    head, mark, query = uri.partition("?")
    storage, _, name = head.rstrip("/").rpartition("/")
    return f"{storage}{mark}{query}", unquote(name)


def local_folder(storage: str, name: str) -> Path:
    """The local folder of a run: its own (for file:// too), or the mirror of one in an object store."""
    if not is_uri(storage):
        return Path(storage).expanduser().absolute() / name
    if storage.startswith("file://"):
        return Path(unquote(urlsplit(storage).path)) / name
    cache = Path(os.environ.get("AIG_CACHE") or "~/.cache/aig").expanduser().absolute()
    return cache / hashlib.blake2b(storage.encode(), digest_size=8).hexdigest() / name
