"""What is told to the user in one line: bad input, and what a run may come to. Every other error is a bug of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """The configuration, or the run directory that it names, is wrong; the message is one line that names the fix."""


class RunError(RuntimeError):
    """A run, or a part of it, has failed, and neither its configuration nor the program is at fault; one line."""


@contextmanager
def given(key: str = "") -> Iterator[None]:
    """For where what the user gave is tried out: what a library says of it is a ConfigError, after the key if any.

    A library raises ValueError for bad input, and a bug does, too. So this stands around no more than the trying.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}" if key else str(error)) from error
