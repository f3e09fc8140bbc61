"""Commands watched from outside: the CPU time of all their processes, by kind, against the files that they leave."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
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
    """CPU seconds an item between the first and the last file."""
    by_kind: dict[str, float]
    """The same, by kind of process."""
    finished: float
    """CPU seconds of all processes until the last file."""


def watch(command: list[str], place: Path, pattern: str, most: int, each: int = 1) -> Usage:
    """Run a command; sample its processes' CPU time and what it has finished: files of a pattern, `each` items a file,
    `most` in all."""
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    family = psutil.Process(process.pid)
    kinds: dict[tuple[int, float], str] = {}
    seconds: dict[tuple[int, float], float] = {}
    marks: dict[int, Counter[str]] = {}
    while process.poll() is None:
        try:
            for member in [family, *family.children(recursive=True)]:
                times = member.cpu_times()
                key = member.pid, member.create_time()
                kinds[key] = kind_of(member)
                seconds[key] = times.user + times.system
        except psutil.NoSuchProcess:  # it ended meanwhile; what it had used is in the sum
            pass
        done = min(most, each * len(list(place.glob(pattern))))
        used: Counter[str] = Counter()
        for key, amount in seconds.items():
            used[kinds[key]] += amount
        marks.setdefault(done, used)
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stdout.read() if process.stdout else ''}")
    first, last = min(done for done in marks if done), max(marks)
    by_kind = {kind: (marks[last][kind] - marks[first][kind]) / (last - first) for kind in marks[last]}
    finished = sum(marks[last].values())
    return Usage(time.monotonic() - begun, sum(seconds.values()), sum(by_kind.values()), by_kind, finished)


def kind_of(process: psutil.Process) -> str:
    """What a process is to the command: itself, one of Ray's workers by what it does, or another by its program."""
    title = " ".join(process.cmdline())
    if title.startswith("ray::"):
        return title.split("(")[0].split()[0].removeprefix("ray::")
    if "-m pipelines" in title or "-m benchmarks" in title:
        return "command"
    script = next((part for part in process.cmdline() if part.endswith(".py")), process.name())
    return Path(script).stem
