"""Trying what may raise for one unit of work and not for the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

LONGEST = 500  # characters of a reason
T = TypeVar("T")


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `work` returns, or in words why it raised; memory that it held on the GPU is free again.

    An error that leaves the GPU's context useless is no unit's own, and is raised.
    """
    try:
        return work(), None
    except torch.AcceleratorError:
        raise
    except Exception as error:  # whatever a model or a reward may raise: the words say what it was
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."
