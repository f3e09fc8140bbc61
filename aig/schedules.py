"""Annealing schedules: the weight of the tuned model as a function of sampling progress.

Annealed importance guidance (arXiv 2409.06493) mixes the predictions of the base and the tuned model at each step,

    eps = (1 - w) eps_base(x_t, c) + w eps_tuned(x_t, c),    w = schedule(u),

with progress u = i/T at step i of T (i = 0 is pure noise): sampling explores like the base model first and converges
like the tuned model last. In the `time` domain u = 1 - t/t_max instead, which differs on every non-uniform grid.
"""

from __future__ import annotations

import bisect
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aig import digests, folders

DOMAINS = ("step", "time")


@dataclass(frozen=True)
class Schedule:
    """A named curve: a pure function from progress u in [0, 1] to the weight of the tuned model in [0, 1].

    Calling it raises ValueError for a progress or a weight outside [0, 1].

    Examples:
        >>> Schedule("late", lambda u: max(0.0, 2 * u - 1))(0.75)
        0.5
    """

    name: str
    """The text that `parse` reads."""
    weight: Callable[[float], float]
    domain: str = "step"
    """What progress is: "step" (u = i/T, the published form) or "time" (u = 1 - t/t_max)."""
    label: str | None = None
    """A person's name for the curve; it changes nothing."""
    digest: str | None = None
    """A hash of the curve's values if a function of the user's decides them; None if the name alone does."""

    def __call__(self, u: float) -> float:
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"progress u = {u} of schedule {self.name!r} is outside [0, 1]; u is i/T at step i of T")
        w = float(self.weight(u))
        if not 0.0 <= w <= 1.0:
            raise ValueError(f"schedule {self.name!r} gave weight {w} at u = {u}; weights lie in [0, 1]")
        return w


Curve = str | Schedule | Callable[[float], float]
"""What names a curve: a text for `parse`, a schedule, or a function from progress to weight."""


def mix(base: Tensor, tuned: Tensor, w: float) -> Tensor:
    """(1 - w) base + w tuned: annealed importance guidance's mix of two predictions of the same x_t."""
    return torch.lerp(base, tuned, w)


def constant(level: float) -> Schedule:
    """w(u) = level: the fixed mix of DeRaDiff (arXiv 2601.20198)."""
    _check("constant", "level", level, 0 <= level <= 1, "in [0, 1]")
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


def piecewise(knots: Sequence[tuple[float, float]]) -> Schedule:
    """Straight lines between at least two knots (u, w), constant before the first and after the last.

    u increases strictly; w may rise and fall; both lie in [0, 1].
    """
    shown = ", ".join(f"({u:g}, {w:g})" for u, w in knots)
    if len(knots) < 2:
        raise ValueError(f"schedule piecewise: knots {shown or 'none'}: give at least two, as in piecewise:0=0|1=1")
    outside = next(((u, w) for u, w in knots if not (0 <= u <= 1 and 0 <= w <= 1)), None)
    if outside:
        raise ValueError(f"schedule piecewise: knot ({outside[0]:g}, {outside[1]:g}): u and w must be in [0, 1]")
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
    parts = [schedules[0].name] + [f"{_text(b)}|{s.name}" for b, s in zip(boundaries, schedules[1:], strict=True)]

    def weight(u: float) -> float:
        return schedules[sum(u >= b for b in boundaries)](u)

    joined = Schedule("join:" + "|".join(parts), weight, schedules[0].domain)
    return replace(joined, digest=_digest(joined)) if any(s.digest for s in schedules) else joined


