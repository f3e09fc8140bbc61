"""Tables for a terminal: arms in rows, metrics in columns, every number with its interval."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping, Sequence

from pipelines.show.estimates import UNKNOWN, Estimate, interval

GAP = "  "


def estimates(
    cells: Mapping[str, Mapping[str, Estimate]],
    columns: Sequence[str],
    broken: Mapping[str, str],
    warned: Mapping[str, str] | None = None,
    width: int = 0,
) -> str:
    """Rows {name: {column: estimate}} as text, in as many parts below one another as fit the terminal's width.

    Marks the name of a broken or warned row and gives the reason below. Omits a column without any value.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    shown = [name for name in columns if any(math.isfinite(row.get(name, UNKNOWN).value) for row in cells.values())]
    warned = warned or {}
    names = ["", *(f"{name}{' *' * (name in broken)}{' !' * (name in warned)}" for name in cells)]
    texts = [[name, *(interval(row.get(name, UNKNOWN)) for row in cells.values())] for name in shown]
    parts, part = [], [names]
    for column in texts:
        if len(part) > 1 and sum(max(map(len, one)) + len(GAP) for one in [*part, column]) > width + len(GAP):
            parts, part = [*parts, part], [names]
        part.append(column)
    lines = [aligned(list(zip(*part, strict=True))) for part in [*parts, part]]
    notes = [f"* {name} is broken, and on no front: {reason}" for name, reason in broken.items() if name in cells]
    notes += [f"! {name}: {reason}" for name, reason in warned.items() if name in cells]
    return "\n\n".join([*lines, "\n".join(notes)] if notes else lines)


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows of cells as text: the columns numbered in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        GAP.join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
