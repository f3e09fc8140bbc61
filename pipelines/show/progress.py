"""The progress of trainings: one line each, redrawn in a terminal, appended now and then to a log."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REDRAW_SECONDS = 1.0
REFRESH_SECONDS = 15.0
LOG_SECONDS = 60.0


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def training_line(key: str, status: dict[str, Any], width: int = 0) -> str:
    """One training: step, rate, time left, loss and reward of the last step, and what the last validation measured."""
    step, steps = status["step"], status["steps"]
    line = f"{key:<{width}}  {step:>{len(str(steps))}}/{steps}"
    rate, batch = status.get("rate"), status.get("batch")
    if rate:
        line += f"  {rate:.2f} s/step" + (f" ({batch / rate:.3g} images/s)" if batch else "")
        line += f"  {duration(rate * (steps - step))} left"
    distance = "kl_to_base" if status.get("kl_to_base") is not None else "path"
    shown = {"loss": "8.3f", "reward": "7.3f", "held_out": "7.3f", distance: "8.2g", "diversity": "5.2f"}
    for name, form in shown.items():
        if status.get(name) is not None:
            line += f"  {NAMES.get(name, name)} {status[name]:{form}}{' nats' if name == 'kl_to_base' else ''}"
    if status.get("skipped"):
        line += f"  {status['skipped']:g} images skipped"
    return line + (f"  {status['stopped']}" if status.get("stopped") else "")


NAMES = {"kl_to_base": "KL", "held_out": "held-out"}


@contextmanager
def trainings(folder: Path, keys: list[str], refresh: Callable[[], object] | None = None) -> Iterator[None]:
    """Show the status files `folder/<key>.json`, which training workers write, within the context.

    `refresh` fetches the files of workers elsewhere; it is called every `REFRESH_SECONDS`.
    """
    stop = threading.Event()
    screen = Screen(folder, keys) if sys.stderr.isatty() else Log(folder, keys)
    thread = threading.Thread(target=_show, args=(screen, stop, refresh), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(view: Screen | Log, stop: threading.Event, refresh: Callable[[], object] | None) -> None:
    ended, pulled = False, time.monotonic()
    while not ended:
        ended = stop.wait(REDRAW_SECONDS)
        if ended or time.monotonic() - pulled >= REFRESH_SECONDS:
            if refresh is not None:
                refresh()
            pulled = time.monotonic()
        view.show(ended)


class Statuses:
    """The status files of some trainings, ignoring those that an earlier command left."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self.paths = {key: folder / f"{key}.json" for key in keys}
        self.width = max(map(len, keys), default=0)
        self.stale = {key: status for key, path in self.paths.items() if (status := _read(path))}
        self.warned: set[tuple[str, str]] = set()

    def read(self) -> dict[str, dict[str, Any]]:
        statuses = {key: _read(path) for key, path in self.paths.items()}
        return {key: status for key, status in statuses.items() if status and status != self.stale.get(key)}

    def warn(self, statuses: dict[str, dict[str, Any]]) -> bool:
        """Write the trainings' warnings, each once; return whether there was a new one."""
        every = [(key, text) for key, status in statuses.items() for text in status.get("warnings", ())]
        new = [warning for warning in dict.fromkeys(every) if warning not in self.warned]
        sys.stderr.write("".join(f"warning: {key}: {text}\n" for key, text in new))
        self.warned.update(new)
        return bool(new)


class Screen(Statuses):
    """A terminal: one line per training, redrawn in place."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        super().__init__(folder, keys)
        self.drawn = 0

    def show(self, ended: bool) -> None:
        columns, statuses = shutil.get_terminal_size().columns, self.read()
        if self.warn(statuses):
            self.drawn = 0
        lines = [training_line(key, status, self.width)[: columns - 1] for key, status in statuses.items()]
        # Move back to the first drawn line, and clear each as it is redrawn.
        sys.stderr.write(f"\x1b[{self.drawn}F" * bool(self.drawn) + "".join(f"\x1b[2K{line}\n" for line in lines))
        sys.stderr.flush()
        self.drawn = len(lines)


class Log(Statuses):
    """A file: a line per training as it begins, at each validation, every `LOG_SECONDS` between, and at its end."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        super().__init__(folder, keys)
        self.written: dict[str, tuple[float, dict[str, Any]]] = {}

    def show(self, ended: bool) -> None:
        now, statuses = time.monotonic(), self.read()
        self.warn(statuses)
        for key, status in statuses.items():
            before, last = self.written.get(key, (-math.inf, {}))
            news = any(status.get(name) != last.get(name) for name in ("validated", "stopped"))
            if status != last and (ended or news or now - before >= LOG_SECONDS):
                sys.stderr.write(f"{training_line(key, status, self.width)}\n")
                self.written[key] = (now, status)
        sys.stderr.flush()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


@contextmanager
def stage(name: str, times: dict[str, float]) -> Iterator[None]:
    """Print the start and the duration of a stage, and record its seconds in `times`."""
    print(f"== {name}", flush=True)
    begun = time.monotonic()
    yield
    times[name] = time.monotonic() - begun
    print(f"== {name}: {duration(times[name])}", flush=True)
