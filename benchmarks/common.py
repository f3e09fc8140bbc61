"""What the benchmarks share: a clock, comparisons in turns, and the memory that a gradient costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 5


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def compare(
    title: str, unit: str, runs: dict[str, tuple[Callable[[], object], float]], device: str, rounds: int = ROUNDS
) -> None:
    """Time each run in turns; print units per second of its median and the median over rounds of its time over the
    first's."""
    for run, _ in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (run, _) in runs.items():
            begun = clock(device)
            run()
            times[name].append(clock(device) - begun)
    first = next(iter(runs))
    print(f"\n{title}\n  {'':<34}{'seconds':>9}{unit + '/s':>12}{'time ratio':>12}")
    for name, (_, count) in runs.items():
        median = statistics.median(times[name])
        ratio = statistics.median(t / f for t, f in zip(times[name], times[first], strict=True))
        print(f"  {name:<34}{median:>9.3f}{count / median:>12.1f}{ratio:>12.3f}")


def saved_for_backward(run: Callable[[], object]) -> float:
    """The most MiB of distinct tensor storage that autograd holds at once during `run`: the memory that a gradient
    costs."""
    alive: dict[int, tuple[int, int]] = {}
    peak = total = 0

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal peak, total
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            size, count = alive.get(self.key, (tensor.untyped_storage().nbytes(), 0))
            total += size if count == 0 else 0
            alive[self.key] = (size, count + 1)
            peak = max(peak, total)

        def __del__(self) -> None:
            nonlocal total
            size, count = alive[self.key]
            alive[self.key] = (size, count - 1)
            total -= size if count == 1 else 0

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        run()
    return peak / 2**20
