"""The figures: planes, hypervolumes, training curves, reward against KL, image grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aig.pareto import optimal_mask
from pipelines.report import labels, style
from pipelines.report.data import FAMILIES, Arm, Difference, Estimate, Run, Study, metric_name
from pipelines.report.style import GRID, INK, MARK, MARKER, MUTED, TEXT
from pipelines.report.words import comparisons, interval

CURVES = {
    "reward": "proxy reward",
    "held_out": "held-out reward",
    "gold": "gold",
    "accuracy": "prompt accuracy",
    "diversity": "diversity",
    "kl": "KL to base",
}
"""Columns of curves/*.jsonl that are drawn, and their names."""


@dataclass(frozen=True)
class Drawing:
    """A figure, the artists that only its PNG shows, what the pointer shows, and the labels that found no room."""

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


def reward_axis(study: Study, metric: str) -> str:
    """A reward metric as an axis: which it is and whether it was trained on."""
    role = {study.reward: " (proxy, trained on)", study.held_out: " (held out)", "gold": " (never trained on)"}
    return f"{metric_name(metric)}{role.get(metric, '')} →"


def plane_metrics(study: Study) -> list[str]:
    """Metrics for the x axis of the planes that can be drawn: the proxy, then held-out reward and gold if measured."""
    others = dict.fromkeys((study.held_out, "gold", *study.planes))
    measured = [m for m in others if m and m != study.reward and any(arm.metric(m).known for arm in study.arms)]
    return [study.reward, *measured]


def tradeoff(run: Run, study: Study) -> Drawing:
    """The reward–diversity plane of a study with all its arms named."""
    figure, ax = style.canvas(9.6, 6.4 if len(study.arms) <= 30 else 8.0)
    title = figure.suptitle(f"{study.title}: reward against diversity", x=0.01, ha="left", fontsize=11, weight="bold")
    note = f"{run.sample(study.arms)}; bars: {run.percent} intervals over prompts; filled: optimal among all arms; lines: fronts."
    foot = figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=MUTED)
    figure.legend(handles=_legend(study), loc="outside upper left", ncols=9, columnspacing=1.3, handletextpad=0.4)
    left_out = _plane(ax, study, study.reward, study.arms)
    return Drawing(figure, (title, foot), _tips(run, study, study.reward), left_out)


def plane_panels(run: Run, study: Study) -> dict[str, Drawing]:
    """The same plane, small, with the proxy, the held-out reward and gold on x: one figure each."""
    panels = {}
    for metric in plane_metrics(study):
        figure, ax = style.canvas(4.3, 3.7)
        _plane(ax, study, metric, _noteworthy(study, metric), small=True)
        panels[metric] = Drawing(figure, tips=_tips(run, study, metric))
    return panels


def planes(run: Run, study: Study) -> Drawing:
    """The small planes in one row."""
    metrics = plane_metrics(study)
    figure, axes = style.canvas(4.3 * len(metrics), 4.6, 1, len(metrics), squeeze=False, sharey=True)
    figure.suptitle(f"{study.title}: other rewards on x", x=0.005, ha="left", fontsize=11, weight="bold")
    note = f"{run.sample(study.arms)}; bars: {run.percent} intervals over prompts; filled: optimal on that plane."
    figure.supxlabel(note, x=0.005, ha="left", fontsize=8, color=MUTED)
    figure.legend(handles=_legend(study), loc="outside upper left", ncols=9, columnspacing=1.3, handletextpad=0.4)
    for ax, metric in zip(axes[0], metrics, strict=True):
        _plane(ax, study, metric, _noteworthy(study, metric), small=True)
        if ax is not axes[0][0]:
            ax.set_ylabel("")
    return Drawing(figure)


def hypervolumes(study: Study) -> Drawing:
    """Hypervolume of each family, and differences between families, with intervals."""
    plane = study.plane
    order = list(FAMILIES)
    volumes = sorted(plane.hypervolume.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99)
    differences = ordered_differences(plane.differences)
    rows = max(len(volumes), len(differences), 2)
    figure, (left, right) = style.canvas(9.6, 1.1 + 0.34 * rows, 1, 2)
    rows_left = [(family_name(f), v, MARK.get(f, INK), MARKER.get(f, "o"), True) for f, v in volumes]
    _dots(left, rows_left, rows)
    left.set_title("hypervolume of each family's front")
    rows_right = [
        (f"{family_name(d.a)} − {family_name(d.b)}", d.estimate, MARK.get(d.a, INK), "o", d.estimate.sign != 0)
        for d in differences
    ]
    _dots(right, rows_right, rows)
    right.axvline(0, color=MUTED, linewidth=1)
    right.set_title("difference (filled: interval excludes zero)")
    return Drawing(figure)


def overview(studies: Sequence[Study]) -> Drawing | None:
    """AIG less each other family, every study in one column of dots; None if nothing was compared."""
    rows = []
    for study in studies:
        for i, difference in enumerate(comparisons(study.plane.differences)):
            name = f"{study.title if i == 0 else ''}   − {family_name(difference.b)}"
            color = MARK.get(difference.b, INK)
            rows.append((name, difference.estimate, color, MARKER.get(difference.b, "o"), difference.estimate.sign != 0))
    if not rows:
        return None
    figure, ax = style.canvas(9.6, 0.9 + 0.3 * len(rows))
    _dots(ax, rows, len(rows))
    ax.axvline(0, color=MUTED, linewidth=1)
    ax.set_xlabel("hypervolume of AIG less the other family's (right of zero: AIG is ahead; filled: interval excludes zero)")
    return Drawing(figure)


def ordered_differences(differences: Sequence[Difference]) -> list[Difference]:
    """AIG's first, always as AIG less the other, then the rest."""
    return comparisons(differences) + [d for d in differences if "aig" not in (d.a, d.b)]


def family_name(family: str) -> str:
    """A family in words."""
    return FAMILIES.get(family, family)


@dataclass(frozen=True)
class Line:
    """One adapter's training curve and how it is drawn."""

    label: str
    color: str
    dash: str
    rows: list[dict[str, float]]


def curve_lines(run: Run, study: Study) -> list[Line]:
    """The training curves of a study's adapters, by KL weight and training seed."""
    trained: dict[str, tuple[float, int]] = {}
    for arm in study.arms:
        if arm.adapter_key in run.curves:
            weight, seed = arm.settings.get("kl_weight"), arm.settings.get("train_seed")
            trained[str(arm.adapter_key)] = (float(weight or 0), int(seed or 0))
    colors = style.kl_colors([weight for weight, _ in trained.values()])
    seeds = sorted({seed for _, seed in trained.values()})
    dashes = dict(zip(seeds, ("-", "--", ":", "-.") * len(seeds), strict=False))
    lines = []
    for key, (weight, seed) in sorted(trained.items(), key=lambda item: (item[1], item[0])):
        label = f"KL weight {weight:g}" + (f", seed {seed}" if len(seeds) > 1 else "")
        lines.append(Line(label, colors[weight], dashes[seed], run.curves[key]))
    return lines


def curve_panels(study: Study, lines: Sequence[Line]) -> dict[str, Drawing]:
    """Training curves, one figure for each quantity."""
    panels = {}
    for key in CURVES:
        figure, ax = style.canvas(3.9, 2.7)
        _curve(ax, study, key, lines)
        panels[key] = Drawing(figure)
    return panels


def curves(study: Study, lines: Sequence[Line]) -> Drawing:
    """All training curves of a study in one figure."""
    figure, axes = style.canvas(11.7, 6.6, 2, 3)
    figure.suptitle(f"{study.title}: training", x=0.005, ha="left", fontsize=11, weight="bold")
    note = "Validations during training, on few images and without intervals: levels are read from the evaluation."
    figure.supxlabel(note, x=0.005, ha="left", fontsize=8, color=MUTED)
    handles = [Line2D([], [], color=line.color, linestyle=line.dash, label=line.label) for line in lines]
    figure.legend(handles=handles, loc="outside upper left", ncols=6)
    for ax, key in zip(axes.flat, CURVES, strict=True):
        _curve(ax, study, key, lines)
    return Drawing(figure)


def reward_vs_kl(run: Run, study: Study) -> Drawing | None:
    """Proxy reward, and gold where measured, against the path length to the base; None without path lengths."""
    arms = {point.arm: point for point in study.reward_vs_kl if math.isfinite(point.path)}
    if not arms:
        return None
    judged = sum(study.by_name[name].metric("gold").known for name in arms) > 1
    figure, axes = style.canvas(11.7 if judged else 7.0, 4.9, 1, 1 + judged, squeeze=False)
    title = figure.suptitle(f"{study.title}: reward against KL", x=0.005, ha="left", fontsize=11, weight="bold")
    note = f"{run.sample(study.arms)}; bars: {run.percent} intervals over prompts; lines join a family's arms by path length."
    foot = figure.supxlabel(note, x=0.005, ha="left", fontsize=8, color=MUTED)
    figure.legend(handles=_legend(study, fronts=False), loc="outside upper left", ncols=9, columnspacing=1.3)
    names = {"proxy": reward_axis(study, study.reward), "gold": reward_axis(study, "gold")}
    values = {
        "proxy": {name: point.reward for name, point in arms.items()},
        "gold": {name: study.by_name[name].metric("gold") for name in arms},
    }
    drawn = list(zip(axes[0], values, strict=False))
    for ax, kind in drawn:
        _against_kl(ax, study, {name: arms[name].path for name in arms}, values[kind])
        ax.set_ylabel(names[kind].replace(" →", ""))
        ax.set_xlabel("path length to base: mean squared difference of predictions (eps_mse)")
    style.settle(figure)
    left_out: list[str] = []
    for ax, kind in drawn:
        found = [(study.by_name[name], arms[name].path, value.value) for name, value in values[kind].items()]
        named = [labels.Label(x, y, arm.label, TEXT[arm.family], arm.family in ("base", "tuned")) for arm, x, y in found]
        bars = [(arms[name].path, value.low, arms[name].path, value.high) for name, value in values[kind].items()]
        left_out += labels.place(ax, named, bars, line_color=MUTED)
    return Drawing(figure, (title, foot), left_out=tuple(dict.fromkeys(left_out)))


def _plane(ax: Axes, study: Study, metric: str, named: Sequence[Arm], small: bool = False) -> tuple[str, ...]:
    points = {arm.name: (arm.x if metric == study.reward else arm.metric(metric), arm.y) for arm in study.arms}
    drawn = [arm for arm in study.arms if all(math.isfinite(e.value) for e in points[arm.name])]
    size = 4.5 if small else 6.0
    optimal = _optimal(study, metric, points)
    segments = []
    for family, names in _fronts(study, metric, points).items():
        if family == "all":
            continue
        steps = _staircase([(points[name][0].value, points[name][1].value) for name in names])
        ax.plot(*zip(*steps, strict=True), color=MARK.get(family, INK), linewidth=1.3, alpha=0.75, zorder=2)
        segments += [(*a, *b) for a, b in zip(steps, steps[1:], strict=False)]
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
    ax.set_xlabel(reward_axis(study, metric))
    ax.set_ylabel(f"{metric_name(study.diversity)} →")
    ax.margins(0.09 if small else 0.07)
    style.settle(ax.figure)  # type: ignore[arg-type]
    texts = [
        labels.Label(
            points[arm.name][0].value,
            points[arm.name][1].value,
            arm.label,
            TEXT[arm.family],
            arm.name in optimal or arm.family in ("base", "tuned"),
        )
        for arm in named
        if arm in drawn
    ]
    markers = [(points[arm.name][0].value, points[arm.name][1].value) for arm in drawn]
    return tuple(labels.place(ax, texts, segments, markers, 7.5 if small else 8.0, MUTED))


def _noteworthy(study: Study, metric: str) -> list[Arm]:
    """Arms that a small plane names: those that are optimal on it, base and tuned."""
    points = {arm.name: (arm.x if metric == study.reward else arm.metric(metric), arm.y) for arm in study.arms}
    optimal = _optimal(study, metric, points)
    return [arm for arm in study.arms if arm.name in optimal or arm.family in ("base", "tuned")]


def _optimal(study: Study, metric: str, points: Mapping[str, tuple[Estimate, Estimate]]) -> set[str]:
    if metric == study.reward:
        return {arm.name for arm in study.arms if arm.on_front}
    return set(_front(points, list(points)))


def _fronts(study: Study, metric: str, points: Mapping[str, tuple[Estimate, Estimate]]) -> Mapping[str, Sequence[str]]:
    """Arms on each family's front: front.json's where it has this plane, else found at the means.

    Every family reaches the base and the tuned model (KL weight 0, LoRA scale 0 and 1, ...): they belong to each.
    """
    if metric in study.planes:
        return {family: [n for n in names if n in points] for family, names in study.planes[metric].fronts.items() if names}
    ends = [arm.name for arm in study.arms if arm.family in ("base", "tuned")]
    members = {f: ends + [arm.name for arm in study.arms if arm.family == f] for f in study.families if f not in ("base", "tuned")}
    return {family: _front(points, names) for family, names in members.items()}


def _front(points: Mapping[str, tuple[Estimate, Estimate]], names: list[str]) -> list[str]:
    values = np.array([[points[name][0].value, points[name][1].value] for name in names]).reshape(-1, 2)
    return [name for name, best in zip(names, optimal_mask(values), strict=True) if best]


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the boundary of what the points attain, from the leftmost point to the rightmost."""
    ordered = sorted(points)
    corners = ordered[:1]
    for (x0, _), (x1, y1) in zip(ordered, ordered[1:], strict=False):
        corners += [(x0, y1), (x1, y1)]
    return corners


def _tips(run: Run, study: Study, metric: str) -> dict[str, str]:
    tips = {}
    for i, arm in enumerate(study.arms):
        x = arm.x if metric == study.reward else arm.metric(metric)
        shown = f"{metric_name(metric)} {interval(x)}, {metric_name(study.diversity)} {interval(arm.y)}"
        tips[f"arm{i}"] = f"{arm.label} ({family_name(arm.family)}): {shown}, n = {arm.n}"
    return tips


def _legend(study: Study, fronts: bool = True) -> list[Line2D]:
    handles = []
    for family in study.families:
        line = "-" if fronts and family not in ("base", "tuned") else ""
        handle = Line2D([], [], color=MARK[family], linestyle=line, linewidth=1.3, marker=MARKER[family], markersize=5.5)
        handle.set_label(family_name(family))
        handles.append(handle)
    if fronts:
        handles.append(Line2D([], [], color=MUTED, linestyle="", marker="o", markersize=5.5, label="filled: optimal"))
        handles.append(Line2D([], [], color=MUTED, linestyle="", marker="o", markersize=5.5, label="open: dominated"))
        handles[-1].set_markerfacecolor(style.CARD)
    return handles


def _dots(ax: Axes, rows: Sequence[tuple[str, Estimate, str, str, bool]], height: int) -> None:
    """A row for each estimate: a dot with its interval, filled or open."""
    for y, (_, estimate, color, marker, filled) in enumerate(rows):
        ax.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=1.6)
        (dot,) = ax.plot(estimate.value, y, marker, color=color, markersize=6, markeredgewidth=1.3)
        dot.set_markerfacecolor(color if filled else style.CARD)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.08)


def _curve(ax: Axes, study: Study, key: str, lines: Sequence[Line]) -> None:
    drawn = False
    for line in lines:
        xy = [(row["step"], row[key]) for row in line.rows if math.isfinite(row.get(key, math.nan))]
        if xy:
            drawn = True
            marker = "o" if len(xy) < 3 else ""
            ax.plot(*zip(*xy, strict=True), line.dash, color=line.color, marker=marker, markersize=3.5)
    if not drawn:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", va="center", color=MUTED)
        ax.set(xticks=[], yticks=[])
    detail = {"reward": f" ({study.reward})", "held_out": f" ({study.held_out})" if study.held_out else ""}
    ax.set_title(f"{CURVES[key]}{detail.get(key, '')}")
    ax.set_xlabel("training step")
    ax.margins(x=0.03, y=0.08)


def _against_kl(ax: Axes, study: Study, paths: Mapping[str, float], values: Mapping[str, Estimate]) -> None:
    ends = [name for name in paths if study.by_name[name].family in ("base", "tuned")]
    for family in study.families:
        members = [name for name in paths if study.by_name[name].family == family]
        joined = sorted(members + ends, key=lambda name: paths[name])
        if family not in ("base", "tuned") and members:
            ax.plot([paths[n] for n in joined], [values[n].value for n in joined], color=MARK[family], linewidth=0.9, alpha=0.5)
        for name in members:
            x, y = paths[name], values[name]
            ax.plot([x, x], [y.low, y.high], color=MARK[family], linewidth=1.0, alpha=0.45)
            ax.plot(x, y.value, MARKER[family], color=MARK[family], markersize=5.5)
    ax.margins(0.07)
    ax.axvline(0, color=GRID, linewidth=1)
