"""Conversion of written values, from YAML or the command line, to the types of the fields."""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from pipelines.config.errors import ConfigError


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known name most like this one; empty if none is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        # A key without its section: the section is what is missing.
        close = [key for key in known if key.partition(".")[2] == name][:1]
    return f"; did you mean {close[0]!r}?" if close else ""


def coerce(key: str, value: Any, hint: Any) -> Any:
    """Convert a value to the field's type without loss; ConfigError names the types that fit."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for option in options:
        try:
            return _as_type(value, option)
        except TypeError:
            continue
    raise ConfigError(f"{key} is {value!r}: give {' or '.join(_type_name(option) for option in options)}")


def _as_type(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return tuple(_as_type(single, typing.get_args(kind)[0]) for single in value)
    if typing.get_origin(kind) is dict:
        kind = dict
    if kind is float or kind is int:
        return _as_number(value, kind)
    if kind == str | float:
        return value if isinstance(value, str) else _as_number(value, float)
    if not isinstance(value, kind):
        raise TypeError
    return value


def _as_number(value: Any, kind: type) -> Any:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            raise TypeError from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    if kind is int and value != int(value if math.isfinite(value) else 0):
        raise TypeError
    return kind(value)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return {
            int: "a list of whole numbers, as in [1, 2]", float: "a list of numbers, as in [1, 2]",
            str: "a list of texts, as in [a, b]", str | float: "a list of numbers and texts, as in [1, a]",
        }[typing.get_args(kind)[0]]  # fmt: skip
    if typing.get_origin(kind) is dict:
        return "a mapping, as in {name: ...}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}[kind]


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def slug(name: str) -> str:
    """A reward's name as a file name and a column name may hold it."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)
