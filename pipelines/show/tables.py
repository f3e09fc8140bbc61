"""Tables for a terminal: arms in rows, metrics in columns, every number with its interval."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

from pipelines.show.estimates import Estimate, interval

GAP = "  "


def estimates(
    cells: Mapping[str, Mapping[str, Estimate]],
    columns: Sequence[str],
    broken: Mapping[str, str],
    warned: Mapping[str, str] | None = None,
    width: int = 0,
) -> str:
    """Rows {name: {column: estimate}} as text, in as many parts below one another as fit the terminal's width.

    A row that is broken or warned of has its name marked, and the reason stands below. A column without any value is
    left out.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    shown = [name for name in columns if any(name in row and math.isfinite(row[name].value) for row in cells.values())]
    warned = warned or {}
    names = ["", *(f"{name}{' *' * (name in broken)}{' !' * (name in warned)}" for name in cells)]
    texts = [[name, *(interval(row.get(name, Estimate(math.nan))) for row in cells.values())] for name in shown]
    parts, part = [], [names]
    for column in texts:
        if len(part) > 1 and _width([*part, column]) > width:
            parts, part = [*parts, part], [names]
        part.append(column)
    lines = ["\n".join(_lines(part)) for part in [*parts, part]]
    notes = [f"* {name} is broken, and on no front: {reason}" for name, reason in broken.items() if name in cells]
    notes += [f"! {name}: {reason}" for name, reason in warned.items() if name in cells]
    return "\n\n".join([*lines, "\n".join(notes)] if notes else lines)


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in columns) + len(GAP) * (len(columns) - 1)


def _lines(columns: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in columns]
    return [
        GAP.join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True)))
        for row in zip(*columns, strict=True)
    ]
