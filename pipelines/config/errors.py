"""Errors that a user sees as one line: bad input and failed runs. Any other error is a bug of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """The configuration or the run directory that it names is wrong; the message is one line that names the fix."""


class RunError(RuntimeError):
    """A run or a part of it failed, through no fault of its configuration or of the program; one line."""


@contextmanager
def given(key: str = "") -> Iterator[None]:
    """Raise a library's ValueError as a ConfigError, with the key before its message if there is one.

    Put it around no more than the call that tries out the user's input: a bug of ours may raise ValueError too.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}" if key else str(error)) from error
