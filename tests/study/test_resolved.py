"""A resolved study: made once, the same wherever it travels, and independent of the records that it was made from."""

import json
import pickle

import pyarrow.parquet as pq
import pytest
from measured_runs import BRIGHT, RED, TUNED, build, refuse_ray, settings

from aig.models import TinyModel
from pipelines.config import ConfigError
from pipelines.evaluate import generate
from pipelines.evaluate import images as dataset
from pipelines.front import front
from pipelines.measure import measure
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve, resolve_images
from pipelines.study.trials import Record

SEEDS = "sweep.train_seeds=[0, 1]"


def test_a_study_names_arms_means_and_prompts_once(tmp_path):
    found = settings(tmp_path, SEEDS)
    study = resolve(found)
    assert len(study.prompts) == 6 and [single.train_seeds for single in study.studies] == [(0, 1), (0,), (1,)]
    assert [arm.arm.name for arm in study.arms].count("base") == 1 and len(study.arms) == 1 + 2 * 4
    mean = next(arm for arm in study.mean_arms if arm.family == "tuned")
    assert mean.members == (TUNED, TUNED.replace("-s0", "-s1"))


def test_nobody_reads_the_sweeps_record_again_after_a_study_is_resolved(tmp_path):
    found = build(settings(tmp_path, SEEDS))
    Record(errored={"nothing": "of this run"}).write(found)
    study = resolve_images(found, TinyModel.defaults)
    assert study.notes == ("left out, since its training failed: nothing",)
    RunDir.of(found).sweep.write_text("spoilt")
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read"):
        resolve(found)
    assert generate.generate(study, refuse_ray) == 0
    images = dataset.read(study, without=measure.UNNEEDED)
    table = measure.measure(study, images, "a command", refuse_ray)
    assert table.arms == [arm.arm.name for arm in (*study.arms, *study.mean_arms)]
    assert len(json.loads(front.write_front(study).read_text())["studies"]) == 3
    ids = pq.read_table(images.paths[0], columns=["arm_id"])["arm_id"].to_pylist()
    assert set(ids) == {arm.id for arm in study.arms}


def test_a_study_is_the_same_after_a_journey(tmp_path):
    study = resolve_images(build(settings(tmp_path, SEEDS)), TinyModel.defaults)
    there = pickle.loads(pickle.dumps(study))
    assert there == study and generate.units(there) == generate.units(study)
    assert [arm.id for arm in there.arms] == [arm.arm.id for arm in study.arms]


def test_what_only_looks_at_results_needs_neither_adapters_nor_statistics(tmp_path):
    found = settings(tmp_path, f"evaluate.rewards=['{RED} + {BRIGHT}']")
    assert resolve(found).arms
    with pytest.raises(ConfigError, match="has no statistics of"):
        resolve_images(found, TinyModel.defaults)
    with pytest.raises(ConfigError, match=f"adapter '{TUNED}' is not trained: run `python -m pipelines sweep`"):
        resolve_images(settings(tmp_path), TinyModel.defaults)
