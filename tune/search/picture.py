"""The picture of a search: what was tried, what held on other prompts, and the curves themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from aig import schedules
from aig.pareto import optimal_mask
from pipelines.front.names import metric_name
from pipelines.report import style
from pipelines.report.labels import Label, place
from tune.search.plan import ENDS, HELD_OUT, SEARCH, Plan

if TYPE_CHECKING:
    from tune.search.run import Trial

# Okabe and Ito's colours, and a mark each, for those who see no colour.
FAMILIES = {
    "power": ("#0072b2", "o"), "step": ("#e69f00", "s"), "constant": ("#56b4e9", "^"), "monotone": ("#cc79a7", "v"),
    "free": ("#009e73", "D"), "ramp": ("#b8a900", "P"), "scaled": ("#8c510a", "p"),
}  # fmt: skip
FOUND = "#d55e00"


def draw(result: dict[str, Any], trials: Sequence[Trial], plan: Plan, path: Path) -> None:
    """Write the picture as PNG."""
    with style.style():
        figure, (left, middle, right) = style.canvas(
            12.6, 4.9, 1, 3, top=style.HEAD + 0.28, bottom=style.FOOT + 0.42, between=(0.66, 0.8)
        )
        unnamed = [*_cloud(left, result, trials), *_validation(middle, result), *_curves(right, result)]
        title = f"Schedules for {plan.adapter}: searched, then validated on prompts that the search has not seen"
        style.mention(style.annotate(figure, title, _note(result), _legend(trials)), unnamed)
        style.save_png(figure, path)


def _cloud(ax: Axes, result: dict[str, Any], trials: Sequence[Trial]) -> list[str]:
    """Every candidate, and what was kept of them; returns the names for which there was no room, as those below do."""
    x, y = result["x"], result["y"]
    for family, (color, marker) in FAMILIES.items():
        own = [trial.values for trial in trials if trial.candidate.family == family]
        ax.plot([v[x] for v in own], [v[y] for v in own], marker, color=color, markersize=3.6, alpha=0.7, mew=0)
    cloud = np.array([[trial.values[x], trial.values[y]] for trial in trials])
    _front(ax, cloud, style.MUTED)
    ax.set_title(f"Search set: {len(trials)} candidates")
    return _plane(ax, result, SEARCH, intervals=False)


def _validation(ax: Axes, result: dict[str, Any]) -> list[str]:
    ax.set_title(f"Held-out set: {result['prompts'][HELD_OUT]} prompts")
    return _plane(ax, result, HELD_OUT, intervals=True)


def _plane(ax: Axes, result: dict[str, Any], which: str, intervals: bool) -> list[str]:
    """The references and the found schedules, by name, and the front of each with base and tuned."""
    x, y = result["x"], result["y"]
    names: list[Label] = []
    for found, color in ((False, style.INK), (True, FOUND)):
        rows = [row for row in result["schedules"] if row["found"] == found]
        if not rows:
            continue
        values = np.array([[row[which][x], row[which][y]] for row in rows], float)  # (rows, 2, [value, low, high])
        at = values[:, :, 0]
        ends = [[row[which][m][0] for m in (x, y)] for row in result["schedules"][:2]]
        _front(ax, np.vstack([ends, at]), color)
        if intervals and np.isfinite(values).all():
            reach = np.abs(values[:, :, 1:] - values[:, :, :1]).transpose(1, 2, 0)
            ax.errorbar(*at.T, xerr=reach[0], yerr=reach[1], fmt="none", ecolor=color, elinewidth=0.8, alpha=0.45)
        ax.plot(*at.T, "*" if found else "X", color=color, markersize=10 if found else 6.5, mec=style.CARD, mew=0.6)
        names += [Label(px, py, _short(row), color, True) for row, (px, py) in zip(rows, at.tolist(), strict=True)]
    ax.set_xlabel(f"{metric_name(x)} →")
    ax.set_ylabel(f"{metric_name(y)} →")
    ax.margins(0.1)
    return place(ax, names, fontsize=7.5, line_color=style.MUTED)


def _front(ax: Axes, points: np.ndarray, color: str) -> None:
    on = points[optimal_mask(points)]
    order = on[np.argsort(on[:, 0])]
    ax.plot(*order.T, color=color, linewidth=1.0, alpha=0.6, zorder=1.5)


def _curves(ax: Axes, result: dict[str, Any]) -> list[str]:
    u = np.linspace(0, 1, 401)
    names, most = [], 1.0
    rows = [row for row in result["schedules"] if row["schedule"] not in ENDS]
    for i, row in enumerate(rows):
        curve = schedules.parse(row["schedule"])
        w = [curve(x) for x in u.tolist()]
        most = max(most, *w)
        color = FOUND if row["found"] else style.MUTED
        ax.plot(u, w, color=color, linewidth=1.8 if row["found"] else 0.9, linestyle="-" if row["found"] else ":")
        at = int(40 + 340 * i / len(rows))  # each name at another progress, where curves are apart
        names.append(Label(u[at], w[at], _short(row), color, True))
    ax.set_xlabel("progress u = i/T")
    ax.set_ylabel("weight of the tuned model")
    ax.set_ylim(-0.03 * most, 1.08 * most)
    ax.set_title("Curves")
    return place(ax, names, fontsize=7.5, line_color=style.MUTED)


def _short(row: dict[str, Any]) -> str:
    """A found schedule by its number."""
    return row["name"].rpartition("-")[2] if row["found"] else row["name"]


def _legend(trials: Sequence[Trial]) -> list[Line2D]:
    present = {trial.candidate.family for trial in trials}
    marks = {family: mark for family, mark in FAMILIES.items() if family in present}
    marks |= {"published, base, tuned": (style.INK, "X"), "found": (FOUND, "*")}
    return [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=6, label=label)
        for label, (color, marker) in marks.items()
    ]


def _note(result: dict[str, Any]) -> str:
    seeds, prompts = result["seeds"], result["prompts"]
    sets = ", ".join(f"{name.replace('_', '-')} {prompts[name]} prompts × {seeds[name]} seeds" for name in prompts)
    trained = result["held_out_prompts_trained_on"]
    if trained:
        sets += f" ({trained} of them in the adapter's training)"
    return (
        f"{result['statement']}\n{sets}; {100 * result['level']:g} % intervals from {result['n_bootstrap']} bootstrap "
        "replicates, paired over prompts. Lines: fronts, with base and tuned as ends."
    )
