"""Puts names beside points so that none overlaps another, a point or the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

_RADII = (7, 11, 17, 25, 35, 47, 61, 77)  # points from the marker to the label's edge
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_LEADER_FROM = 10  # a label further away gets a line to its point
_COLLISION = 1e4


@dataclass(frozen=True)
class Label:
    """A name for the point (x, y), in the axes' data units."""

    x: float
    y: float
    text: str
    color: str
    needed: bool = False
    """Dropped last if there is no room."""


def place(
    ax: Axes,
    labels: Sequence[Label],
    segments: Sequence[tuple[float, float, float, float]] = (),
    points: Sequence[tuple[float, float]] = (),
    fontsize: float = 8.0,
    line_color: str = "#888888",
    halo: str = "#ffffff",
    reach: float = 80.0,
) -> list[str]:
    """Draw labels, with lines to distant points, and return the texts for which there was no room.

    segments: (x0, y0, x1, y1), horizontal or vertical, in data units: labels avoid covering them.
    points: other markers, never covered. reach: how far a label may stand from its point, in typographic points.
    Each label takes the cheapest of the places around its point, in rounds, until none wants to move. All else must be
    drawn before: the axes' limits are fixed here.
    """
    labels = [label for label in labels if np.isfinite([label.x, label.y]).all()]
    if not labels:
        return []
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    scale = ax.figure.dpi / 72
    anchors = ax.transData.transform([(label.x, label.y) for label in labels])
    others = [p for p in points if np.isfinite(p).all()]
    markers = np.concatenate([anchors, ax.transData.transform(others)]) if others else anchors
    sizes = _sizes(ax, labels, fontsize) + 2.5 * scale
    candidates = [_candidates(anchor, size, scale, reach) for anchor, size in zip(anchors, sizes, strict=True)]
    fixed = _fixed_costs(ax, anchors, markers, candidates, _boxes(ax, segments), scale)
    # Crowded points choose first.
    near = (np.abs(anchors[:, None] - markers[None]) < 60 * scale).all(-1).sum(1)
    chosen = _choose(anchors, candidates, fixed, np.argsort(-near, kind="stable"), scale)
    kept = _without_collisions(labels, candidates, chosen, fixed)
    for i in kept:
        box, away = candidates[i][0][chosen[i]], candidates[i][1][chosen[i]]
        to_data = ax.transData.inverted().transform
        if away > _LEADER_FROM * scale:
            (x0, y0), (x1, y1) = to_data(anchors[i]), to_data(np.clip(anchors[i], box[:2], box[2:]))
            ax.plot([x0, x1], [y0, y1], color=line_color, linewidth=0.6, zorder=3.5, scalex=False, scaley=False)
        x, y = to_data((box[:2] + box[2:]) / 2)
        text = ax.text(x, y, labels[i].text, fontsize=fontsize, color=labels[i].color, zorder=6, parse_math=False)
        text.set(ha="center", va="center", path_effects=[withStroke(linewidth=2.2, foreground=halo)])
    return [label.text for i, label in enumerate(labels) if i not in kept]


_Candidates = tuple[np.ndarray, np.ndarray]
"""A label's boxes (places, 4) and their distances from its point (places,)."""


def _fixed_costs(
    ax: Axes, anchors: np.ndarray, markers: np.ndarray, candidates: list[_Candidates], thin: np.ndarray, scale: float
) -> list[np.ndarray]:
    """What each place of each label costs, whatever the other labels do."""
    frame = _frame(ax)
    solid = np.concatenate([markers - 4.5 * scale, markers + 4.5 * scale], 1)  # (points, 4): left, bottom, right, top
    costs = []
    for i, (boxes, away) in enumerate(candidates):
        outside = (boxes[:, :2] < frame[:2]).any(1) | (boxes[:, 2:] > frame[2:]).any(1)
        leaders = _leaders(anchors[i], boxes, away > _LEADER_FROM * scale)
        foreign = np.delete(solid, i, axis=0)
        cost = away / scale + _COLLISION * outside + _COLLISION * _overlap(boxes, solid).any(1)
        costs.append(cost + 5.0 * (_overlap(boxes, thin) > 0).sum(1) + 60.0 * _crosses(leaders, foreign).sum(1))
    return costs


