"""Commands watched from outside: CPU time, by kind, and memory of all their processes, against the files they leave."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.1
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    wall: float
    whole: float
    """CPU seconds of all its processes."""
    steady: float
    """CPU seconds an item between the first and the last file; NaN where there is one file."""
    by_kind: dict[str, float]
    """The same, by kind of process."""
    finished: float
    """CPU seconds of all processes until the last file."""
    own: float
    """The most MB that all processes together held for themselves."""
    resident: float
    """The same with what they share with others or have mapped, whose pages the kernel keeps while there is room."""

    def costliest(self, most: int) -> str:
        """The kinds that cost most, with their CPU seconds an item."""
        top = sorted(self.by_kind.items(), key=lambda item: -item[1])[:most]
        return ", ".join(f"{kind} {each:.4f}" for kind, each in top)


def watch(
    command: list[str], place: Path, pattern: str, most: int, each: int = 1, pause: float = SAMPLE_SECONDS
) -> Usage:
    """Run a command; sample its processes' CPU time and what it has finished: files of a pattern, `each` items a file,
    `most` in all.

    `pause` lies between two samples, in seconds. At a tenth of a second the sampling itself takes some 5 % of a core.
    """
    begun, own, resident = time.monotonic(), 0, 0
    kinds: dict[tuple[int, float], str] = {}
    seconds: dict[tuple[int, float], float] = {}
    marks: dict[int, dict[tuple[int, float], float]] = {}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        family, running = psutil.Process(process.pid), True
        while running:
            running, held = process.poll() is None, []
            for member in members(family):
                with suppress(psutil.NoSuchProcess):  # it ended meanwhile; what it had used is in the sum
                    times = member.cpu_times()
                    key = member.pid, member.create_time()
                    kinds[key] = kind_of(member)
                    seconds[key] = times.user + times.system
                    held.append(member.memory_info())
            own = max(own, sum(info.rss - info.shared for info in held))
            resident = max(resident, sum(info.rss for info in held))
            done = min(most, each * len(list(place.glob(pattern))))
            marks.setdefault(done, dict(seconds))
            time.sleep(pause if running else 0)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{said.read()}")
    first, last = min(done for done in marks if done), max(marks)
    items = last - first or math.nan
    by_kind: Counter[str] = Counter()
    for key, amount in marks[last].items():  # by what it is in the end: an idle worker of Ray's becomes an actor
        by_kind[kinds[key]] += (amount - marks[first].get(key, 0.0)) / items
    finished = sum(marks[last].values())
    wall, whole, steady = time.monotonic() - begun, sum(seconds.values()), sum(by_kind.values())
    return Usage(wall, whole, steady, dict(by_kind), finished, own / 1e6, resident / 1e6)


def members(family: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started; none once it has ended."""
    try:
        return [family, *family.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kind_of(process: psutil.Process) -> str:
    """What a process is to the command: itself, one of Ray's by its task or actor, or another by its program."""
    title = " ".join(process.cmdline())
    if title.startswith("ray::"):  # an actor's title ends in the method that it is in
        return title.split("(")[0].split()[0].removeprefix("ray::").split(".")[0]
    if "-m pipelines" in title or "-m benchmarks" in title:
        return "command"
    script = next((part for part in process.cmdline() if part.endswith(".py")), process.name())
    return Path(script).stem
