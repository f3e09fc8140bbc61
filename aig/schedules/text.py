"""Schedules as text and as files."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aig import digests, folders
from aig.schedules.curves import (
    DOMAINS,
    Curve,
    Schedule,
    auto_ramp,
    auto_weight,
    base,
    coin,
    constant,
    from_callable,
    in_domain,
    join,
    linear,
    piecewise,
    power,
    ramp,
    step,
    times,
    tuned,
)  # fmt: skip

PLAIN = {"base": base, "tuned": tuned, "linear": linear}
WITH_NUMBER = {"power": power, "step": step, "constant": constant}
WITH_TEXT = {
    "ramp": "ramp:U,W or ramp:U,auto",
    "coin": "coin:SCHEDULE",
    "piecewise": "piecewise:U=W|U=W",
    "join": "join:A|BOUNDARY|B",
    "file": "file:PATH",
}
_FACTOR = re.compile(r"([^*:|]+)\*(.*)", re.S)
_LABEL = re.compile(r"([\w.+-]+)=(.*)", re.S)
_IMPORTED = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def parse(text: str) -> Schedule:
    """Read a schedule's text: a known form, or `package.module:callable`, your own function from progress to weight.

    Known forms: `base`, `tuned`, `linear`, `power:P`, `step:F`, `constant:W`, `ramp:U,W`, `ramp:U,auto` (to be
    `fitted`), `piecewise:U=W|U=W...`, `join:A|BOUNDARY|B...`, `coin:SCHEDULE` and `file:PATH` (see `read`). `F*` before
    any but a coin is a factor. A final `@time` chooses the time domain, an initial `LABEL=` sets a label. Raises
    ValueError that names the text, the reason and the known forms.

    Examples:
        >>> parse("power:2")(0.5), parse("join:base|0.3|linear")(0.2), parse("math:sqrt")(0.25)
        (0.25, 0.0, 0.5)
        >>> aig.schedules.weights(parse("ramp:0.25,2"), range(4), 1.0), parse("3*linear")(0.75)
        ([0.0, 0.0, 1.0, 2.0], 2.25)
    """
    labelled = _LABEL.fullmatch(text)
    if labelled:
        return replace(parse(labelled[2]), label=labelled[1])
    body, at, domain = text.rpartition("@")
    # A file's path may hold an @ of its own.
    if at and (domain in DOMAINS or not text.startswith("file:")):
        return in_domain(parse(body), domain)
    if (factor := _FACTOR.fullmatch(text)) and not text.startswith("file:"):
        return times(_number(text, factor[1]), parse(factor[2]))
    name, colon, argument = text.partition(":")
    if name == "coin" and colon:
        return coin(parse(argument))
    if name == "ramp" and colon:
        return _ramp(text, argument)
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


def _ramp(text: str, argument: str) -> Schedule:
    start, comma, top = argument.partition(",")
    if not comma:
        raise ValueError(
            f"schedule {text!r} needs the progress at which it leaves 0 and the weight of the last step, as in "
            "ramp:0.5,3, or ramp:0.5,auto for a weight that follows from the adapter"
        )
    number = _number(text, start)
    return auto_ramp(number) if top == "auto" else ramp(number, _number(text, top))


def _known() -> str:
    numbers = (f"{name}:NUMBER" for name in WITH_NUMBER)
    return ", ".join([*PLAIN, *numbers, *WITH_TEXT.values(), "NUMBER*SCHEDULE", "package.module:callable"])


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


def as_schedule(curve: Curve) -> Schedule:
    """The schedule of a text (`parse`), of a function (`from_callable`), or the one given."""
    if isinstance(curve, str):
        return parse(curve)
    return curve if isinstance(curve, Schedule) else from_callable(curve)


def fitted(curve: Curve, length: float) -> Schedule:
    """The schedule with its weight found from an adapter's path length (`auto_weight`); others as they are.

    Examples:
        >>> aig.schedules.fitted("ramp:0.5,auto", 0.068).name
        'ramp:0.5,3.68'
    """
    schedule = as_schedule(curve)
    if schedule.fit is None:
        return schedule
    return replace(schedule.fit(auto_weight(length)), domain=schedule.domain, label=schedule.label)


def format_name(schedule: Schedule) -> str:
    """The text that `parse` reads as this schedule, without its label."""
    return schedule.name if schedule.domain == "step" else f"{schedule.name}@{schedule.domain}"


# What is missing if a text's number cannot be read.
NUMBERS = (
    ("piecewise:", "numbers U=W after the colon", "piecewise:0=0|1=1"),
    ("ramp:", "two numbers after the colon", "ramp:0.5,3"),
    ("*", "a number before the *", "2*power:2"),
    ("", "a number after the colon", "power:2"),
)


def _number(text: str, argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        form, example = next((form, example) for kind, form, example in NUMBERS if kind in text)
        raise ValueError(f"schedule {text!r} needs {form}, as in {example}; got {argument!r}") from None
