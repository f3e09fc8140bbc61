"""Neighbour measures over Ray tiles at a size that one process should not hold: time, CPU and the driver's memory.

python -m benchmarks.tiles 100000
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import ray

from benchmarks.metrics import NEIGHBOURS, D, resident
from pipelines.cluster.connect import connected
from pipelines.config import Ray
from pipelines.measure.feature_file import FeatureFile
from pipelines.measure.tiles import Tiles

TILE, SAMPLE = 5_000, 32


def write(path: Path, n: int) -> FeatureFile:
    """Two arms of n rows, as in `benchmarks.metrics`, float32, a block at a time."""
    rng, scale = np.random.default_rng(0), np.geomspace(2, 0.05, D)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (2, n, 1, D))
    for arm, (factor, shift) in enumerate(((1.0, 0.0), (0.97, 0.02))):
        for start in range(0, n, TILE):
            rows = rng.normal(size=(min(TILE, n - start), D)) * scale * factor + shift
            file[arm, start : start + len(rows), 0] = rows
    del file
    return FeatureFile(path)


def direct(features: FeatureFile, n: int, row: int) -> np.ndarray:
    """Squared distances (n,) of one of the first arm's rows to all of it, by differences in float64."""
    own = features.rows(0, row, row + 1).astype(np.float64)
    blocks = (features.rows(0, start, min(start + TILE, n)) for start in range(0, n, TILE))
    return np.concatenate([((block - own) ** 2).sum(-1) for block in blocks])


def cpu_seconds() -> float:
    """Of this process and all below it that live."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def measure(n: int) -> None:
    """Print what precision, recall, density and coverage of n rows against n cost, and check some radii."""
    with tempfile.TemporaryDirectory() as folder, connected(Ray(address="local", num_cpus=2)):
        features = write(Path(folder) / "features.npy", n)
        tiles = Tiles(features, n, NEIGHBOURS, TILE)
        ray.get(ray.remote(lambda: None).remote())
        used, begun, before = cpu_seconds(), time.monotonic(), resident("VmRSS")
        radii = tiles.radii(0)
        scores = tiles.scores(0, 1, radii)
        wall, used = time.monotonic() - begun, cpu_seconds() - used
        print(
            f"precision, recall, density, coverage of {n:,} rows against {n:,}, d = {D}, in tiles of {TILE:,}, 2 CPUs"
        )
        peak = resident("VmHWM") - before
        print(f"  {wall:.0f} s, {used:.0f} s of CPU; the driver's peak {peak:.0f} MB above its start")
        print("  " + ", ".join(f"{name} {value:.4f}" for name, value in scores._asdict().items()))
        rows = np.random.default_rng(1).choice(n, SAMPLE, replace=False)
        # Its own row is the nearest of all.
        nearest = [np.partition(direct(features, n, row), NEIGHBOURS)[NEIGHBOURS] for row in rows]
        error = np.abs(radii.numpy()[rows] / nearest - 1).max()
        print(f"  {SAMPLE} radii against direct differences in float64: largest relative difference {error:.1e}")


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
