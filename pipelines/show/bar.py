"""The progress of drawing images and other long work: a line redrawn in a terminal, repeated in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from pipelines.show.progress import duration

REDRAW_SECONDS, LOG_SECONDS = 0.5, 15.0
RECENT = 64  # arrivals that rates are taken from
CLEAR = "\x1b[K"  # the rest of the line


class Bar:
    """Counts images, for several arms at once if given, and predictions.

    total: images in all. done: how many were there before. unit: what is counted, if not images. Rates and the time
    left are those of the latest arrivals. `note` is appended to the line.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
        arms: int = 0,
        unit: str = "images",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.images, self.arms, self.failed = what, total, done, arms, 0
        self.unit, self.note = unit, ""
        self.out, self.clock = out or sys.stderr, clock
        self.terminal = self.out.isatty()
        self.predictions = 0.0
        # From the first arrival on: before it, actors load their models.
        self.counts: deque[tuple[float, int, float]] = deque(maxlen=RECENT)
        self.drawn = clock()

    def add(self, images: int, predictions: float = 0.0, failed: int = 0) -> None:
        """Count images that were made, predictions that they took, and groups that failed."""
        self.images, self.predictions, self.failed = (
            self.images + images, self.predictions + predictions, self.failed + failed,
        )  # fmt: skip
        now = self.clock()
        self.counts.append((now, self.images, self.predictions))
        if now - self.drawn >= (REDRAW_SECONDS if self.terminal else LOG_SECONDS):
            self.drawn = now
            self._write(self.line())

    def spare(self, images: int) -> None:
        """Count images that need not be made; the rate ignores them."""
        self.images += images
        moved = [(when, count + images, predictions) for when, count, predictions in self.counts]
        self.counts = deque(moved, maxlen=RECENT)

    def close(self) -> None:
        """Write the last line."""
        self._write(self.line())
        if self.terminal:
            self.out.write("\n")
            self.out.flush()

    def line(self) -> str:
        """As in: images 40/128 (31 %), 2.1 images/s, 61 predictions/s, 0:42 left, 5 arms with 8 of 26 images each."""
        share = 100 * self.images / self.total if self.total else 100
        parts = [f"{self.what} {self.images}/{self.total} ({share:.0f} %)"]
        parts += self._rates()
        if self.arms:
            parts.append(f"{self.arms} arms with {self.images // self.arms} of {self.total // self.arms} images each")
        if self.failed:
            parts.append(f"{self.failed} groups failed")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    def _rates(self) -> list[str]:
        if len(self.counts) < 2:
            return []
        (begun, first, before), (now, images, predictions) = self.counts[0], self.counts[-1]
        if images == first or now == begun:
            return []
        rate = (images - first) / (now - begun)
        parts = [f"{rate:.3g} {self.unit}/s"]
        if predictions > before:
            parts.append(f"{(predictions - before) / (now - begun):.3g} predictions/s")
        if self.images < self.total:
            parts.append(f"{duration((self.total - self.images) / rate)} left")
        return parts

    def _write(self, line: str) -> None:
        if self.terminal:
            width = shutil.get_terminal_size((120, 24)).columns
            self.out.write(f"\r{line[: width - 1]}{CLEAR}")
        else:
            self.out.write(f"{line}\n")
        self.out.flush()
