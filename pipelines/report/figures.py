"""The other figures: hypervolumes, training curves, reward against KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipelines.front.families import FAMILIES, OURS, members
from pipelines.front.names import DISTANCES, GOLD, ROLES
from pipelines.front.results import Arm, Difference, Front, StudyResult
from pipelines.report import labels, style
from pipelines.report.drawing import Drawing, cross_out, legend, reward_axis
from pipelines.report.reading import Run, Validation
from pipelines.report.style import GRID, INK, MARK, MARKER, MUTED, TEXT
from pipelines.report.words import against_rivals, path_note, sample
from pipelines.show.estimates import UNKNOWN, Estimate

CURVES = {
    "reward": "proxy reward",
    "held_out": "held-out reward",
    "gold": "gold",
    "accuracy": "prompt accuracy",
    "diversity": "diversity",
    "path": "path length to base (eps_mse)",
    "kl_to_base": "path KL to base (nats)",
}
"""Columns of curves/*.jsonl that are drawn, and their names; of the last two, the KL if sampling has one."""


_Row = tuple[str, Estimate | None, str, str, bool]  # name, estimate, colour, marker, filled


def hypervolume_panels(study: StudyResult) -> list[Drawing]:
    """Hypervolume of each family, and differences between families, on each plane with intervals: one figure each."""
    volumes, differences = _margins(study)
    drawings = []
    for metric, plane in study.planes.items():
        for draw, left, count in (
            (_volumes, volumes, len(plane.hypervolume)),
            (_differences, differences, len(plane.differences)),
        ):
            rows = max(2, count)
            figure, ax = style.canvas(left + 3.3, 0.85 + 0.3 * rows, left=left, top=0.35, bottom=0.5)
            draw(ax, study, metric, rows)
            drawings.append(Drawing(figure))
    return drawings


def hypervolumes(front: Front, study: StudyResult) -> Drawing:
    """Hypervolumes and their differences on every plane in one figure."""
    rows, count, (volumes, differences) = _rows(study), len(study.planes), _margins(study)
    size = (volumes + differences + 6.6, 0.7 + (0.85 + 0.32 * rows) * count)
    margins: dict[str, Any] = {"left": volumes, "top": 0.7, "bottom": 0.85, "between": (differences, 0.85)}
    figure, axes = style.canvas(*size, count, 2, squeeze=False, **margins)
    note = f"{sample(front, study)}; {front.percent} intervals over prompts, paired."
    style.annotate(figure, f"{study.title}: hypervolume", note, ())
    for metric, (left, right) in zip(study.planes, axes, strict=True):
        _volumes(left, study, metric, rows)
        _differences(right, study, metric, rows)
    return Drawing(figure)


def _rows(study: StudyResult) -> int:
    return max(2, *(max(len(plane.hypervolume), len(plane.differences)) for plane in study.planes.values()))


def _margins(study: StudyResult) -> tuple[float, float]:
    """Room in inches for the names of families, and of their differences."""
    names = [study.short(family) for family in study.plane.hypervolume]
    pairs = [_less(study, d.a, d.b) for plane in study.planes.values() for d in plane.differences]
    names_room, pairs_room = (0.25 + 0.074 * max(map(len, texts), default=0) for texts in (names, pairs))
    return names_room, pairs_room


def _less(study: StudyResult, a: str, b: str) -> str:
    return f"{study.short(a)} − {study.short(b)}"


def reference(study: StudyResult) -> str:
    """Where hypervolumes start on each plane, and in which units they are."""
    several = len(study.planes) > 1
    return "; ".join(
        (f"on {study.role_of(metric)} " if several else "") + _box(study, metric) for metric in study.planes
    )


def _box(study: StudyResult, metric: str) -> str:
    (x, y), (unit_x, unit_y) = study.planes[metric].reference, study.planes[metric].scale
    return f"from reference ({x:.4g}, {y:.4g}), in units of ({unit_x:.4g}, {unit_y:.4g})".replace("-", "−")


def overview(front: Front) -> Drawing | None:
    """Annealing less each rival in every setting, by each reward in a column; None if nothing was compared.

    A setting of several training seeds stands once, as their mean.
    """
    studies = [study for study in front.studies if study.leading]
    roles = [role for role in ROLES if any(study.metric_of(role) for study in studies)]
    columns: list[list[_Row]] = [[] for _ in roles]
    for study in studies:
        pairs = [(d.a, d.b) for d in against_rivals(study.plane.differences)]
        for role, rows in zip(roles, columns, strict=True):
            metric = study.metric_of(role)
            compared = against_rivals(study.planes[metric].differences) if metric else []
            by_pair = {(d.a, d.b): d for d in compared}
            rows.append((study.title, None, INK, "", False))
            for ours, other in pairs:
                difference = by_pair.get((ours, other), Difference(ours, other, UNKNOWN))
                color, marker = MARK.get(other, INK), MARKER.get(other, "o")
                rows.append((_less(study, ours, other), difference.estimate, color, marker, difference.decided))
    height = len(columns[0])
    if height == len(studies):
        return None
    left = 0.4 + 0.074 * max(len(row[0]) for row in columns[0])
    margins: dict[str, Any] = {"left": left, "top": 0.75, "bottom": style.FOOT + 0.1, "between": (0.3, 0.0)}
    shape = (left + 2.6 * len(roles), 1.9 + 0.22 * height, 1, len(roles))
    figure, axes = style.canvas(*shape, squeeze=False, sharex=True, **margins)
    note = f"{front.prompts} prompts × {front.seeds} seeds; {front.percent} intervals; filled: ahead or behind."
    apart = style.annotate(figure, "Annealing against the other families", note, ())
    for ax, role, rows in zip(axes[0], roles, columns, strict=True):
        _dots(ax, rows, height)
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set_title(f"{role} × diversity")
        if ax is not axes[0][0]:
            ax.set_yticklabels([])
    axes[0][0].set_xlabel("difference in hypervolume (right of zero: the first is ahead)", loc="left")
    return Drawing(figure, apart)


def ordered_differences(differences: Sequence[Difference]) -> list[Difference]:
    """Those of annealing first, always as it less the other, then the rest."""
    return against_rivals(differences) + [d for d in differences if d.a not in OURS and d.b not in OURS]


@dataclass(frozen=True)
class Line:
    """One adapter's training curve and how it is drawn."""

    label: str
    color: str
    dash: Any
    rows: Sequence[Validation]


def curve_lines(run: Run, study: StudyResult) -> list[Line]:
    """The training curves of a study's adapters, by KL weight and training seed."""
    names = ("kl_weight", "train_seed", "lr", "rank")
    trained: dict[str, dict[str, Any]] = {}
    for arm in (drawn for mean in study.arms for drawn in run.drawn(mean)):
        if arm.training in run.curves:
            own = {name: getattr(arm, name) or 0 for name in names}
            trained[str(arm.training)] = {"kl": (own.pop("kl_weight"), arm.kl_steps or ""), **own}
    values = {name: sorted({own[name] for own in trained.values()}) for name in ("kl", *names[1:])}
    colors = style.kl_colors(values["kl"])
    dashes = dict(zip(values["train_seed"], ("-", "--", ":", "-.") * len(trained), strict=False))
    lines = []
    for key, own in sorted(trained.items(), key=lambda item: (*item[1].values(), item[0])):
        weight, steps = own["kl"]
        label = f"KL weight {weight:g}" + (f" ({steps} steps)" if steps else "")
        for name, word in (("train_seed", "seed"), ("lr", "lr"), ("rank", "rank")):
            label += f", {word} {own[name]:g}" if len(values[name]) > 1 else ""
        label += " (stopped)" if key in run.stopped else ""
        lines.append(Line(label, colors[own["kl"]], dashes[own["train_seed"]], run.curves[key]))
    return lines


def curve_keys(lines: Sequence[Line]) -> list[str]:
    """The six quantities that are drawn."""
    has_kl = any(math.isfinite(row.kl_to_base) for line in lines for row in line.rows)
    return [key for key in CURVES if key != ("path" if has_kl else "kl_to_base")]


def curve_panels(study: StudyResult, lines: Sequence[Line]) -> dict[str, Drawing]:
    """Training curves, one figure for each quantity."""
    panels = {}
    for key in curve_keys(lines):
        figure, ax = style.canvas(3.3, 2.4, left=0.5, top=0.3, bottom=0.48)
        _curve(ax, study, key, lines)
        panels[key] = Drawing(figure)
    return panels


def curves(study: StudyResult, lines: Sequence[Line]) -> Drawing:
    """All training curves of a study in one figure."""
    rows = math.ceil(len(lines) / 6)
    figure, axes = style.canvas(11.7, 6.4 + 0.2 * rows, 2, 3, left=0.5, top=0.75 + 0.2 * rows, bottom=style.FOOT)
    note = "Validations during training, on few images and without intervals: levels are read from the evaluation."
    handles = [Line2D([], [], color=line.color, ls=line.dash, label=line.label) for line in lines]
    style.annotate(figure, f"{study.title}: training", note, handles, columns=math.ceil(len(lines) / max(1, rows)))
    for ax, key in zip(axes.flat, curve_keys(lines), strict=True):
        _curve(ax, study, key, lines)
    return Drawing(figure)


def reward_vs_kl(run: Run, study: StudyResult) -> tuple[Drawing, list[Drawing]] | None:
    """The rewards of each plane against the distance to the base; None if that was not measured.

    All in one figure, and one figure each. A KL in nats has a logarithmic axis, on which the base is a level, and a
    ring where gold is below the base's: figure 6 of arXiv 2409.06493, with where the model breaks down.
    """
    if not any(math.isfinite(arm.metric(study.distance).value) for arm in study.arms):
        return None
    note = f"{sample(run.front, study)}; bars: {run.front.percent} intervals over prompts; lines join each family's "
    note = f"{note}arms. {path_note(run)}".rstrip()
    width, handles = 5.8 * len(study.planes), legend(study, fronts=False)
    if sunken(study):
        handles.append(Line2D([], [], linestyle="", label="gold below the base's", **RING))
    margins: dict[str, Any] = {"top": style.head(width, handles), "bottom": style.FOOT, "squeeze": False}
    whole, axes = style.canvas(width, 5.0, 1, len(study.planes), **margins)
    apart = style.annotate(whole, f"{study.title}: reward against {distance_name(study)}", note, handles)
    style.mention(apart, [n for ax, m in zip(axes[0], study.planes, strict=True) for n in _against_kl(ax, study, m)])
    panels = []
    for metric in study.planes:
        figure, ax = style.canvas(5.4, 4.0)
        panels.append(Drawing(figure, left_out=tuple(_against_kl(ax, study, metric))))
    return Drawing(whole), panels


def distance_name(study: StudyResult) -> str:
    """What arms are drawn against: a KL in nats if sampling has one, else a path length, which is none."""
    return "KL" if study.distance == "kl_to_base" else "path length"


def _volumes(ax: Axes, study: StudyResult, metric: str, height: int) -> None:
    order = list(FAMILIES)
    volumes = sorted(
        study.planes[metric].hypervolume.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99
    )
    _dots(ax, [(study.short(f), v, MARK.get(f, INK), MARKER.get(f, "o"), True) for f, v in volumes], height)
    ax.set_title(f"hypervolume by {study.role_of(metric)}")
    ax.set_xlabel(_box(study, metric), loc="left", fontsize=8, color=MUTED)


def _differences(ax: Axes, study: StudyResult, metric: str, height: int) -> None:
    rows = []
    for d in ordered_differences(study.planes[metric].differences):
        rows.append((_less(study, d.a, d.b), d.estimate, MARK.get(d.a, INK), "o", d.decided))
    _dots(ax, rows, height)
    ax.axvline(0, color=MUTED, linewidth=1)
    ax.set_title(f"difference at equal size by {study.role_of(metric)}")
    ax.set_xlabel("filled: ahead or behind", loc="left", fontsize=8, color=MUTED)


def _dots(ax: Axes, rows: Sequence[_Row], height: int) -> None:
    """A row for each estimate: a dot with its interval, filled or open; a row without an estimate is a heading."""
    for y, (_, estimate, color, marker, filled) in enumerate(rows):
        if estimate is None:
            continue
        ax.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=1.6)
        (dot,) = ax.plot(estimate.value, y, marker, color=color, markersize=6, markeredgewidth=1.3)
        dot.set_markerfacecolor(color if filled else style.CARD)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    for text, row in zip(ax.get_yticklabels(), rows, strict=True):
        text.set_fontweight("normal" if row[1] else "bold")
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _curve(ax: Axes, study: StudyResult, key: str, lines: Sequence[Line]) -> None:
    drawn = False
    for line in lines:
        xy = [(row.step, getattr(row, key)) for row in line.rows if math.isfinite(getattr(row, key))]
        if xy:
            drawn = True
            marker = "o" if len(xy) < 3 else ""
            ax.plot(*zip(*xy, strict=True), linestyle=line.dash, color=line.color, marker=marker, markersize=3.5)
    if not drawn:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", va="center", color=MUTED)
        ax.set(xticks=[], yticks=[])
    detail = {"reward": f" ({study.reward})", "held_out": f" ({study.held_out})" if study.held_out else ""}
    ax.set_title(f"{CURVES[key]}{detail.get(key, '')}")
    ax.set_xlabel("training step")
    ax.margins(x=0.03, y=0.08)


RING: Any = {"marker": "o", "color": MARK["trial"], "markersize": 12, "fillstyle": "none", "markeredgewidth": 1.3}


def sunken(study: StudyResult) -> list[Arm]:
    """The arms whose gold is below the base's, if distances are a KL: the distance that they went was for nothing."""
    if study.distance != "kl_to_base":
        return []
    base = next(arm.metric(GOLD).value for arm in study.arms if arm.family == "base")
    return [arm for arm in study.arms if arm.metric(GOLD).value < base]


def _against_kl(ax: Axes, study: StudyResult, metric: str) -> list[str]:
    """Draws one metric against the distance, names included; returns the names for which there was no room."""
    places = [(arm, arm.metric(study.distance), study.planes[metric].points[arm.name][0]) for arm in study.arms]
    places = [place for place in places if all(math.isfinite(estimate.value) for estimate in place[1:])]
    if study.distance == "kl_to_base":
        places = _on_logarithm(ax, places)
    bars, texts = [], []
    for family in study.families:
        if family not in ("base", "tuned"):
            joined = [place for place in places if place[0].family in members(family) or place[0].is_end]
            xy = sorted((x.value, y.value) for arm, x, y in joined if not arm.broken)
            ax.plot([x for x, _ in xy], [y for _, y in xy], color=MARK[family], linewidth=0.9, alpha=0.5)
        for arm, x, y in places:
            if arm.family == family:
                own = [(x.value, y.low, x.value, y.high), (x.low, y.value, x.high, y.value)]
                for x0, y0, x1, y1 in own:
                    ax.plot([x0, x1], [y0, y1], color=MARK[family], linewidth=1.0, alpha=0.45)
                ax.plot(x.value, y.value, MARKER[family], color=MARK[family], markersize=5.5)
                bars += own
                texts.append(labels.Label(x.value, y.value, arm.title, TEXT[family], arm.is_end))
    below = sunken(study)
    for x, y in ((x.value, y.value) for arm, x, y in places if arm in below):
        ax.plot(x, y, zorder=4, **RING)
    cross_out(ax, [(x.value, y.value) for arm, x, y in places if arm.broken])
    ax.margins(0.07)
    ax.set_ylabel(reward_axis(study, metric))
    name = "path KL" if distance_name(study) == "KL" else "path length"
    ax.set_xlabel(f"{name} to base, {DISTANCES[study.distance or 'path']} →")
    return labels.place(ax, texts, bars, line_color=MUTED, reach=40.0)


_Place = tuple[Arm, Estimate, Estimate]  # an arm, its distance, its reward


def _on_logarithm(ax: Axes, places: Sequence[_Place]) -> list[_Place]:
    """Makes the distance logarithmic and draws arms at distance 0, the base, as levels; returns the others."""
    ax.set_xscale("log")
    for arm, x, y in places:
        if x.value <= 0:
            ax.axhspan(y.low, y.high, color=GRID, alpha=0.6, linewidth=0, zorder=0)
            ax.axhline(y.value, color=MARK[arm.family], linewidth=1, linestyle=":")
            look = {"transform": ax.get_yaxis_transform(), "color": TEXT[arm.family], "va": "top", "fontsize": 8}
            ax.text(0.01, y.value, arm.title, **look)
    # An interval over few prompts may reach 0, which has no place here.
    return [(arm, x._replace(low=max(x.low, x.value / 10)), y) for arm, x, y in places if x.value > 0]
