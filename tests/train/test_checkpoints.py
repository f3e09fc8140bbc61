"""Checkpoints that were cut off or spoiled are found out and passed over; what a crash leaves is cleared away."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import bare_training
import pytest

from aig import adapters, folders
from pipelines.runs.directory import RunDir
from pipelines.show import progress
from pipelines.study.trainings import adapter_key, best_folder
from pipelines.train import checkpoints, records


def written(storage, step, content=b"a state"):
    """A whole checkpoint, named after the order in which it came."""
    folder = storage / f"checkpoint_{step:03d}"
    folder.mkdir(parents=True)
    (folder / checkpoints.STATE).write_bytes(content)
    checkpoints.seal(folder, step)
    return folder


def cut(folder):
    path = folder / checkpoints.STATE
    path.write_bytes(path.read_bytes()[:-1])


def test_the_newest_whole_checkpoint_is_the_one_of_the_latest_step(tmp_path):
    folders = [written(tmp_path, step) for step in (2, 10, 4)]
    assert checkpoints.newest(RunDir(tmp_path), tmp_path) == (folders[1], [])
    assert checkpoints.newest(RunDir(tmp_path), tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        lambda folder: (folder / checkpoints.STATE).write_bytes(b"A state"),
        lambda folder: (folder / checkpoints.STATE).unlink(),
        lambda folder: (folder / checkpoints.SEAL).unlink(),
        lambda folder: (folder / checkpoints.SEAL).write_text('{"step": 4, '),
        lambda folder: (folder / checkpoints.SEAL).write_text("[]"),
    ],
    ids=["cut off", "other bits", "no state", "no seal", "half a seal", "another seal"],
)
def test_a_spoiled_checkpoint_is_passed_over_with_a_warning_that_names_it_and_the_one_before(spoil, tmp_path):
    before, last = written(tmp_path, 2), written(tmp_path, 4)
    spoil(last)
    found, (warning,) = checkpoints.newest(RunDir(tmp_path), tmp_path)
    assert found == before
    assert str(last) in warning and "is skipped" in warning and "going on from checkpoint_002, step 2" in warning
    spoil(before)
    found, warnings = checkpoints.newest(RunDir(tmp_path), tmp_path)
    assert found is None and len(warnings) == 2
    assert all("starting from step 0" in warning for warning in warnings)


def test_what_a_crash_left_is_cleared_away_but_for_what_is_still_of_use(tmp_path):
    _, second, third, fourth = (written(tmp_path, step) for step in (2, 4, 6, 8))
    partial = tmp_path / "checkpoint_009"
    partial.mkdir()
    checkpoints.clean(RunDir(tmp_path), tmp_path, third, {fourth.name}, keep=2)
    assert sorted(tmp_path.iterdir()) == [second, third, fourth]
    checkpoints.clean(RunDir(tmp_path), tmp_path, third, set(), keep=1)
    assert list(tmp_path.iterdir()) == [third]


def test_scratch_folders_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.tempfile, "gettempdir", lambda: str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f"{checkpoints.SCRATCH}{dead.pid}-a", f"{checkpoints.SCRATCH}{os.getpid()}-b", "another-program"]
    for name in names:
        (tmp_path / name).mkdir()
    checkpoints.clean(RunDir(tmp_path), tmp_path / "storage", None, set(), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    single = configured(model, tmp_path_factory.mktemp("undisturbed"))
    bare_training.run(single)
    return single


def configured(model, storage):
    return bare_training.configured(model, storage, train__keep_best="true")


def check_same(single, other):
    _, curve = bare_training.check_same(single, other)
    assert [row["step"] for row in curve] == [0, 2, 4, 6]


def test_the_best_validation_by_held_out_reward_keeps_its_adapter(undisturbed):
    files, key = RunDir.of(undisturbed), adapter_key(undisturbed.train)
    curve = bare_training.left(undisturbed)[1]
    best = max(curve[1:], key=lambda row: row["held_out"])
    record = adapters.read_record(files.adapters / best_folder(undisturbed.train))
    assert record["step"] == best["step"] and record["held_out"] == best["held_out"]
    assert records.is_finished(undisturbed)
    moved = files.adapters / f"{key}@elsewhere"
    (files.adapters / f"{key}@best").rename(moved)
    try:
        assert not records.is_finished(undisturbed)
        without = replace(undisturbed, train=replace(undisturbed.train, keep_best=False))
        assert records.is_finished(without)
    finally:
        moved.rename(files.adapters / f"{key}@best")


@pytest.fixture(scope="module")
def interrupted(model, tmp_path_factory):
    """The folder of a training that was killed when its second checkpoint had been written."""
    storage = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(bare_training.Killed):
        bare_training.run(configured(model, storage), dies_after=2)
    return storage


@pytest.fixture
def single(interrupted, model, tmp_path):
    """A copy of it."""
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return configured(model, tmp_path)


@pytest.mark.parametrize("spoiled", [1, 2])
def test_a_training_goes_on_from_its_last_whole_checkpoint(spoiled, single, undisturbed, capsys):
    files, key = RunDir.of(single), adapter_key(single.train)
    folders = sorted(files.checkpoints(key).glob("checkpoint_*"), reverse=True)
    for folder in folders[:spoiled]:
        cut(folder)
    with progress.trainings(files.progress, [key]):
        bare_training.run(single)
    check_same(single, undisturbed)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(told) == spoiled and all(str(folder) in line for folder, line in zip(folders, told, strict=False))
    assert not any(folder.exists() for folder in folders[:spoiled])


def test_a_training_whose_best_adapter_is_gone_starts_anew(single, undisturbed):
    shutil.rmtree(RunDir.of(single).adapters / best_folder(single.train))
    bare_training.run(single)
    check_same(single, undisturbed)


def test_an_adapter_that_its_killed_writer_had_moved_aside_is_there_again_before_a_training_goes_on(tmp_path):
    for name in ("red-s1@best", "red-s1"):
        (tmp_path / f".{name}{folders.ASIDE}").mkdir()
        (tmp_path / f".{name}{folders.ASIDE}" / "adapter.json").write_text("{}")
    (tmp_path / ".red-s1@best.abc").mkdir()
    checkpoints.clean_saves(tmp_path, "red-s1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["red-s1", "red-s1@best"]
    assert (tmp_path / "red-s1@best" / "adapter.json").exists()


def test_half_saved_adapters_of_a_training_are_removed_and_those_of_others_are_not(tmp_path):
    names = [".red-s1.abc", ".red-s1@4.abc", ".red-s10.abc", "red-s1", "red-s1@4"]
    for name in names:
        (tmp_path / name).mkdir()
    checkpoints.clean_saves(tmp_path, "red-s1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_a_training_with_a_kl_on_early_steps_and_a_smoothed_reward_is_resumed_to_the_same_adapter(model, tmp_path):
    change = {"train__kl_weight": 5, "train__kl_steps": "early", "train__reward_smoothing": 0.1}
    whole, parts = (bare_training.configured(model, tmp_path / name, **change) for name in ("whole", "parts"))
    bare_training.run(whole)
    with pytest.raises(bare_training.Killed):
        bare_training.run(parts, dies_after=2)
    bare_training.run(parts)
    bare_training.check_same(parts, whole)
    key = adapter_key(whole.train)
    assert "-kl5-early-s" in key
    made = adapters.read_record(RunDir.of(whole).adapters / key)["train"]
    assert (made["kl_steps"], made["reward_smoothing"], made["smoothing_draws"]) == ("early", 0.1, 1)


def test_records_of_plain_trainings_do_not_name_what_they_do_without(undisturbed):
    made = adapters.read_record(RunDir.of(undisturbed).adapters / adapter_key(undisturbed.train))["train"]
    assert not {"kl_steps", "reward_smoothing", "smoothing_draws"} & made.keys()
