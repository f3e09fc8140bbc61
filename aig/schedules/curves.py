"""The curves: a schedule is the weight of the tuned model as a pure function of sampling progress."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from aig import digests

DOMAINS = ("step", "time")
MOST = 64.0
"""The largest weight: far beyond what any adapter has been seen to bear."""
REACH = 0.25
"""The weight of a path length of 1 that `auto` reaches: W = REACH / length (docs/method.md has the measurements)."""


@dataclass(frozen=True)
class Schedule:
    """A named curve: a pure function from progress u in [0, 1] to the weight of the tuned model in [0, 64].

    Weights up to 1 interpolate between base and tuned model. Weight w acts like the KL weight divided by w, so weights
    above 1 go beyond the tuned model (arXiv 2508.21016). Calling it raises ValueError for a progress outside [0, 1], a
    weight outside [0, 64] (a coin's: [0, 1]), and for a curve that still has to be fitted.

    Examples:
        >>> Schedule("late", lambda u: max(0.0, 2 * u - 1))(0.75)
        0.5
    """

    name: str
    """The text that `parse` reads."""
    weight: Callable[..., float]
    domain: str = "step"
    """What progress is: "step" (u = i/T, the published form) or "time" (u = 1 - t/t_max)."""
    label: str | None = None
    """A person's name for the curve; it changes nothing."""
    digest: str | None = None
    """A hash of the curve's values if a function of the user's decides them; None if the name alone does."""
    to_last: bool = False
    """Whether `weight` also takes the last step's progress, which the curve is drawn up to."""
    coin: bool = False
    """Whether the weight is the probability of the tuned model, one model a step, and not a mix."""
    fit: Callable[[float], Schedule] | None = None
    """The curve for a weight that is found from the adapter: see `fitted`. None for one that is complete."""

    def __call__(self, u: float, last: float = 1.0) -> float:
        """The weight at progress u of a run whose last step is at progress `last`."""
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"progress u = {u} of schedule {self.name!r} is outside [0, 1]; u is i/T at step i of T")
        w = float(self.weight(u, last) if self.to_last else self.weight(u))
        most = 1.0 if self.coin else MOST
        if not 0.0 <= w <= most:
            raise ValueError(f"schedule {self.name!r} gave weight {w} at u = {u}; weights lie in [0, {most:g}]")
        return w


Curve = str | Schedule | Callable[[float], float]
"""What names a curve: a text for `parse`, a schedule, or a function from progress to weight."""


def mix(base: Tensor, tuned: Tensor, w: float) -> Tensor:
    """(1 - w) base + w tuned: annealed importance guidance's mix of two predictions of the same x_t, w >= 0."""
    return torch.lerp(base, tuned, w)


def constant(level: float) -> Schedule:
    """w(u) = level in [0, 64]: the fixed mix of DeRaDiff (arXiv 2601.20198); above 1, RLG (arXiv 2508.21016)."""
    _check("constant", "level", level, 0 <= level <= MOST, f"in [0, {MOST:g}]")
    return Schedule(f"constant:{_text(level)}", lambda u: level)


def base() -> Schedule:
    """w(u) = 0: the base model alone."""
    return Schedule("base", lambda u: 0.0)


def tuned() -> Schedule:
    """w(u) = 1: the tuned model alone."""
    return Schedule("tuned", lambda u: 1.0)


def linear() -> Schedule:
    """w(u) = u, the same as power:1."""
    return Schedule("linear", lambda u: u)


def power(p: float) -> Schedule:
    """w(u) = u^p with p > 0; a larger p stays longer with the base model. The published defaults are p = 2 and 4."""
    _check("power", "p", p, 0 < p < math.inf, "positive and finite")
    return Schedule(f"power:{_text(p)}", lambda u: u**p)


def step(f: float) -> Schedule:
    """w(u) = 1 if u >= f else 0: the combined generation of ImageReFL (arXiv 2505.22569)."""
    _check("step", "f", f, 0 <= f <= 1, "in [0, 1]")
    return Schedule(f"step:{_text(f)}", lambda u: 1.0 if u >= f else 0.0)


