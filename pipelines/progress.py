"""Progress that a person can read: one line a training, redrawn in a terminal, written now and then into a log."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REDRAW_SECONDS = 1.0
LOG_SECONDS = 15.0


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def training_line(key: str, status: dict[str, Any], width: int = 0) -> str:
    """Step, rate, time left, loss, reward, path length to the base and diversity of one training."""
    step, steps = status["step"], status["steps"]
    line = f"{key:<{width}}  {step:>{len(str(steps))}}/{steps}"
    if status.get("rate"):
        line += f"  {status['rate']:.2f} s/step  {duration(status['rate'] * (steps - step))} left"
    for name, form in (("loss", "8.3f"), ("reward", "7.3f"), ("path", "8.2g"), ("diversity", "5.2f")):
        if status.get(name) is not None:
            line += f"  {name} {status[name]:{form}}"
    return line


@contextmanager
def trainings(folder: Path, keys: list[str]) -> Iterator[None]:
    """Show the status files `folder/<key>.json`, which the training workers write, for the length of the context."""
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(folder, keys, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(folder: Path, keys: list[str], stop: threading.Event) -> None:
    terminal = sys.stderr.isatty()
    width = max(map(len, keys), default=0)
    shown: dict[str, str] = {}
    warned: set[tuple[str, str]] = set()
    drawn = 0
    while True:
        ended = stop.wait(REDRAW_SECONDS if terminal else LOG_SECONDS)
        found = {key: status for key in keys if (status := _read(folder / f"{key}.json"))}
        lines = {key: training_line(key, status, width) for key, status in found.items()}
        for key, status in found.items():
            for warning in status.get("warnings", ()):
                if (key, warning) not in warned:
                    warned.add((key, warning))
                    sys.stderr.write(f"warning: {key}: {warning}\n")
                    drawn = 0
        if terminal:
            # Back to the first of the lines that were drawn, and clear each as it is drawn anew.
            sys.stderr.write(f"\x1b[{drawn}F" * bool(drawn) + "".join(f"\x1b[2K{line}\n" for line in lines.values()))
            drawn = len(lines)
        else:
            sys.stderr.write("".join(f"{line}\n" for key, line in lines.items() if shown.get(key) != line))
        sys.stderr.flush()
        shown = lines
        if ended:
            return


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


class StatusFile:
    """A training worker's side: the status, written at most once a second and replaced whole."""

    def __init__(self, path: Path, **values: Any) -> None:
        self.path = path
        self.values = values
        self.written = 0.0

    def update(self, values: dict[str, Any], force: bool = False) -> None:
        self.values |= values
        if not force and time.monotonic() - self.written < REDRAW_SECONDS:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(self.values))
        part.replace(self.path)
        self.written = time.monotonic()


def root_cause(error: BaseException) -> str:
    """The last error named in a message that tells of others, as Ray's do, tracebacks and all; on one line."""
    lines = str(error).strip().splitlines()
    named = [i for i, line in enumerate(lines) if re.match(r"\s*[\w.]+(Error|Exception|Interrupt|Exit)\b.*:", line)]
    text = " ".join(" ".join(lines[named[-1] if named else 0 :]).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:250]} ... {text[-250:]}"


@contextmanager
def stage(name: str, times: dict[str, float]) -> Iterator[None]:
    """Print that a stage begins and how long it took, and keep its seconds in `times`."""
    print(f"== {name}", flush=True)
    begun = time.monotonic()
    yield
    times[name] = time.monotonic() - begun
    print(f"== {name}: {duration(times[name])}", flush=True)
