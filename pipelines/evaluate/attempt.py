"""Work that may fail for one unit and not for the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

LONGEST = 500  # characters of a reason
T = TypeVar("T")


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `work` returns, or why it raised, in words; the GPU memory that it held is freed.

    An error that spoils the GPU's context is raised: the next unit would fail too.
    """
    try:
        return work(), None
    except torch.AcceleratorError:
        raise
    except Exception as error:  # a model or a reward may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."
