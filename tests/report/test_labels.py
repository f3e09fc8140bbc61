"""Names beside points."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report import labels, planes, style


def test_a_staircase_bounds_what_its_points_attain() -> None:
    assert planes.staircase([(2, 1), (0, 3), (1, 2)]) == [(0, 3), (0, 2), (1, 2), (1, 1), (2, 1)]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=14), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_names_never_cover_each_other_or_a_point_or_leave_the_frame(
    points: list[tuple[float, float]], crowding: int
) -> None:
    points = [(x / 4**crowding, y / 4**crowding) for x, y in points] + [(1.0, 1.0)]
    with style.style():
        figure, ax = style.canvas(5, 4)
        ax.plot(*zip(*points, strict=True), "o", markersize=4)
        named = [labels.Label(x, y, f"arm number {i}", "black") for i, (x, y) in enumerate(points)]
        left_out = labels.place(ax, named)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) + len(left_out) == len(points)
    frame = ax.get_window_extent()
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*ax.transData.transform(point)) for point in points)


def test_names_that_stand_free_are_all_placed() -> None:
    _, ax = style.canvas(6, 5)
    ax.plot(range(10), range(10), "o")
    assert labels.place(ax, [labels.Label(i, i, f"arm {i}", "black") for i in range(10)]) == []
    assert len(ax.texts) == 10
