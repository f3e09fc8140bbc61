"""Annealing schedules: the weight of the tuned model as a function of sampling progress.

Annealed importance guidance (arXiv 2409.06493) mixes the predictions of the base and the tuned model at each step,

    eps = (1 - w) eps_base(x_t, c) + w eps_tuned(x_t, c),    w = schedule(u),

with progress u = i/T at step i of T (i = 0 is pure noise), so that sampling explores like the base model first and
converges like the
tuned model last. A schedule in the `time` domain is given u = 1 - t/t_max instead, which differs on every non-uniform
grid.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DOMAINS = ("step", "time")


@dataclass(frozen=True)
class Schedule:
    """A pure function from progress u in [0, 1] to the weight of the tuned model in [0, 1], with the name that `parse`
    reads.

    `domain` says what progress is: "step" (u = i/T, the published form) or "time" (u = 1 - t/t_max).
    """

    name: str
    weight: Callable[[float], float]
    domain: str = "step"

    def __call__(self, u: float) -> float:
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"progress u = {u} of schedule {self.name!r} is outside [0, 1]; u is i/T at step i of T")
        w = self.weight(u)
        if not 0.0 <= w <= 1.0:
            raise ValueError(f"schedule {self.name!r} gave weight {w} at u = {u}; weights lie in [0, 1]")
        return w


def mix(base: Tensor, tuned: Tensor, w: float) -> Tensor:
    """Annealed importance guidance's mix of two predictions of the same x_t: (1 - w) base + w tuned."""
    return torch.lerp(base, tuned, w)


def constant(level: float) -> Schedule:
    """w(u) = level: the fixed mix of DeRaDiff (arXiv 2601.20198)."""
    _check("constant", "level", level, 0 <= level <= 1, "in [0, 1]")
    return Schedule(f"constant:{level:g}", lambda u: level)


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
    return Schedule(f"power:{p:g}", lambda u: u**p)


def step(f: float) -> Schedule:
    """w(u) = 1 if u >= f else 0: the combined generation of ImageReFL (arXiv 2505.22569)."""
    _check("step", "f", f, 0 <= f <= 1, "in [0, 1]")
    return Schedule(f"step:{f:g}", lambda u: 1.0 if u >= f else 0.0)


def join(schedules: Sequence[Schedule], boundaries: Sequence[float]) -> Schedule:
    """One schedule after another: the first while u < boundaries[0], and so on; each is given the whole clock's u, not
    its own.

    Boundaries are increasing, in (0, 1), one fewer than the schedules, and all schedules share one domain.
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
    parts = [schedules[0].name] + [f"{b:g}|{s.name}" for b, s in zip(boundaries, schedules[1:], strict=True)]

    def weight(u: float) -> float:
        return schedules[sum(u >= b for b in boundaries)](u)

    return Schedule("join:" + "|".join(parts), weight, schedules[0].domain)


def in_domain(schedule: Schedule, domain: str) -> Schedule:
    """The same curve over another clock, "step" or "time"."""
    if domain not in DOMAINS:
        raise ValueError(f"schedule domain {domain!r} is not one of {', '.join(DOMAINS)}")
    return replace(schedule, domain=domain)


PLAIN = {"base": base, "tuned": tuned, "linear": linear}
WITH_NUMBER = {"power": power, "step": step, "constant": constant}


def parse(text: str) -> Schedule:
    """Read `base`, `tuned`, `linear`, `power:P`, `step:F`, `constant:W` or `join:A|BOUNDARY|B...`, with `@time` at the
    end for the time domain.

    Raises ValueError that names the text, what is wrong and the known forms.
    """
    known = ", ".join([*PLAIN, *(f"{name}:NUMBER" for name in WITH_NUMBER), "join:A|BOUNDARY|B"])
    body, at, domain = text.partition("@")
    if at:
        return in_domain(parse(body), domain)
    name, colon, argument = body.partition(":")
    if name in PLAIN and not colon:
        return PLAIN[name]()
    if name == "join" and colon:
        parts = argument.split("|")
        return join([parse(part) for part in parts[::2]], [_number(text, part) for part in parts[1::2]])
    if name in WITH_NUMBER:
        return WITH_NUMBER[name](_number(text, argument))
    close = difflib.get_close_matches(name, [*PLAIN, *WITH_NUMBER, "join"], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"schedule {text!r} is not known{hint} (known: {known})")


def format_name(schedule: Schedule) -> str:
    """The text that `parse` reads back into this schedule."""
    return schedule.name if schedule.domain == "step" else f"{schedule.name}@{schedule.domain}"


def weights(schedule: Schedule, times: Sequence[float], t_max: float) -> list[float]:
    """The weight at each of T steps; `times` are the scheduler's timesteps in sampling order, `t_max` its training
    steps."""
    if schedule.domain == "time":
        return [schedule(min(max(1 - float(t) / t_max, 0.0), 1.0)) for t in times]
    return [schedule(i / len(times)) for i in range(len(times))]


def _number(text: str, argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise ValueError(f"schedule {text!r} needs a number after the colon, as in power:2; got {argument!r}") from None


def _check(name: str, parameter: str, value: float, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"schedule {name}: {parameter} = {value} must be {allowed}")
