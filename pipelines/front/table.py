"""One table of a run: every arm of every study as a row, with its settings and all that was measured of it, as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.front.results import StudyResult
from pipelines.runs.directory import RunDir

SETTINGS = (
    "label", "family", "reward", "k", "lr", "rank", "kl_weight", "train_seed", "step", "lora_scale", "schedule",
    "space", "guidance", "interval", "against", "draws",
)  # fmt: skip


def write(run: RunDir, studies: Sequence[StudyResult]) -> None:
    """Write the arms of the studies.

    `on_front` is of the proxy's plane, `on_held_out_front` of the held-out reward's. A metric has three columns, its
    value and the ends of its interval; empty if an arm was not measured by it.
    """
    rows = [row for study in studies for row in _rows(study)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with run.whole(run.table) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _rows(study: StudyResult) -> Iterator[dict[str, Any]]:
    held_out = study.planes.get(study.held_out or "")
    for arm in study.arms:
        row: dict[str, Any] = {"study": study.name, "arm": arm.name, **{name: getattr(arm, name) for name in SETTINGS}}
        row |= {"on_front": arm.name in study.plane.fronts["all"], "front_probability": arm.front_probability}
        row |= {"broken": arm.broken, "warning": arm.warning}
        row["on_held_out_front"] = arm.name in held_out.fronts["all"] if held_out else None
        for metric, (value, low, high) in arm.metrics.items():
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        row["interval"] = json.dumps(arm.interval)
        yield {key: "" if value is None or value != value else value for key, value in row.items()}
