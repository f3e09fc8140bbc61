"""The pipeline through Ray at smoke size: from training to the front, resumed, killed; the same bytes in any case."""

import json
import os
from dataclasses import replace
from itertools import product

import bare_training
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from pipeline_toys import HERE, overrides

from aig import adapters
from aig.models import TinyModel
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.evaluate import generate, scorers
from pipelines.evaluate import images as dataset
from pipelines.front.loading import read_front
from pipelines.runs.directory import RunDir
from pipelines.show.estimates import UNKNOWN
from pipelines.study.resolved import resolve, resolve_images
from pipelines.train import worker

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

DEFAULTS = TinyModel.defaults


@pytest.fixture(scope="module")
def arguments(model, tmp_path_factory):
    return ["--preset", "smoke", *overrides(model, tmp_path_factory.mktemp("runs"), model__eta=0.5)]


@pytest.fixture(scope="module")
def run(ray_cluster, arguments):
    """A finished run of the whole pipeline but the report."""
    assert main(["sweep", *arguments]) == 0
    return configuration.load("smoke", None, arguments[2:])


def contents(folder, pattern):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


@pytest.mark.timeout(280)
def test_a_run_goes_from_training_to_a_front(run):
    files = RunDir.of(run)
    key = "pipeline_toys-red-k1-kl0-s0"
    assert sorted(path.name for path in files.adapters.iterdir()) == [key, f"{key}@2"]
    curve = [json.loads(line) for line in (files.curves / f"{key}.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 2, 4]
    assert curve[0]["path"] == curve[0]["kl_to_base"] == 0
    assert curve[-1]["kl_to_base"] > curve[-1]["path"] > 0
    assert curve[-1]["reward"] > curve[0]["reward"]

    images = dataset.read(resolve_images(run, DEFAULTS))
    arms = ["base", key, f"{key}+linear", f"{key}x0.5", f"{key}@2"]
    assert (images.found, images.missing, images.duplicate) == (len(arms) * 2 * 2, 0, 0)
    assert set(images.table["arm"].to_pylist()) == set(arms)
    row = images.table.slice(0, 1).to_pylist()[0]
    assert scorers.from_png(row["image"]).shape == (row["height"], row["width"], 3) == (32, 32, 3)
    assert len(row["features"]) == 48
    nats = np.array(images.table["kl_to_base"].to_pylist())
    assert ((nats == 0) == (np.array(images.table["arm"].to_pylist()) == "base")).all()

    results = read_front(files)
    (study,) = results.studies
    assert [arm.family for arm in study.arms] == ["base", "tuned", "aig", "lora", "early"]
    assert set(study.plane.hypervolume) == {"aig", "lora", "early", "all"}
    assert [(row.a, row.b) for row in study.plane.differences] == [("aig", "lora"), ("aig", "early")]
    base, tuned = (study.plane.points[name][0] for name in ("base", key))
    assert study.claims[0].estimate.value == pytest.approx(tuned.value - base.value)
    assert study.distance == "kl_to_base" and all(arm.metric("kl_to_base") is not UNKNOWN for arm in study.arms)
    value, low, high = study.by_name[key].metric("kl_to_base")
    assert value == pytest.approx(nats[np.array(images.table["arm"].to_pylist()) == key].mean())
    assert np.isnan([low, high]).all() and results.no_interval == "2 prompts: no interval below 4"
    listed = json.loads(files.arms.read_text())
    assert [arm["name"] for arm in listed["arms"]] == arms
    assert listed["check"] == {"expected": 20, "found": 20, "missing": 0, "duplicate": 0}
    assert 0 < listed["cost"]["predictions"] < listed["cost"]["separate"] < listed["cost"]["published"]


def test_a_second_run_changes_nothing(run, arguments, capsys):
    before = contents(run.directory, "*")
    written = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*.parquet") if "part-" in path.name}
    assert main(["sweep", *arguments]) == main(["evaluate", *arguments]) == main(["front", *arguments]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 adapters are there already" in out and "2 of 2 groups of images are there already" in out
    assert {path: path.stat().st_mtime_ns for path in written} == written
    after = contents(run.directory, "*")
    assert {name for name in before if before[name] != after[name]} <= {"arms.json"}  # it holds the last command
    assert before.keys() == after.keys()


@pytest.mark.timeout(280)
def test_a_deleted_unit_comes_back_with_the_same_bytes(run, arguments):
    before = contents(run.directory / "images", "*.parquet")
    lost = run.directory / "images" / sorted(before)[0]
    lost.unlink()
    (lost.parent / f".{lost.name}.123.part").write_bytes(b"half a file, of a writer that was killed")
    with pytest.raises(ValueError, match="10 of 20 images are missing: run `python -m pipelines evaluate`"):
        dataset.read(resolve_images(run, DEFAULTS)).require_complete()
    assert main(["evaluate", *arguments]) == 0
    assert contents(run.directory / "images", "*") == before


def test_an_image_is_the_same_in_any_group_and_any_actor(run):
    """Actors are plain classes: two of them, on other groups, give the dataset's own PNG bytes."""
    study = resolve_images(run, DEFAULTS)
    units, saved = generate.units(study), dataset.read(study).table
    names = [arm.arm.name for arm in study.arms]
    expected = {
        (row["arm"], row["prompt"], row["seed_index"]): row["image"]
        for row in saved.select(["arm", "prompt", "seed_index", "image"]).to_pylist()
    }
    narrow = resolve_images(replace(run, evaluate=replace(run.evaluate, max_rows=8)), DEFAULTS)
    first, second = units[0], units[-1]
    assert first.prompt != second.prompt
    for wanted in ([(first, [1])], [(second, [0, 1]), (first, [1, 0, 5])]):
        rows = [
            {"unit": "", "prompt_id": unit.prompt_id, "prompt": unit.prompt, "seeds": seeds} for unit, seeds in wanted
        ]
        drawn = {
            (name, row["prompt"], seed): image
            for row in generate.Generator(narrow).draw(rows, measured=False)
            for (name, seed), image in zip(product(names, row["seeds"]), row["image"], strict=True)
        }
        shared = [key for key in drawn if key in expected]
        assert len(shared) == len(names) * sum(seed < 2 for _, seeds in wanted for seed in seeds)
        assert all(drawn[key] == expected[key] for key in shared)


def test_two_workers_halves_add_up_to_the_step_of_one(model, tmp_path):
    """What two workers compute between two messages, in one process: each its share by global index, then the sum."""
    single = configuration.load("smoke", None, overrides(model, tmp_path))
    alone, first, second = (worker.Training(single, is_first=False) for _ in range(3))
    prompts, seeds = worker.draw(alone.prompts, 0, 0, single.train.batch)
    total = {"total": single.train.batch}
    whole = worker.train_step(alone.model, alone.reward, worker.ADAPTER, prompts, seeds, alone.draft, **total)
    parts = [
        worker.train_step(
            half.model, half.reward, worker.ADAPTER, prompts[rank::2], seeds[rank::2], half.draft, **total
        )
        for rank, half in enumerate((first, second))
    ]
    assert whole["loss"] == pytest.approx(parts[0]["loss"] + parts[1]["loss"], abs=1e-5)
    for one, a, b in zip(alone.parameters, first.parameters, second.parameters, strict=True):
        torch.testing.assert_close(one.grad, a.grad + b.grad, atol=1e-5, rtol=1e-4)


def test_full_fine_tuning_leaves_a_model_that_diffusers_loads_and_a_resumed_run_leaves_alone(
    ray_cluster, model, tmp_path, capsys, monkeypatch
):
    bare_training.instead_of_ray_train(monkeypatch)
    arguments = ["train", "--preset", "smoke", *overrides(model, tmp_path, train__method="full", train__steps=2)]
    assert main(arguments) == 0
    folder = tmp_path / "smoke" / "adapters" / "pipeline_toys-red-k1-kl0-s0"
    tuned, base = (UNet2DConditionModel.from_pretrained(path) for path in (folder, model / "unet"))
    moved = [not torch.equal(a, b) for a, b in zip(tuned.parameters(), base.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    record = adapters.read_record(folder)
    assert record["train"]["method"] == "full" and "rank" not in record["train"]
    assert main(arguments) == 0
    assert "Finished already" in capsys.readouterr().out


def test_an_adapter_of_another_configuration_is_refused(run, arguments, capsys):
    folder = run.directory / "adapters" / "pipeline_toys-red-k1-kl0-s0"
    record = (folder / adapters.RECORD).read_text()
    (folder / adapters.RECORD).write_text(record.replace('"lr": 0.001', '"lr": 0.5'))
    try:
        assert main(["evaluate", *arguments]) == 2
        err = capsys.readouterr().err
        assert "made by another configuration" in err and "train.lr = 0.5, not 0.001" in err
        earlier = json.loads(record)
        del earlier["format"], earlier["train"]["ema"]
        (folder / adapters.RECORD).write_text(json.dumps(earlier))
        assert main(["evaluate", *arguments]) == 2
        assert "was made by an earlier version" in capsys.readouterr().err
    finally:
        (folder / adapters.RECORD).write_text(record)


def test_a_corrupt_adapter_is_named(run, arguments, capsys):
    path = run.directory / "adapters" / "pipeline_toys-red-k1-kl0-s0" / adapters.WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:100])
    try:
        assert main(["evaluate", *arguments]) == 2
        err = capsys.readouterr().err
        assert str(path) in err and "corrupt" in err and err.count("\n") == 1
    finally:
        path.write_bytes(content)


def test_rows_that_are_there_twice_are_read_once_and_counted(run, tmp_path):
    copy = replace(run, run=replace(run.run, storage=str(tmp_path)))
    files, original = RunDir.of(copy), RunDir.of(run)
    files.root.mkdir()
    files.adapters.symlink_to(original.adapters)
    files.images.mkdir()
    for path in original.images.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(0, 3)]), files.images / path.name)
    images = dataset.read(resolve_images(copy, DEFAULTS))
    assert (images.expected, images.found, images.missing, images.duplicate) == (20, 20, 0, 6)
    assert images.table.num_rows == 20
    images.require_complete()


def test_a_mean_over_training_seeds_is_an_arm_of_its_own_study(model, tmp_path):
    two = configuration.load("smoke", None, overrides(model, tmp_path, sweep__train_seeds="[0, 1]"))
    (mean,) = resolve(two).means
    assert (mean.name, mean.train_seeds) == ("pipeline_toys-red-k1", (0, 1))
    assert [arm.family for arm in mean.arms] == [arm.family for arm in resolve(two).singles[0].arms]
    tuned = mean.one("tuned")
    assert tuned.members == ("pipeline_toys-red-k1-kl0-s0", "pipeline_toys-red-k1-kl0-s1")
    assert len({arm.arm.name for arm in [*resolve(two).arms, *resolve(two).mean_arms]}) == 9 + 4
