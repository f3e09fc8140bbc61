"""A training worker's pace, and the status file that others read."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

from pipelines.runs import files
from pipelines.runs.directory import PUSH_SECONDS, RunDir
from pipelines.show.progress import REDRAW_SECONDS

PACE_STEPS = 100


class Pace:
    """The speed of a training, with its validations and checkpoints."""

    def __init__(self) -> None:
        self.made: deque[tuple[int, float]] = deque(maxlen=PACE_STEPS + 1)

    def stepped(self, step: int) -> None:
        """Note that step `step` has just been made, or that the training begins there."""
        self.made.append((step, time.monotonic()))

    @property
    def rate(self) -> float | None:
        """Seconds per step over the last ones, if possible without the first after a start, which compiles."""
        first, last = self.made[min(1, max(0, len(self.made) - 2))], self.made[-1]
        return (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else None


class StatusFile:
    """A training's status, written whole, at most once a second."""

    def __init__(self, run: RunDir, path: Path, **values: Any) -> None:
        self.run, self.path = run, path
        self.values = values
        self.written = self.pushed = 0.0

    def update(self, values: dict[str, Any], force: bool = False) -> None:
        self.values |= values
        if not force and time.monotonic() - self.written < REDRAW_SECONDS:
            return
        with files.whole(self.path) as part:
            part.write_text(json.dumps(self.values))
        self.written = time.monotonic()
        if force or self.written - self.pushed >= PUSH_SECONDS:
            self.run.push(self.path)
            self.pushed = self.written
