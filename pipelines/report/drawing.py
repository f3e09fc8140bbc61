"""What every figure shares: how it is saved, its axes' names and its legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.front.names import GOLD, metric_name
from pipelines.front.results import StudyResult
from pipelines.report import style
from pipelines.report.style import MARK, MARKER, MUTED

BROKEN = "x"  # over the mark of an arm


@dataclass(frozen=True)
class Drawing:
    """A figure, the artists that only its PNG shows, what the pointer shows, and the labels without room."""

    figure: Figure
    png_only: tuple[Artist, ...] = ()
    tips: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()

    def svg(self, name: str, title: str) -> str:
        """Inline SVG for the page."""
        return style.inline_svg(self.figure, name, title, self.png_only, self.tips or {})

    def png(self, path: Path) -> None:
        """A PNG that stands on its own."""
        style.save_png(self.figure, path)


def reward_axis(study: StudyResult, metric: str) -> str:
    """A reward metric as an axis: which it is and whether it was trained on."""
    roles = {study.reward: " (proxy, trained on)", study.held_out: " (held out)", GOLD: " (never trained on)"}
    return f"{metric_name(metric)}{roles.get(metric, '')} →"


def cross_out(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Mark the arms that are broken, on top of their own marks."""
    if points:
        ax.plot(*zip(*points, strict=True), BROKEN, color=MUTED, markersize=11, markeredgewidth=1.4, zorder=5)


def legend(study: StudyResult, fronts: bool = True) -> list[Line2D]:
    """A handle for each family of the study, and if fronts are drawn, for what filled and open marks mean."""
    handles = []
    for family in study.families:
        line = "-" if fronts and family not in ("base", "tuned") else ""
        handle = Line2D(
            [], [], color=MARK[family], linestyle=line, linewidth=1.3, marker=MARKER[family], markersize=5.5
        )
        handle.set_label(study.counted(family, short=True))
        handles.append(handle)
    if fronts:
        handles.append(Line2D([], [], color=MUTED, linestyle="", marker="o", markersize=5.5, label="optimal"))
        handles.append(Line2D([], [], color=MUTED, linestyle="", marker="o", markersize=5.5, label="dominated"))
        handles[-1].set_markerfacecolor(style.CARD)
    if any(arm.broken for arm in study.arms):
        handles.append(Line2D([], [], color=MUTED, linestyle="", marker=BROKEN, markersize=9, label="broken"))
    return handles
