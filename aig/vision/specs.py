"""Checks that specifications of rewards and of features share: names, keys, and their messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any


def check_name(what: str, name: object, known: Collection[str]) -> None:
    """ValueError for a name that is neither known nor a `package.module:callable`; `what` reads like "reward {} is"."""
    if not isinstance(name, str) or (name not in known and ":" not in name):
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{what.format(repr(name))} not known{hint} (known: {', '.join(known)}, or package.module:callable for "
            "your own)"
        )


def check_texts(who: str, spec: object, keys: Iterable[str]) -> None:
    """ValueError if one of these fields is neither None nor a text."""
    for key in keys:
        value = getattr(spec, key)
        if value is not None and (not isinstance(value, str) or not value):
            raise ValueError(f"{who}: {key} must be a text or left out, got {value!r}")


def from_mapping(kind: type, who: str, spec: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The dataclass of a mapping; ValueError for an unknown key, with the nearest known one, and for a missing name."""
    known = [item.name for item in fields(kind)]
    for key in spec:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{who} {dict(spec)!r}: unknown key {key!r}{hint} (known: {', '.join(known)})")
    if not isinstance(spec.get("name"), str):
        raise ValueError(f"{who} {dict(spec)!r}: the key 'name' is missing; give one of {', '.join(names)}")
    return kind(**spec)
