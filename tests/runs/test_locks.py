"""Two processes and one run, or one file of scores: the lock first, then what is there, then what is written."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import pytest
from evaluations import arguments, save_lora
from measured_runs import build, given, settings
from PIL import Image

from aig import folders
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.cluster.connect import Cluster
from pipelines.commands.session import Session
from pipelines.config import ConfigError
from pipelines.evaluate import external
from pipelines.runs import identity, locks
from pipelines.score import folder as score_folder
from pipelines.score import listing


def session(found):
    return Session(found, "a command", argparse.Namespace())


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and its time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        ("measure", ["measure.subsets=4"]),
        ("compare", ["front.level=0.5"]),
        ("front", ["front.level=0.5"]),
        ("report", ["front.level=0.5"]),
        ("train", ["train.threads=2", "train.reward=fragile"]),
    ],
)
def test_a_command_that_is_refused_for_the_lock_changes_no_file_of_the_run(command, changed, tmp_path, capsys):
    run = build(settings(tmp_path)).directory
    of_runs = {"measure": [run], "compare": [run, run]}.get(command)
    named = list(map(str, of_runs)) if of_runs else ["--preset", "smoke", *given(tmp_path)]
    with session(settings(tmp_path)) as first:
        first.claim()
        before = content(run)
        assert main([command, *named, *changed]) == 2
        assert "another process is working in" in capsys.readouterr().err
        assert content(run) == before


def test_an_evaluation_that_is_refused_for_the_lock_changes_no_file_of_the_run(tmp_path, capsys):
    lora = save_lora(tmp_path / "model", tmp_path / "mine.safetensors")
    asked = arguments(tmp_path / "model", lora, tmp_path, evaluate__rewards="['pipeline_toys:bright']")
    found = configuration.load("smoke", None, asked[2:])
    with session(found) as first:
        first.claim()
        external.import_adapters(found)
        before = content(found.directory)
        assert main(["evaluate", *asked, "evaluate.generators=7"]) == 2
        assert "another process is working in" in capsys.readouterr().err
        assert content(found.directory) == before


def test_the_next_start_puts_back_what_a_killed_one_had_moved_aside(tmp_path):
    found = build(settings(tmp_path))
    name = next(path.name for path in (found.directory / "adapters").iterdir())
    for folder in (found.directory / "adapters" / name, found.directory / "report"):
        folder.mkdir(exist_ok=True)
        folder.rename(folder.with_name(f".{folder.name}{folders.ASIDE}"))
    with session(found) as one:
        one.claim()
        assert (found.directory / "adapters" / name).is_dir() and (found.directory / "report").is_dir()


def test_of_two_configurations_that_passed_the_check_the_one_that_holds_the_lock_makes_the_run(tmp_path):
    first, second = (configuration.load(None, None, [f"run.storage={tmp_path}", f"run.seed={seed}"]) for seed in (0, 1))
    for found in (first, second):
        identity.check_directory(found)  # there is nothing yet, which suits both
    with session(first) as ours:
        ours.claim()
        made = (first.directory / configuration.CONFIG_FILE).read_bytes()
        with session(second) as theirs, pytest.raises(ConfigError, match="another process is working in"):
            theirs.claim()
    with session(second) as theirs, pytest.raises(ConfigError, match=r"was made with run\.seed = 0, not 1"):
        theirs.claim()
    assert (first.directory / configuration.CONFIG_FILE).read_bytes() == made


def test_of_many_starts_at_once_one_makes_the_run_and_its_configuration_is_what_is_kept(tmp_path):
    for attempt in range(10):
        found = [
            configuration.load(None, None, [f"run.storage={tmp_path / str(attempt)}", f"run.seed={seed}"])
            for seed in range(4)
        ]
        together, won, refused = threading.Barrier(len(found)), [], []

        def start(asked, together=together, won=won, refused=refused):
            with session(asked) as one:
                together.wait()
                try:
                    one.claim()
                    won.append(asked)
                except ConfigError:
                    refused.append(asked)
                together.wait()

        threads = [threading.Thread(target=start, args=(asked,)) for asked in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(refused) == 3
        assert identity.of_run(won[0].directory) == won[0]


def test_a_lock_that_its_holder_removed_is_made_anew_and_keeps_others_out(tmp_path):
    path = tmp_path / "lock"
    with locks.hold(path) as first, locks.hold(path) as second:
        assert first and not second and locks.is_held(path)
        path.unlink()
        with locks.hold(path) as again, locks.hold(path) as other:
            assert again and not other
    assert not locks.is_held(path)
    with locks.hold(path) as last:
        assert last


def test_a_lock_that_cannot_be_made_is_told_of_by_what_to_choose_instead(tmp_path):
    found = configuration.load(None, None, [f"run.storage={tmp_path}"])
    (found.directory / identity.LOCK_FILE).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot write the run directory .*: choose another run\.storage"):
        identity.lock_directory(found).__enter__()

    (tmp_path / "file").write_text("")
    files = score_folder.Files(tmp_path / "file" / "scores.parquet", "key")
    with pytest.raises(ConfigError, match=r"cannot write there .*: choose another --out"):
        score_folder._locked(files).__enter__()


def test_what_fails_under_the_lock_of_scores_is_not_taken_for_the_lock(tmp_path):
    with (
        pytest.raises(PermissionError, match="a reward's own"),
        score_folder._locked(score_folder.Files(tmp_path / "scores.parquet", "key")),
    ):
        raise PermissionError("a reward's own")
    assert list(tmp_path.iterdir()) == []


def test_scores_of_other_rewards_wait_for_the_lock_of_their_file_and_then_are_refused(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "prompts.csv").write_text("file_name,text\na.png,a red star\n")
    found = configuration.load(None, None, [])
    names = listing.Names()

    def request(reward):
        return score_folder.Request(tmp_path, (reward,), tmp_path / "prompts.csv", names, tmp_path / "scores.parquet")

    ours, theirs = (score_folder.check(found, request(f"pipeline_toys:{name}")) for name in ("bright", "red"))

    def stream(config, columns, files, missing):
        with pytest.raises(ConfigError, match="another process is scoring into"):
            score_folder.score(found, *theirs, connect)
        job = score_folder.FolderJob(files.parts, columns, 1, 4)
        from pipelines.evaluate.scorers import Scorer

        unit = {name: [getattr(image, name) for image in missing] for name in ("id", "path", "row", "prompt")}
        Scorer(job).unit({"unit": "all", **unit})

    def connect():
        return Cluster({"CPU": 4.0}, False, None)

    monkeypatch.setattr(score_folder, "_stream", stream)
    score_folder.score(found, *ours, connect)
    written = (tmp_path / "scores.parquet").read_bytes()
    with pytest.raises(ConfigError, match="is there already and holds something else"):
        score_folder.score(found, *theirs, connect)
    assert (tmp_path / "scores.parquet").read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "prompts.csv", "scores.parquet"]