def from_callable(function: Callable[[float], float], name: str | None = None) -> Schedule:
    """Your own curve: a function from progress u in [0, 1] to a weight in [0, 1].

    It is called once at every u = i/T of up to 100 steps and at every thousandth; ValueError if it fails there or
    returns anything but a number in [0, 1]. The default name is `module:qualname`, which `parse` reads if it can be
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
                "[0, 1] for every progress u in [0, 1]"
            ) from error
    return digests.of_texts(values)


def as_schedule(curve: Curve) -> Schedule:
    """The schedule of a text (`parse`), of a function (`from_callable`), or the one given."""
    if isinstance(curve, str):
        return parse(curve)
    return curve if isinstance(curve, Schedule) else from_callable(curve)


def in_domain(schedule: Schedule, domain: str) -> Schedule:
    """The same curve over another clock, "step" or "time"; ValueError for any other."""
    if domain not in DOMAINS:
        raise ValueError(f"schedule domain {domain!r} is not one of {', '.join(DOMAINS)}")
    return replace(schedule, domain=domain)


PLAIN = {"base": base, "tuned": tuned, "linear": linear}
WITH_NUMBER = {"power": power, "step": step, "constant": constant}
WITH_TEXT = {
    "piecewise": "piecewise:U=W|U=W",
    "join": "join:A|BOUNDARY|B",
    "file": "file:PATH",
}
_LABEL = re.compile(r"([\w.+-]+)=(.*)", re.S)
_IMPORTED = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def parse(text: str) -> Schedule:
    """Read a schedule's text: a known form, or `package.module:callable`, your own function from progress to weight.

    Known forms: `base`, `tuned`, `linear`, `power:P`, `step:F`, `constant:W`, `piecewise:U=W|U=W...`,
    `join:A|BOUNDARY|B...` and `file:PATH` (see `read`). A final `@time` chooses the time domain, an initial `LABEL=`
    sets a label. Raises ValueError that names the text, the reason and the known forms.

    Examples:
        >>> parse("power:2")(0.5), parse("join:base|0.3|linear")(0.2), parse("math:sqrt")(0.25)
        (0.25, 0.0, 0.5)
    """
    labelled = _LABEL.fullmatch(text)
    if labelled:
        return replace(parse(labelled[2]), label=labelled[1])
    body, at, domain = text.rpartition("@")
    # A file's path may hold an @ of its own.
    if at and (domain in DOMAINS or not text.startswith("file:")):
        return in_domain(parse(body), domain)
    name, colon, argument = text.partition(":")
    if name in PLAIN and not colon:
        return PLAIN[name]()
    if name == "file" and colon:
        return read(argument)
    if name == "piecewise" and colon:
        pairs = [part.partition("=") for part in argument.split("|")]
        return piecewise([(_number(text, u), _number(text, w)) for u, _, w in pairs])
    if name == "join" and colon:
        # A part that is only U=W goes on with the piecewise curve before it.
        parts = re.split(r"\|(?![^|:]+=)", argument)
        return join([parse(part) for part in parts[::2]], [_number(text, part) for part in parts[1::2]])
    if name in WITH_NUMBER:
        return WITH_NUMBER[name](_number(text, argument))
    if name not in PLAIN and _IMPORTED.fullmatch(text):
        return from_callable(_imported(text), text)
    close = difflib.get_close_matches(name, [*PLAIN, *WITH_NUMBER, *WITH_TEXT], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"schedule {text!r} is not known{hint} (known: {_known()})")


def _known() -> str:
    numbers = (f"{name}:NUMBER" for name in WITH_NUMBER)
    return ", ".join([*PLAIN, *numbers, *WITH_TEXT.values(), "package.module:callable"])


def _imported(text: str) -> Callable[[float], float]:
    try:
        function = digests.imported(text)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"schedule {text!r} cannot be imported ({error}): give the package.module:callable of a function from "
            f"progress to weight, or another form (known: {_known()})"
        ) from error
    if not callable(function):
        raise ValueError(
            f"schedule {text!r} is a {type(function).__name__}: give the package.module:callable of a function from "
            "progress to weight"
        )
    return function  # type: ignore[return-value]


def read(path: str | Path) -> Schedule:
    """Read a schedule from a JSON file: {"schedule": TEXT} or {"knots": [[u, w], ...]}.

    "domain", "name" (the label) and "about" are optional. The schedule's own name is a text that needs no file. Raises
    ValueError that names the file, what is wrong in it and the fix.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"schedule file {path} cannot be read ({reason}): check the path") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"schedule file {path} is not valid JSON ({error}): correct the file") from error
    try:
        return _from_content(content)
    except ValueError as error:
        raise ValueError(f"schedule file {path}: {error}") from error