def ramp(start: float, top: float) -> Schedule:
    """w(u) = 0 until u = start, then a straight line that reaches `top` at the last step, whatever their number.

    `start` in [0, 1), `top` in [0, 64]. With `top` > 1 it is annealed extrapolation: the base explores, the end goes
    beyond the tuned model. Of T steps the last is at u = (T - 1)/T; one that is not after `start` has weight `top` too.
    """
    _check("ramp", "start", start, 0 <= start < 1, "in [0, 1)")
    _check("ramp", "top", top, 0 <= top <= MOST, f"in [0, {MOST:g}]")

    def weight(u: float, last: float) -> float:
        return top if u >= last else min(top, top * max(0.0, u - start) / (last - start)) if last > start else 0.0

    return Schedule(f"ramp:{_text(start)},{_text(top)}", weight, to_last=True)


def auto_ramp(start: float) -> Schedule:
    """The ramp whose top follows from the adapter's own path length: `fitted` completes it."""
    _check("ramp", "start", start, 0 <= start < 1, "in [0, 1)")
    name = f"ramp:{_text(start)},auto"

    def weight(u: float) -> float:
        raise ValueError(
            f"schedule {name!r} has no weight yet: it follows from the adapter's path length, "
            "as aig.schedules.fitted(schedule, length)"
        )

    return Schedule(name, weight, fit=lambda top: ramp(start, top))


def auto_weight(length: float) -> float:
    """The weight that an adapter bears at the last step: 0.25 / its path length, at most 64, to three digits.

    `length` is the root of the mean path length at weight 1 (`aig.sampler.tuned_length`), above 0. One rule for every
    reward, K, KL weight and training seed; docs/method.md shows what it was read from and where it errs.
    """
    _check("ramp", "the adapter's path length", length, 0 < length < math.inf, "positive and finite")
    return min(float(f"{REACH / length:.3g}"), MOST)


def times(factor: float, schedule: Schedule) -> Schedule:
    """`factor` times another schedule's weights; factor in (0, 64]."""
    _check(f"{_text(factor)}*{schedule.name}", "the factor", factor, 0 < factor <= MOST, f"in (0, {MOST:g}]")
    _check_plain("a factor", schedule)
    scaled = replace(
        schedule, name=f"{_text(factor)}*{schedule.name}", weight=lambda u, last: factor * schedule(u, last),
        to_last=True, label=None,
    )  # fmt: skip
    return replace(scaled, digest=_digest(scaled)) if schedule.digest else scaled


def coin(schedule: Schedule) -> Schedule:
    """One model a step, the tuned one with probability w(u): Diffusion Blend's stochastic form (arXiv 2505.18547).

    Each image draws from a generator of its own seed. Costs one prediction a step. Weights lie in [0, 1].
    """
    _check_plain("a coin", schedule)
    return replace(schedule, name=f"coin:{schedule.name}", coin=True, label=None)


def piecewise(knots: Sequence[tuple[float, float]]) -> Schedule:
    """Straight lines between at least two knots (u, w), constant before the first and after the last.

    u increases strictly and lies in [0, 1]; w may rise and fall and lies in [0, 64].
    """
    shown = ", ".join(f"({u:g}, {w:g})" for u, w in knots)
    if len(knots) < 2:
        raise ValueError(f"schedule piecewise: knots {shown or 'none'}: give at least two, as in piecewise:0=0|1=1")
    outside = next(((u, w) for u, w in knots if not (0 <= u <= 1 and 0 <= w <= MOST)), None)
    if outside:
        raise ValueError(
            f"schedule piecewise: knot ({outside[0]:g}, {outside[1]:g}): u must be in [0, 1], w in [0, {MOST:g}]"
        )
    places, weights = [float(u) for u, _ in knots], [float(w) for _, w in knots]
    if any(a >= b for a, b in pairwise(places)):
        raise ValueError(f"schedule piecewise: knots {shown}: u must increase from each knot to the next")

    def weight(u: float) -> float:
        i = bisect.bisect_right(places, u)
        if i in (0, len(places)):
            return weights[min(i, len(places) - 1)]
        a, b = weights[i - 1], weights[i]
        mixed = a + (b - a) * (u - places[i - 1]) / (places[i] - places[i - 1])
        return min(max(mixed, min(a, b)), max(a, b))  # rounding must not leave the line's own range

    return Schedule("piecewise:" + "|".join(f"{_text(u)}={_text(w)}" for u, w in knots), weight)


