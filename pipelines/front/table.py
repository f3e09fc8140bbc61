"""One table of a run: a row an arm of a study, with its settings and all that was measured of it, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.runs.directory import RunDir
from pipelines.study.arms import Study, StudyArm

SETTINGS = ("reward", "k", "lr", "rank", "kl_weight", "train_seed", "step")


def write(run: RunDir, studies: Sequence[Study], found: Sequence[Mapping[str, Any]]) -> None:
    """Write the arms of the studies; `found` has what `front.json` says of each study.

    `on_front` is of the proxy's plane, `on_held_out_front` of the held-out reward's. A metric has three columns, its
    value and the ends of its interval; empty where an arm was not measured by it.
    """
    rows = [row for study, said in zip(studies, found, strict=True) for row in _rows(study, said)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with run.whole(run.table) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _rows(study: Study, said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for arm, entry in zip(study.arms, said["arms"], strict=True):
        row = {"study": study.name, "arm": arm.arm.name, "label": arm.label, "family": arm.family, **_settings(arm)}
        row |= {key: entry[key] for key in ("on_front", "front_probability", "broken", "warning")}
        elsewhere = said["planes"].get(said["held_out"])
        row |= {"on_held_out_front": arm.arm.name in elsewhere["fronts"]["all"] if elsewhere else None}
        for metric, (value, low, high) in entry["metrics"].items():
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        yield {key: "" if value is None or value != value else value for key, value in row.items()}


def _settings(arm: StudyArm) -> dict[str, Any]:
    """What the arm's adapter was trained with, and how it samples; a mean over training seeds has none of its own."""
    trained = {name: getattr(arm, name) for name in SETTINGS}
    return {**trained, "lora_scale": arm.arm.lora_scale, "schedule": arm.arm.schedule}
