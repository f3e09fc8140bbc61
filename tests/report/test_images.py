"""The grid of images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines.front.loading import read_front
from pipelines.report import style
from pipelines.report.images import read_grid, select
from pipelines.runs.directory import RunDir


def test_the_grid_shows_the_datasets_own_pixels(run: Path) -> None:
    study = read_front(RunDir(run)).studies[0]
    grid = read_grid(run / "images", study, prompts=2, seeds=2)
    assert grid is not None and len(grid.prompts) == 2 and grid.missing == 0
    arm = study.arms[3]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(grid.strip(arm, 1).split(",")[1]))))
    rows = [row for path in (run / "images").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    drawn = {r["seed_index"]: r["image"] for r in rows if (r["arm"], r["prompt"]) == (arm.name, grid.prompts[1])}
    for seed in (0, 1):
        pixels = np.asarray(Image.open(io.BytesIO(drawn[seed])))
        np.testing.assert_array_equal(strip[:, seed * 17 : seed * 17 + 16, :3], pixels)


def test_arms_for_a_picture_are_thinned_inside_families_and_keep_base_and_tuned(run: Path) -> None:
    arms = read_front(RunDir(run)).studies[0].arms
    chosen = select(arms, 9)
    assert len(chosen) == 9 and {arm.family for arm in chosen} == {arm.family for arm in arms}
    assert select(arms, 100) == sorted(arms, key=lambda arm: list(style.MARK).index(arm.family))
