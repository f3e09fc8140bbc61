"""Folders that are replaced or removed are whole whenever the process that does it is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aig import adapters, folders
from aig.models import load

ROOT = Path(__file__).parents[2]
STEPS = 4  # of a replacement that can be killed: old aside, new in place, old out of the way, its removal

# Ends as a kill does, without `finally`, right before one of the calls that change the tree's names.
KILLED = """
import os, shutil, sys
from pathlib import Path
from aig import folders

action, folder, left = sys.argv[1], Path(sys.argv[2]), [int(sys.argv[3])]

def counted(function):
    def call(*arguments, **named):
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        return function(*arguments, **named)
    return call

os.rename, shutil.rmtree = counted(os.rename), counted(shutil.rmtree)  # Path.rename calls os.rename
if action == "remove":
    folders.remove(folder)
else:
    with folders.whole(folder) as part:
        (part / "first").write_text("new")
        (part / "second").write_text("new")
"""


def killed(action, folder, step):
    """Whether it was killed, and had not ended before."""
    done = subprocess.run([sys.executable, "-c", KILLED, action, str(folder), str(step)], cwd=ROOT, env=os.environ)
    assert done.returncode in (0, 9)
    return done.returncode == 9


def made(folder, content="old"):
    folder.mkdir()
    for name in ("first", "second"):
        (folder / name).write_text(content)
    return folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


OLD, NEW = ({"first": text, "second": text} for text in ("old", "new"))


def aside(parent):
    return [path.name for path in parent.iterdir() if path.name.endswith(folders.ASIDE)]


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_after_a_kill_at_any_step_of_a_replacement_a_reader_has_the_old_folder_or_the_new_one_whole(step, tmp_path):
    folder = made(tmp_path / "kept")
    was_killed = killed("replace", folder, step)
    folders.put_back(folder)
    assert content(folder) in ((OLD, NEW) if was_killed else (NEW,))
    folders.recover_all(tmp_path)
    assert content(folder) in (OLD, NEW) and not aside(tmp_path)
    with folders.whole(folder) as part:
        (part / "third").write_text("newest")
    assert content(folder) == {"third": "newest"} and not aside(tmp_path)


def test_every_step_of_a_replacement_is_tried(tmp_path):
    folder = made(tmp_path / "kept")
    assert killed("replace", folder, STEPS - 1) and not killed("replace", made(tmp_path / "other"), STEPS)
    seen = set()
    for step in range(STEPS):
        folder = made(tmp_path / f"seen{step}")
        killed("replace", folder, step)
        seen.add((folder.exists(), content(folder)["first"] if folder.exists() else None))
    assert seen == {(True, "old"), (False, None), (True, "new")}


def test_an_old_folder_whose_place_is_taken_does_not_come_back_when_the_new_one_is_deleted(tmp_path):
    folder = made(tmp_path / "kept", "new")
    made(folders._aside(folder))
    folders.recover(folder)
    folders.remove(folder)
    folders.put_back(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", range(3))
def test_a_removal_that_is_killed_leaves_the_whole_folder_or_none(step, tmp_path):
    folder = made(tmp_path / "kept")
    killed("remove", folder, step)
    assert not folder.exists() or content(folder) == OLD
    folders.recover_all(tmp_path)
    assert not folder.exists() or content(folder) == OLD


def test_what_fails_while_it_is_written_leaves_the_old_folder_and_nothing_beside(tmp_path):
    folder = made(tmp_path / "kept")
    with pytest.raises(OSError, match="full"), folders.whole(folder) as part:
        (part / "first").write_text("half")
        raise OSError("the disk is full")
    assert content(folder) == OLD and list(tmp_path.iterdir()) == [folder]


def test_a_writer_goes_on_where_a_reader_puts_the_old_folder_back_between_its_moves(tmp_path, monkeypatch):
    folder, moves = made(tmp_path / "kept"), []
    rename = Path.rename

    def watched(self, target):
        found = rename(self, target)
        moves.append(Path(target).name)
        if len(moves) == 1:
            rename(Path(target), folder)
        return found

    monkeypatch.setattr(Path, "rename", watched)
    with folders.whole(folder) as part:
        (part / "first").write_text("new")
    assert content(folder) == {"first": "new"} and list(tmp_path.iterdir()) == [folder]


def test_an_adapter_whose_writer_was_killed_between_its_moves_is_loaded_as_it_was(tmp_path):
    model = load("tiny")
    adapters.attach(model.denoiser, "x", 2, 2.0, "attention")
    folder = adapters.save(model.denoiser, "x", tmp_path / "x", {"step": 4})
    weights = adapters.weights_file(folder).read_bytes()
    for read in (adapters.weights_file, adapters.read_record, lambda f: adapters.load(load("tiny").denoiser, f, "y")):
        folder.rename(folders._aside(folder))
        read(folder)
        assert adapters.weights_file(folder).read_bytes() == weights
