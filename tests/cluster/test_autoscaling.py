"""An evaluation on a cluster that scales itself: Ray's own autoscaler, with nodes that are processes of this host."""

import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_toys import HERE, overrides

from aig.world.tiny import build_pipeline
from benchmarks import autoscaling
from benchmarks.pipeline import loop
from pipelines import config as configuration
from pipelines.evaluate import generate
from pipelines.runs.directory import RunDir

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))


def images(found):
    """Everything that was written, by id."""
    files = sorted(RunDir.of(found).images.glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(path).replace_schema_metadata(None) for path in files])
    return table.sort_by("id").to_pandas()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nodes_come_with_the_work_and_go_after_it_and_a_killed_one_changes_nothing(tmp_path):
    build_pipeline(0).save_pretrained(tmp_path / "untrained")
    toys = [text for text in overrides(tmp_path / "untrained", tmp_path) if not text.startswith("run.storage")]
    with autoscaling.fake_cluster() as cluster:
        found = autoscaling.evaluation(tmp_path / "cluster", cluster.address, [*toys, "evaluate.generators=3"])
        assert cluster.nodes() == []
        recording = autoscaling.record(cluster, found)
        assert all(gone is not None for _, _, gone in cluster.nodes())  # but the head, which has no CPUs
    came = [first for first, _ in recording.nodes]
    assert sum(first < recording.killed for first in came) >= 2
    assert sum(first > recording.killed for first in came) >= 1
    assert recording.killed < max(recording.units)

    alone = autoscaling.evaluation(tmp_path / "alone", None, toys)
    (tmp_path / "alone.yaml").write_text(configuration.to_yaml(alone))
    loop(tmp_path / "alone.yaml", generate.Generator)
    pd.testing.assert_frame_equal(images(found), images(alone), check_exact=True)  # a NaN equals a NaN here


def test_a_picture_shows_the_nodes_and_the_rate(tmp_path):
    recording = autoscaling.Recording([(3.0, 40.0), (5.0, 20.0)], [10.0, 12.0, 30.0], 8, 20.0, 31.0)
    autoscaling.draw(recording, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
