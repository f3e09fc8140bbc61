"""The reward–diversity plane: all arms with their intervals and names, and each family's front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes

from pipelines.front.names import metric_name
from pipelines.front.results import Arm, Front, Plane, StudyResult
from pipelines.report import labels, style
from pipelines.report.drawing import Drawing, cross_out, legend, reward_axis
from pipelines.report.style import INK, MARK, MARKER, MUTED, TEXT
from pipelines.report.words import sample
from pipelines.show.estimates import interval


def tradeoff(front: Front, study: StudyResult) -> Drawing:
    """The reward–diversity plane of a study with all its arms named."""
    height, handles = 6.4 if len(study.arms) <= 30 else 8.0, legend(study)
    figure, ax = style.canvas(9.6, height, top=style.head(9.6, handles), bottom=style.FOOT)
    note = f"{sample(front, study)}; bars: {front.percent} intervals over prompts; lines: fronts of the families."
    apart = style.annotate(figure, f"{study.title}: reward against diversity", note, handles)
    left_out = _plane(ax, study, study.plane, study.arms).place()
    style.mention(apart, left_out)
    return Drawing(figure, apart, _tips(study, study.plane), tuple(left_out))


def panels(study: StudyResult) -> dict[str, Drawing]:
    """The same plane, small, with the proxy, the held-out reward and gold on x: one figure each."""
    drawings = {}
    for metric, plane in study.planes.items():
        figure, ax = style.canvas(3.8, 3.4, left=0.55)
        _plane(ax, study, plane, _noteworthy(study, plane)).place()
        drawings[metric] = Drawing(figure, tips=_tips(study, plane))
    return drawings


def row(front: Front, study: StudyResult) -> Drawing:
    """The small planes in one row."""
    planes, handles = study.planes.values(), legend(study)
    width = 4.4 * len(planes)
    size = {"top": style.head(width, handles), "bottom": style.FOOT, "between": (0.25, 0.0)}
    figure, axes = style.canvas(width, 4.9, 1, len(planes), squeeze=False, sharey=True, **size)
    note = f"{sample(front, study)}; bars: {front.percent} intervals over prompts; filled: optimal on that plane."
    style.annotate(figure, f"{study.title}: the plane by each reward", note, handles)
    names = [_plane(ax, study, plane, _noteworthy(study, plane)) for ax, plane in zip(axes[0], planes, strict=True)]
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    for panel in names:
        panel.place()
    return Drawing(figure)


def _plane(ax: Axes, study: StudyResult, plane: Plane, named: Sequence[Arm]) -> _Names:
    """Draws a plane without its names, which need the final layout."""
    drawn = [arm for arm in study.arms if all(math.isfinite(e.value) for e in plane.points[arm.name])]
    size = 6.0 if len(named) == len(study.arms) else 4.5
    segments = []
    for family, names in plane.fronts.items():
        steps = staircase([_values(plane, name) for name in names])
        if family != "all" and steps:
            ax.plot(*zip(*steps, strict=True), color=MARK.get(family, INK), linewidth=1.3, alpha=0.75, zorder=2)
            segments += [(*a, *b) for a, b in pairwise(steps)]
    for i, arm in enumerate(study.arms):
        if arm in drawn:
            segments += _mark(ax, plane, arm, size, f"arm{i}")
    cross_out(ax, [_values(plane, arm.name) for arm in drawn if arm.broken])
    ax.set_xlabel(reward_axis(study, plane.x))
    ax.set_ylabel(f"{metric_name(plane.y)} →")
    ax.margins(0.07)
    optimal = plane.fronts["all"]
    texts = [
        labels.Label(*_values(plane, arm.name), arm.title, TEXT[arm.family], arm.name in optimal or arm.is_end)
        for arm in named
        if arm in drawn
    ]
    return _Names(ax, texts, segments, [_values(plane, arm.name) for arm in drawn])


def _mark(ax: Axes, plane: Plane, arm: Arm, size: float, gid: str) -> list[tuple[float, float, float, float]]:
    """Draws an arm, filled if it is optimal, with its intervals; returns those as segments."""
    (x, y), color = plane.points[arm.name], MARK[arm.family]
    bars = [(x.low, y.value, x.high, y.value), (x.value, y.low, x.value, y.high)]
    for x0, y0, x1, y1 in bars:
        ax.plot([x0, x1], [y0, y1], color=color, linewidth=1.0, alpha=0.4, zorder=1.5)
    (marker,) = ax.plot(x.value, y.value, MARKER[arm.family], color=color, markersize=size, zorder=4)
    marker.set_markeredgewidth(1.2)
    marker.set_markerfacecolor(color if arm.name in plane.fronts["all"] else style.CARD)
    marker.set_gid(gid)
    return bars


@dataclass(frozen=True)
class _Names:
    """Names still to be placed on axes, and what they must not cover."""

    ax: Axes
    texts: list[labels.Label]
    segments: list[tuple[float, float, float, float]]
    markers: list[tuple[float, float]]

    def place(self) -> list[str]:
        return labels.place(self.ax, self.texts, self.segments, self.markers, 8.0, MUTED)


def _values(plane: Plane, name: str) -> tuple[float, float]:
    x, y = plane.points[name]
    return x.value, y.value


def _noteworthy(study: StudyResult, plane: Plane) -> list[Arm]:
    """Arms that a small plane names: those that are optimal on it, base and tuned."""
    return [arm for arm in study.arms if arm.name in plane.fronts["all"] or arm.is_end]


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the boundary of what the points attain, from the leftmost point to the rightmost."""
    ordered = sorted(points)
    corners = ordered[:1]
    for (x0, _), (x1, y1) in pairwise(ordered):
        corners += [(x0, y1), (x1, y1)]
    return corners


def _tips(study: StudyResult, plane: Plane) -> dict[str, str]:
    """What the pointer shows at each arm."""
    tips = {}
    for i, arm in enumerate(study.arms):
        x, y = plane.points[arm.name]
        shown = f"{metric_name(plane.x)} {interval(x)}, {metric_name(plane.y)} {interval(y)}"
        why = "".join(f", {reason}" for reason in (arm.broken, arm.warning) if reason)
        tips[f"arm{i}"] = f"{arm.title} ({study.family(arm.family)}): {shown}, n = {arm.images}{why}"
    return tips
