"""The reward–diversity plane: all arms with their intervals and names, and each family's front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from aig.pareto import optimal_mask
from pipelines.front.families import members
from pipelines.front.results import Arm, Run, Study, metric_name, sample
from pipelines.report import labels, style
from pipelines.report.drawing import Drawing, cross_out, legend, reward_axis
from pipelines.report.style import INK, MARK, MARKER, MUTED, TEXT
from pipelines.show.estimates import Estimate, interval


def plane_metrics(study: Study) -> list[str]:
    """Metrics for the x axis of the planes that can be drawn: the proxy, then held-out reward and gold if measured."""
    others = dict.fromkeys((study.held_out, "gold", *study.planes))
    measured = [m for m in others if m and m != study.reward and any(arm.metric(m).known for arm in study.arms)]
    return [study.reward, *measured]


def tradeoff(run: Run, study: Study) -> Drawing:
    """The reward–diversity plane of a study with all its arms named."""
    height, handles = 6.4 if len(study.arms) <= 30 else 8.0, legend(study)
    figure, ax = style.canvas(9.6, height, top=style.head(9.6, handles), bottom=style.FOOT)
    note = f"{sample(study.arms)}; bars: {run.percent} intervals over prompts; lines: fronts of the families."
    apart = style.annotate(figure, f"{study.title}: reward against diversity", note, handles)
    names = _plane(ax, study, study.reward, study.arms)
    left_out = names.place()
    style.mention(apart, left_out)
    return Drawing(figure, apart, _tips(run, study, study.reward), tuple(left_out))


def panels(run: Run, study: Study) -> dict[str, Drawing]:
    """The same plane, small, with the proxy, the held-out reward and gold on x: one figure each."""
    drawings = {}
    for metric in plane_metrics(study):
        figure, ax = style.canvas(3.8, 3.4, left=0.55)
        names = _plane(ax, study, metric, _noteworthy(study, metric))
        names.place()
        drawings[metric] = Drawing(figure, tips=_tips(run, study, metric))
    return drawings


def row(run: Run, study: Study) -> Drawing:
    """The small planes in one row."""
    metrics, handles = plane_metrics(study), legend(study)
    width = 4.4 * len(metrics)
    size = {"top": style.head(width, handles), "bottom": style.FOOT, "between": (0.25, 0.0)}
    figure, axes = style.canvas(width, 4.9, 1, len(metrics), squeeze=False, sharey=True, **size)
    note = f"{sample(study.arms)}; bars: {run.percent} intervals over prompts; filled: optimal on that plane."
    style.annotate(figure, f"{study.title}: the plane by each reward", note, handles)
    names = [_plane(ax, study, metric, _noteworthy(study, metric)) for ax, metric in zip(axes[0], metrics, strict=True)]
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    for panel in names:
        panel.place()
    return Drawing(figure)


def _plane(ax: Axes, study: Study, metric: str, named: Sequence[Arm]) -> _Names:
    """Draws a plane without its names, which need the final layout."""
    points = _points(study, metric)
    drawn = [arm for arm in study.arms if all(math.isfinite(e.value) for e in points[arm.name])]
    optimal = optimal_names(study, metric)
    size = 6.0 if len(named) == len(study.arms) else 4.5
    segments = []
    for family, names in _fronts(study, metric, points).items():
        steps = staircase([_values(points, name) for name in names])
        if family == "all" or not steps:
            continue
        ax.plot(*zip(*steps, strict=True), color=MARK.get(family, INK), linewidth=1.3, alpha=0.75, zorder=2)
        segments += [(*a, *b) for a, b in pairwise(steps)]
    for i, arm in enumerate(study.arms):
        if arm not in drawn:
            continue
        x, y = points[arm.name]
        color = MARK[arm.family]
        bars = [(x.low, y.value, x.high, y.value), (x.value, y.low, x.value, y.high)]
        for x0, y0, x1, y1 in bars:
            ax.plot([x0, x1], [y0, y1], color=color, linewidth=1.0, alpha=0.4, zorder=1.5)
        segments += bars
        (marker,) = ax.plot(x.value, y.value, MARKER[arm.family], color=color, markersize=size, zorder=4)
        marker.set_markeredgewidth(1.2)
        marker.set_markerfacecolor(color if arm.name in optimal else style.CARD)
        marker.set_gid(f"arm{i}")
    cross_out(ax, [_values(points, arm.name) for arm in drawn if arm.broken])
    ax.set_xlabel(reward_axis(study, metric))
    ax.set_ylabel(f"{metric_name(study.diversity)} →")
    ax.margins(0.07)
    texts = []
    for arm in named:
        if arm in drawn:
            needed = arm.name in optimal or arm.family in ("base", "tuned")
            texts.append(labels.Label(*_values(points, arm.name), arm.label, TEXT[arm.family], needed))
    return _Names(ax, texts, segments, [_values(points, arm.name) for arm in drawn])


@dataclass(frozen=True)
class _Names:
    """Names still to be placed on axes, and what they must not cover."""

    ax: Axes
    texts: list[labels.Label]
    segments: list[tuple[float, float, float, float]]
    markers: list[tuple[float, float]]

    def place(self) -> list[str]:
        return labels.place(self.ax, self.texts, self.segments, self.markers, 8.0, MUTED)


_Points = Mapping[str, tuple[Estimate, Estimate]]


def _points(study: Study, metric: str) -> _Points:
    return {arm.name: (arm.x if metric == study.reward else arm.metric(metric), arm.y) for arm in study.arms}


def _values(points: _Points, name: str) -> tuple[float, float]:
    x, y = points[name]
    return x.value, y.value


def _noteworthy(study: Study, metric: str) -> list[Arm]:
    """Arms that a small plane names: those that are optimal on it, base and tuned."""
    optimal = optimal_names(study, metric)
    return [arm for arm in study.arms if arm.name in optimal or arm.family in ("base", "tuned")]


def optimal_names(study: Study, metric: str) -> set[str]:
    """Arms that no other dominates at the means on the plane of a metric."""
    if metric == study.reward:
        return {arm.name for arm in study.arms if arm.on_front}
    return set(_front(_points(study, metric), [arm.name for arm in study.arms if not arm.broken]))


def _fronts(study: Study, metric: str, points: _Points) -> Mapping[str, Sequence[str]]:
    """Arms on each family's front: front.json's where it has this plane, else found at the means.

    Every family reaches the base and the tuned model (KL weight 0, LoRA scale 0 and 1, ...): they belong to each.
    """
    if metric in study.planes:
        return study.planes[metric].fronts
    sound = [arm for arm in study.arms if not arm.broken]
    ends = [arm.name for arm in sound if arm.family in ("base", "tuned")]
    fronts = {}
    for family in study.families:
        if family not in ("base", "tuned"):
            own = [arm.name for arm in sound if arm.family in members(family)]
            fronts[family] = _front(points, ends + own)
    return fronts


def _front(points: _Points, names: list[str]) -> list[str]:
    values = np.array([_values(points, name) for name in names]).reshape(-1, 2)
    return [name for name, best in zip(names, optimal_mask(values), strict=True) if best]


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the boundary of what the points attain, from the leftmost point to the rightmost."""
    ordered = sorted(points)
    corners = ordered[:1]
    for (x0, _), (x1, y1) in pairwise(ordered):
        corners += [(x0, y1), (x1, y1)]
    return corners


def _tips(run: Run, study: Study, metric: str) -> dict[str, str]:
    tips = {}
    for i, arm in enumerate(study.arms):
        x = arm.x if metric == study.reward else arm.metric(metric)
        shown = f"{metric_name(metric)} {interval(x)}, {metric_name(study.diversity)} {interval(arm.y)}"
        why = "".join(f", {told}" for told in (arm.broken, arm.warning) if told)
        tips[f"arm{i}"] = f"{arm.label} ({study.family(arm.family)}): {shown}, n = {arm.n}{why}"
    return tips
