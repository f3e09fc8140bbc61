"""The map as a figure: each option's difference over all settings, with its interval, on every plane."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.front.map import ALL, ENDS, Contest, Map
from pipelines.report import style
from pipelines.report.drawing import Drawing
from pipelines.report.style import INK, MUTED
from pipelines.runs.directory import RunDir

FILE = "map.png"


def write_figure(run: RunDir, found: Map) -> Path:
    """Write `map.png` beside `map.json`."""
    path = run.root / FILE
    with style.style(), run.whole(path) as part:
        draw(found).png(part)
    return path


def draw(found: Map) -> Drawing:
    """A forest plot: references in rows, planes in columns; the settings' own values as small dots."""
    found = replace(found, contests=tuple(c for c in found.contests if c.ends == next(iter(ENDS))))
    references = list(dict.fromkeys(c.against for c in found.contests))
    planes = list(dict.fromkeys(c.plane for c in found.contests))
    setting = ALL if any(c.setting == ALL for c in found.contests) else found.settings[0]
    main = [c for c in found.contests if c.setting == setting]
    rows = {against: _order([c for c in main if c.against == against], planes[0]) for against in references}
    most = max(map(len, rows.values()))
    left = 0.3 + 0.062 * max(len(name) for names in rows.values() for name in names)
    figure, axes = style.canvas(
        left + 0.2 + 3.0 * len(planes), 1.1 + (0.21 * most + 0.7) * len(references), len(references), len(planes),
        squeeze=False, left=left, top=0.7, bottom=0.5, between=(0.25, 0.7),
    )  # fmt: skip
    note = f"{setting}; intervals over prompts and training seeds; dots: single settings; filled: decided by Holm"
    style.annotate(figure, "Hypervolume less that of the reference, at equal numbers of arms", note, ())
    for against, line in zip(references, axes, strict=True):
        for plane, ax in zip(planes, line, strict=True):
            names = rows[against]
            ax.axvline(0, color=MUTED, linewidth=0.8)
            for c in found.contests:
                if (c.against, c.plane) == (against, plane) and c.option in names:
                    _mark(ax, names.index(c.option), c, c.setting == setting)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.set_yticks(range(len(names)), names if plane == planes[0] else [""] * len(names))
            ax.set_title(f"{plane}, less {against}")
    return Drawing(figure)


def _order(contests: list[Contest], plane: str) -> list[str]:
    return [c.option for c in sorted(contests, key=lambda c: -c.estimate.value) if c.plane == plane]


def _mark(ax, y: int, contest: Contest, main: bool) -> None:
    value, low, high = contest.estimate
    if not main:
        ax.plot(value, y, ".", color=MUTED, markersize=3.5, alpha=0.8)
        return
    ax.plot([low, high], [y, y], color=INK, linewidth=1.2)
    ax.plot(value, y, "o", color=INK, markersize=5, markerfacecolor=INK if contest.decided else "white")
