"""Rivals of annealing in the results and in the report."""

from __future__ import annotations

import csv
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import reported_runs
from PIL import Image
from reported_runs import PROXY

from pipelines.front.loading import read_front
from pipelines.report import write_report
from pipelines.report.images import read_grid
from pipelines.runs.directory import RunDir

KEY = "pipeline_toys-red-k1"
RIVALS = (
    "evaluate.guidance=['5', '7@0.2-0.8']", "evaluate.autoguidance=['2=1.5']", "evaluate.best_of=[3]",
    f"evaluate.soups=['{KEY}-kl0=0.5|{KEY}-kl10=0.5']",
)  # fmt: skip
FAMILIES = {
    "guidance": "other guidance scales", "autoguidance": "autoguidance", "best": "best-of-n of the base",
    "soup": "averaged adapters (rewarded soups)",
}  # fmt: skip
DRAWS = ("base", "base draw 2", "base draw 3")


def differ(name, columns):
    """Give each draw of the base scores of its own."""
    reported_runs.shine(name, columns)
    if name in DRAWS:
        noise = np.random.default_rng([DRAWS.index(name), *np.abs(columns["features"][:, 0] * 1e6).astype(int)])
        columns[PROXY] = columns[PROXY] + noise.normal(size=len(columns[PROXY]))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return reported_runs.build(tmp_path_factory.mktemp("rivals"), *RIVALS, change=differ).directory


def test_annealing_is_compared_with_every_rival_and_the_page_names_them(root):
    (study,) = read_front(RunDir(root)).studies
    assert set(FAMILIES) <= {difference.b for difference in study.plane.differences if difference.a == "aig"}
    assert study.trainings["soup"] == 2
    page = write_report(root).read_text()
    for name in FAMILIES.values():
        assert name in page
    assert "best-of-n shows what it keeps of several draws" in page
    assert "Best-of-n draws n images of the base" in page and "base draw 2" not in page
    with RunDir(root).table.open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert {row["draws"] for row in rows.values()} == {"1", "3"} and rows[f"best of 3 by {PROXY}"]["draws"] == "3"


def test_the_grid_shows_the_images_that_best_of_n_keeps(root):
    (study,) = read_front(RunDir(root)).studies
    grid = read_grid(root / "images", study, prompts=3, seeds=3)
    assert grid is not None and grid.missing == 0
    rows = [row for path in (root / "images").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    kept = set()
    for p, prompt in enumerate(grid.prompts):
        for seed in grid.seeds:
            drawn = [
                row for row in rows if (row["prompt"], row["seed_index"]) == (prompt, seed) and row["arm"] in DRAWS
            ]
            winner = max(drawn, key=lambda row: row[PROXY])
            kept.add(winner["arm"])
            image = Image.open(io.BytesIO(winner["image"]))
            np.testing.assert_array_equal(grid.cells[f"best of 3 by {PROXY}", p, seed], image)
    assert len(kept) > 1
