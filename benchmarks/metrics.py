"""Neighbour measures against prdc, and moments of a stream: CPU time, and the peak memory of a fresh process each.

python -m benchmarks metrics
python -m benchmarks.metrics ours 20000    # one measurement, as a line of JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aig.metrics import Moments, neighbour_scores

D, NEIGHBOURS = 512, 5
ROWS, BATCH, WIDTH = 1_000_000, 16_384, 768
ROUNDS = {5_000: 3, 20_000: 1}


def sets(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets (n, 512), float64, with a decaying spectrum and slightly different means and scales."""
    rng, scale = np.random.default_rng(0), np.geomspace(2, 0.05, D)
    return rng.normal(size=(n, D)) * scale, rng.normal(size=(n, D)) * scale * 0.97 + 0.02


def ours(n: int) -> dict[str, Any]:
    """Seconds of CPU of `neighbour_scores`, and its scores."""
    ref, gen = sets(n)
    begun = time.process_time()
    scores = neighbour_scores(ref, gen, NEIGHBOURS)
    return {"seconds": time.process_time() - begun, "scores": list(scores)}


def theirs(n: int) -> dict[str, Any]:
    """Seconds of CPU, over all its threads, of prdc, and its scores."""
    import prdc  # here, so that its libraries do not count as memory of the others

    ref, gen = sets(n)
    begun = time.process_time()
    with contextlib.redirect_stdout(None):
        scores = prdc.compute_prdc(ref, gen, NEIGHBOURS)
    return {"seconds": time.process_time() - begun, "scores": [float(value) for value in scores.values()]}


def moments(n: int) -> dict[str, Any]:
    """Seconds of CPU to update `Moments` with n rows (n, 768), float32, a batch at a time, and the memory before."""
    rng, batch = np.random.default_rng(0), np.zeros((min(BATCH, n), WIDTH), np.float32)
    rng.standard_normal(out=batch, dtype=np.float32)
    Moments.of(batch[:64])  # the libraries' own pages are no memory of the stream
    before, stream, seconds = resident("VmRSS"), Moments(), 0.0
    for start in range(0, n, len(batch)):
        rng.standard_normal(out=batch, dtype=np.float32)
        begun = time.process_time()
        stream.update(batch[: n - start])
        seconds += time.process_time() - begun
    return {"seconds": seconds, "rows": stream.n, "trace": float(np.trace(stream.covariance())), "before": before}


MEASUREMENTS: dict[str, Callable[[int], dict[str, Any]]] = {"ours": ours, "prdc": theirs, "moments": moments}


def resident(what: str) -> float:
    """MB of this process, VmRSS now, VmHWM at its peak (getrusage gives the parent's where higher)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024 / 1e6


def in_a_fresh_process(what: str, n: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.metrics", what, str(n)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def metrics(device: str) -> None:
    """The tables of this file."""
    if device != "cpu" or not Path("/proc/self/status").exists():
        print("\nmetrics: on the CPU of a Linux machine only")
        return
    for n, rounds in ROUNDS.items():
        _neighbours(n, rounds)
    found = in_a_fresh_process("moments", ROWS)
    batch = BATCH * WIDTH * 4 / 1e6
    print(f"\nmoments of {found['rows']:,} x {WIDTH} float32 rows, {BATCH:,} ({batch:.0f} MB) at a time")
    print(f"  {found['seconds']:.1f} s of CPU, peak {found['peak'] - found['before']:.0f} MB above imports and batch")


def _neighbours(n: int, rounds: int) -> None:
    needed = 3 * 8 * n**2 / 1e9  # prdc holds distances, a partitioned copy and indices of n x n
    free = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024 / 1e9
    names = ["ours", "prdc"] if free > needed else ["ours"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(in_a_fresh_process(name, n))
    print(f"\nprecision, recall, density, coverage, n = {n:,}, d = {D}, k = {NEIGHBOURS}, {rounds} rounds in turns")
    print(f"  {'':<34}{'CPU s':>9}{'peak MB':>12}{'time ratio':>12}")
    for name, rows in found.items():
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(rows, found["ours"], strict=True))
        seconds, peak = (statistics.median(row[key] for row in rows) for key in ("seconds", "peak"))
        print(f"  {name:<34}{seconds:>9.2f}{peak:>12.0f}{ratio:>12.2f}")
    if "prdc" not in found:
        print(f"  prdc is left out: it needs about {needed:.0f} GB, {free:.0f} are free")
    elif np.allclose(found["ours"][0]["scores"], found["prdc"][0]["scores"], rtol=1e-12, atol=0):
        print("  the same scores: " + ", ".join(f"{value:.4f}" for value in found["ours"][0]["scores"]))
    else:
        print(f"  DIFFERENT SCORES: {found['ours'][0]['scores']} and {found['prdc'][0]['scores']}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = MEASUREMENTS[sys.argv[1]](int(sys.argv[2]))
    print(json.dumps({**result, "peak": resident("VmHWM")}))