def join(schedules: Sequence[Schedule], boundaries: Sequence[float]) -> Schedule:
    """One schedule after another: the first while u < boundaries[0], and so on; all see the same u.

    Boundaries increase within (0, 1), one fewer than the schedules, which share one domain.
    """
    if len(boundaries) != len(schedules) - 1 or any(
        a >= b for a, b in zip([0.0, *boundaries], [*boundaries, 1.0], strict=True)
    ):
        raise ValueError(
            "join needs increasing boundaries in (0, 1), one fewer than its schedules; "
            f"got {list(boundaries)} for {len(schedules)}"
        )
    if len({s.domain for s in schedules}) != 1:
        raise ValueError(
            "join needs schedules of one domain; got " + ", ".join(f"{s.name} ({s.domain})" for s in schedules)
        )
    for schedule in schedules:
        _check_plain("join", schedule)
    parts = [schedules[0].name] + [f"{_text(b)}|{s.name}" for b, s in zip(boundaries, schedules[1:], strict=True)]

    def weight(u: float, last: float) -> float:
        return schedules[sum(u >= b for b in boundaries)](u, last)

    joined = Schedule("join:" + "|".join(parts), weight, schedules[0].domain, to_last=True)
    return replace(joined, digest=_digest(joined)) if any(s.digest for s in schedules) else joined


def from_callable(function: Callable[[float], float], name: str | None = None) -> Schedule:
    """Your own curve: a function from progress u in [0, 1] to a weight in [0, 64].

    It is called once at every u = i/T of up to 100 steps and at every thousandth; ValueError if it fails there or
    returns anything but a number in [0, 64]. The default name is `module:qualname`, which `parse` reads if it can be
    imported.
    """
    name = name or f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    schedule = Schedule(name, function)
    return replace(schedule, digest=_digest(schedule))


@cache
def _progress() -> list[float]:
    """Every u = i/T of up to 100 steps, and the thousandths that the time domain reads."""
    return sorted({i / steps for steps in (*range(1, 101), 1000) for i in range(steps + 1)})


def _digest(schedule: Schedule) -> str:
    """A hash of the weights at `_progress`, to nine decimals: nodes whose libraries differ in the last bit agree."""
    values = []
    for u in _progress():
        try:
            values.append(f"{schedule(u):.9f}")
        except Exception as error:  # the function is the user's and may raise anything
            raise ValueError(
                f"schedule {schedule.name!r} failed at u = {u:g} ({error}): give a function that returns a weight in "
                f"[0, {MOST:g}] for every progress u in [0, 1]"
            ) from error
    return digests.of_texts(values)


def in_domain(schedule: Schedule, domain: str) -> Schedule:
    """The same curve over another clock, "step" or "time"; ValueError for any other."""
    if domain not in DOMAINS:
        raise ValueError(f"schedule domain {domain!r} is not one of {', '.join(DOMAINS)}")
    return replace(schedule, domain=domain)


def level(schedule: Schedule) -> float | None:
    """The weight of a constant schedule, a fixed mix; None for a schedule that varies."""
    weights = {schedule(i / 1000) for i in range(1001)}
    return weights.pop() if len(weights) == 1 else None


def weights(schedule: Schedule, times: Sequence[float], t_max: float) -> list[float]:
    """The weight at each of T steps: `times` are the scheduler's timesteps in order, `t_max` its training steps."""
    progress = [i / len(times) for i in range(len(times))]
    if schedule.domain == "time":
        progress = [min(max(1 - float(t) / t_max, 0.0), 1.0) for t in times]
    return [schedule(u, progress[-1]) for u in progress]


def _check_plain(what: str, schedule: Schedule) -> None:
    if schedule.coin or schedule.fit is not None:
        kind = "a coin" if schedule.coin else "a weight that is still to be found"
        raise ValueError(f"schedule {schedule.name!r} is {kind}, which does not go into {what}: give another form")


def _text(value: float) -> str:
    """The shortest text that reads as this number."""
    return repr(float(value)).removesuffix(".0")


def _check(name: str, parameter: str, value: float, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"schedule {name}: {parameter} = {value} must be {allowed}")