def write(path: Path, schedule: Schedule, about: Mapping[str, Any] | None = None) -> None:
    """Write the file that `read` reads, atomically; `about` is any JSON worth keeping beside the curve."""
    content: dict[str, Any] = {"name": schedule.label} if schedule.label else {}
    content["schedule"] = format_name(schedule)
    if about:
        content["about"] = dict(about)
    with folders.whole_file(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


_KEYS = ("name", "schedule", "knots", "domain", "about")  # of a file


def _from_content(content: Any) -> Schedule:
    fix = 'give {"schedule": "power:2"} or {"knots": [[0, 0], [0.5, 1], [1, 0.4]]}'
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}: {fix}")
    unknown = next((key for key in content if key not in _KEYS), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, _KEYS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown key {unknown!r}{hint} (known: {', '.join(_KEYS)})")
    if ("schedule" in content) == ("knots" in content):
        raise ValueError(f"it needs one of 'schedule' and 'knots': {fix}")
    label = content.get("name")
    if label is not None and not (isinstance(label, str) and _LABEL.fullmatch(f"{label}=")):
        raise ValueError(f"name is {label!r}: give letters, digits and any of _ . + - without spaces")
    if "knots" in content:
        schedule = piecewise(_knots(content["knots"]))
    elif not isinstance(content["schedule"], str) or content["schedule"].startswith("file:"):
        raise ValueError(f'schedule is {content["schedule"]!r}: give the text of a curve, as in "power:2"')
    else:
        schedule = parse(content["schedule"])
    if "domain" in content:
        schedule = in_domain(schedule, content["domain"])
    return replace(schedule, label=label or schedule.label)


def _knots(knots: Any) -> list[tuple[float, float]]:
    def is_knot(knot: Any) -> bool:
        return isinstance(knot, list) and len(knot) == 2 and all(type(x) in (int, float) for x in knot)

    if not isinstance(knots, list) or not all(map(is_knot, knots)):
        raise ValueError(f"knots is {knots!r}: give a list of pairs of numbers, as in [[0, 0], [0.5, 1], [1, 0.4]]")
    return [(u, w) for u, w in knots]


def level(schedule: Schedule) -> float | None:
    """The weight of a constant schedule, a fixed mix; None for a schedule that varies."""
    weights = {schedule(i / 1000) for i in range(1001)}
    return weights.pop() if len(weights) == 1 else None


def format_name(schedule: Schedule) -> str:
    """The text that `parse` reads as this schedule, without its label."""
    return schedule.name if schedule.domain == "step" else f"{schedule.name}@{schedule.domain}"


def weights(schedule: Schedule, times: Sequence[float], t_max: float) -> list[float]:
    """The weight at each of T steps: `times` are the scheduler's timesteps in order, `t_max` its training steps."""
    if schedule.domain == "time":
        return [schedule(min(max(1 - float(t) / t_max, 0.0), 1.0)) for t in times]
    return [schedule(i / len(times)) for i in range(len(times))]


def _number(text: str, argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        form = "numbers U=W" if "piecewise:" in text else "a number"
        example = "piecewise:0=0|1=1" if "piecewise:" in text else "power:2"
        raise ValueError(f"schedule {text!r} needs {form} after the colon, as in {example}; got {argument!r}") from None


def _text(value: float) -> str:
    """The shortest text that reads as this number."""
    return repr(float(value)).removesuffix(".0")


def _check(name: str, parameter: str, value: float, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"schedule {name}: {parameter} = {value} must be {allowed}")