def _choose(
    anchors: np.ndarray, candidates: list[_Candidates], fixed: list[np.ndarray], order: np.ndarray, scale: float
) -> dict[int, int]:
    """The place of each label, by turns in this order until none wants to move."""
    chosen: dict[int, int] = {}
    for _ in range(8):
        moved = False
        for i in order:
            boxes, away = candidates[i]
            placed = [j for j in chosen if j != i]
            taken = np.array([candidates[j][0][chosen[j]] for j in placed]).reshape(-1, 4)
            lines = [_leaders(anchors[j], *_one(candidates[j], chosen[j], scale))[0] for j in placed]
            own = _leaders(anchors[i], boxes, away > _LEADER_FROM * scale)
            cost = fixed[i] + _COLLISION * (_overlap(boxes, taken) > 0).sum(1) + 60.0 * _crosses(own, taken).sum(1)
            cost = cost + 60.0 * _covers(boxes, lines)
            best = int(cost.argmin())
            moved |= chosen.get(i) != best
            chosen[i] = best
        if not moved:
            break
    return chosen


def _frame(ax: Axes) -> np.ndarray:
    box = ax.get_window_extent()
    return np.array([box.x0, box.y0, box.x1, box.y1])


def _sizes(ax: Axes, labels: Sequence[Label], fontsize: float) -> np.ndarray:  # (labels, 2)
    renderer = ax.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    sizes = []
    for label in labels:
        text = ax.text(0, 0, label.text, fontsize=fontsize, parse_math=False)
        box = text.get_window_extent(renderer)
        sizes.append((box.width, box.height))
        text.remove()
    return np.array(sizes)


def _boxes(ax: Axes, segments: Sequence[tuple[float, float, float, float]]) -> np.ndarray:  # (segments, 4)
    if not segments:
        return np.zeros((0, 4))
    ends = ax.transData.transform(np.array(segments, float).reshape(-1, 2)).reshape(-1, 2, 2)
    ends = ends[np.isfinite(ends).all((1, 2))]
    return np.concatenate([ends.min(1) - 0.5, ends.max(1) + 0.5], 1)


def _candidates(anchor: np.ndarray, size: np.ndarray, scale: float, reach: float) -> _Candidates:
    """Boxes around the point."""
    direction = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
    centers = np.concatenate([anchor + direction * (radius * scale + size / 2) for radius in _RADII if radius <= reach])
    boxes = np.concatenate([centers - size / 2, centers + size / 2], 1)
    gap = np.clip(anchor, boxes[:, :2], boxes[:, 2:]) - anchor
    return boxes, np.hypot(gap[:, 0], gap[:, 1])


def _one(candidate: _Candidates, index: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    boxes, away = candidate
    return boxes[index : index + 1], away[index : index + 1] > _LEADER_FROM * scale


def _leaders(anchor: np.ndarray, boxes: np.ndarray, drawn: np.ndarray) -> np.ndarray:  # (places, 12, 2)
    """Points along the line to each box; all at the box if no line is drawn."""
    end = np.clip(anchor, boxes[:, :2], boxes[:, 2:])
    start = np.where(drawn[:, None], anchor, end)
    along = np.linspace(0, 1, 12)[None, :, None]
    return start[:, None] + along * (end - start)[:, None]


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # (a, b): area shared
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.clip(sides, 0, None).prod(-1)


def _crosses(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:  # (lines, boxes): bool
    inside = (lines[:, None] > boxes[None, :, None, :2]) & (lines[:, None] < boxes[None, :, None, 2:])
    return np.asarray(inside.all(-1).any(-1))


def _covers(boxes: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:  # (boxes,): how many lines run through each
    return _crosses(np.stack(lines), boxes).sum(0) if lines else np.zeros(len(boxes))


def _without_collisions(
    labels: Sequence[Label],
    candidates: list[_Candidates],
    chosen: dict[int, int],
    fixed: list[np.ndarray],
) -> set[int]:
    """The labels left once those that still collide are dropped, needed ones last."""
    kept: list[int] = []
    for i in sorted(chosen, key=lambda i: (not labels[i].needed, i)):
        box = candidates[i][0][chosen[i]][None]
        taken = np.array([candidates[j][0][chosen[j]] for j in kept]).reshape(-1, 4)
        if fixed[i][chosen[i]] < _COLLISION and not _overlap(box, taken).any():
            kept.append(i)
    return set(kept)
