"""Locks between the processes of one machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO


def take(path: Path) -> TextIO | None:
    """The open file of a lock, which holds it until it is closed; None where another process has the lock.

    The file is made where there is none; its folder has to be there. Its holder may remove it.
    """
    while True:
        file = path.open("a")  # "w" would change the time of a file that another process holds
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(path)
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            there = None
        if there is not None and os.path.samestat(there, os.fstat(file.fileno())):
            return file
        file.close()  # its holder has removed it since it was opened: a lock on it keeps nobody out
