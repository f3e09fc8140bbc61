"""The progress of a sampling run, read from its diffusers scheduler: the step i of T, and a schedule's weight there.

A scheduler's `timesteps` has one entry per denoiser call, for most schedulers one per step. Second-order schedulers
call twice per step, and both calls of a step share its weight:

    DDIM, Euler, DPM-Solver++, UniPC, LCM, flow matching  entry n is step n
    Heun, KDPM2, DPM-SDE, flow-matching Heun              entries 2i and 2i + 1 are step i
    PNDM                                                  entry 1 redoes step 0, entry n > 0 is step n - 1

T counts the steps of the scheduler's whole grid, so a run that begins late (image-to-image with strength < 1, SDXL's
`denoising_start`) sees the late weights. A schedule over the `time` domain reads each entry's own time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from aig import schedules
from aig.schedules import Curve, Schedule

PRK_CALLS = 4  # per Runge-Kutta step of PNDM's warm-up
F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Keep a function out of torch.compile, which would compile the denoiser again at every step."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


def followed(curve: Curve) -> Schedule:
    """The schedule of `curve`; ValueError for one whose weights the progress alone does not give."""
    schedule = schedules.as_schedule(curve)
    if schedule.coin:
        raise ValueError(
            f"schedule {schedule.name!r} draws from each image's own seed, which a pipeline does not tell its "
            "denoiser: sample it with aig.sample_arms"
        )
    if schedule.fit is not None:
        raise ValueError(
            f"schedule {schedule.name!r} has no weight yet: it follows from the adapter's path length; give "
            "aig.schedules.fitted(schedule, length) with the length of aig.sampler.tuned_length"
        )
    return schedule


def steps(scheduler: Any) -> list[int]:
    """The sampling step of each entry of `scheduler.timesteps`; T is the last one plus 1."""
    n = len(scheduler.timesteps)
    if hasattr(scheduler, "prk_timesteps"):  # PNDM
        prk = len(scheduler.prk_timesteps)
        if prk == 0:
            return [max(k - 1, 0) for k in range(n)]
        return [k // PRK_CALLS if k < prk else k - prk + prk // PRK_CALLS for k in range(n)]
    return [k // getattr(scheduler, "order", 1) for k in range(n)]


def weights(schedule: Schedule, scheduler: Any) -> list[float]:
    """The weight at each entry of `scheduler.timesteps`."""
    if schedule.domain == "time":
        return schedules.weights(schedule, scheduler.timesteps.tolist(), scheduler.config.num_train_timesteps)
    of = steps(scheduler)
    per_step = schedules.weights(schedule, range(of[-1] + 1), 1.0)
    return [per_step[i] for i in of]


class Clock:
    """Follows a scheduler, or a pipeline's current scheduler at each call."""

    def __init__(self, source: Any) -> None:
        if source is None or not (hasattr(source, "scheduler") or hasattr(source, "timesteps")):
            raise ValueError(
                f"scheduler = {type(source).__name__} has no timesteps; give scheduler=pipe, the pipeline that samples "
                "(its scheduler may change later), or a diffusers scheduler"
            )
        self._pipe: ReferenceType[Any] | None = ref(source) if hasattr(source, "scheduler") else None
        self._scheduler = source.scheduler if hasattr(source, "scheduler") else source
        self._grid: tuple[Tensor, Schedule, list[float], list[float]] | None = None
        self._late = False  # PNDM counts from the run's start, which it does not reveal

    @property
    def scheduler(self) -> Any:
        # A pipeline made from another by from_pipe shares its scheduler, and often outlives it.
        pipe = self._pipe() if self._pipe is not None else None
        if pipe is not None:
            self._scheduler = pipe.scheduler
        return self._scheduler

    @eager
    def weight(self, schedule: Schedule, t: Tensor | float) -> float:
        """The weight of the tuned model at this denoiser call; ValueError if the scheduler is not the run's own."""
        scheduler = self.scheduler
        if self._grid is None or self._grid[0] is not scheduler.timesteps or self._grid[1] is not schedule:
            times = scheduler.timesteps.tolist()
            self._grid = (scheduler.timesteps, schedule, times, weights(schedule, scheduler))
        _, _, times, levels = self._grid
        return levels[self._entry(scheduler, times, float(t.flatten()[0] if isinstance(t, Tensor) else t))]

    def _entry(self, scheduler: Any, times: list[float], t: float) -> int:
        """The entry of `times` that this call is for."""
        if getattr(scheduler, "num_inference_steps", 0) is None:
            raise ValueError(_astray(scheduler, t, "has not begun to sample"))
        n = getattr(scheduler, "step_index", None)
        n = getattr(scheduler, "begin_index", None) if n is None else n
        if n is None:
            n = self._find(scheduler, times, t)
        if n >= len(times):
            raise ValueError(_astray(scheduler, t, "has finished"))
        t_max = scheduler.config.num_train_timesteps
        if not (_close(t, times[n]) or _close(t * t_max, times[n])):  # Flux is called with t / t_max
            raise ValueError(_astray(scheduler, t, f"stands at {times[n]:g}"))
        return n

    def _find(self, scheduler: Any, times: list[float], t: float) -> int:
        """The entry at time t, for schedulers that have no index, or not yet."""
        nearest = min(times, key=lambda time: abs(time - t))
        if not _close(t, nearest):
            nearest = min(times, key=lambda time: abs(time - t * scheduler.config.num_train_timesteps))
        last = [n for n, time in enumerate(times) if time == nearest][:2][-1]  # diffusers begins at the second of two
        calls = getattr(scheduler, "counter", None)
        if calls is None or calls >= len(times):
            return last
        if calls == 0:
            self._late = times[0] != nearest
        return last if self._late else calls


def _close(t: float, time: float) -> bool:
    # bfloat16 rounds by up to 0.4 %.
    return math.isclose(t, time, rel_tol=0.01, abs_tol=0.01)


def _astray(scheduler: Any, t: float, state: str) -> str:
    return (
        f"the denoiser is called at time {t:g}, but {type(scheduler).__name__}, which it follows, {state}: the run "
        "has another scheduler; call aig.annealed(pipe, schedule) on the pipeline that runs, after its scheduler is set"
    )
