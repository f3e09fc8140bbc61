"""The progress line, on a terminal and in a log."""

from __future__ import annotations

import pytest

from pipelines.cluster.errors import root_cause
from pipelines.runs.files import write_json
from pipelines.show import progress
from pipelines.show.progress import Log, Screen, training_line
from pipelines.train import heartbeat
from pipelines.train.heartbeat import Pace

STATUS = {
    "step": 12, "steps": 100, "rate": 2.0, "batch": 8, "loss": -3.25, "reward": 3.25, "path": 0.011,
    "diversity": 1.834, "validated": 10,
}  # fmt: skip


def written(folder, key="a", **more):
    write_json(folder / f"{key}.json", {**STATUS, **more})


def test_the_line_has_step_rate_time_left_loss_reward_distance_and_diversity():
    line = " ".join(training_line("a", STATUS).split())
    assert line == "a 12/100 2.00 s/step (4 images/s) 2:56 left loss -3.250 reward 3.250 path 0.011 diversity 1.83"


def test_a_distance_in_nats_is_shown_as_kl_instead_of_the_path():
    line = " ".join(training_line("a", {**STATUS, "kl_to_base": 3.14, "held_out": -1}).split())
    assert "held-out -1.000 KL 3.1 nats diversity" in line and "path" not in line


def test_skipped_images_and_a_stop_are_said_where_there_are_any():
    assert training_line("a", {**STATUS, "skipped": 3, "stopped": "stopped at step 12"}).endswith(
        "  3 images skipped  stopped at step 12"
    )
    assert "skipped" not in training_line("a", {**STATUS, "skipped": 0.0})


def test_a_log_gets_a_line_at_first_at_validations_once_in_a_while_and_at_the_end(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = Log(tmp_path, ["a"])

    def lines(ended=False, **more):
        written(tmp_path, **more)
        log.show(ended)
        return capsys.readouterr().err

    assert lines().count("\n") == 1
    now[0] = 0.9 * progress.LOG_SECONDS
    assert lines(step=13) == ""
    assert "diversity  1.50" in lines(step=20, validated=20, diversity=1.5)
    now[0] = 2 * progress.LOG_SECONDS
    assert lines(step=25, validated=20).count("\n") == 1
    assert lines(step=25, validated=20) == ""
    assert "stopped" in lines(step=26, validated=20, stopped="stopped at step 26")
    assert lines(ended=True, step=27, validated=20, stopped="stopped at step 26").count("\n") == 1


def test_a_log_has_neither_carriage_returns_nor_escapes(tmp_path, capsys):
    with progress.trainings(tmp_path, ["a", "b"]):
        written(tmp_path, "a")
        written(tmp_path, "b", step=3)
    err = capsys.readouterr().err
    assert [line.split()[:2] for line in err.splitlines()] == [["a", "12/100"], ["b", "3/100"]]
    assert "\r" not in err and "\x1b" not in err


@pytest.mark.parametrize("kind", [Log, Screen])
def test_what_an_earlier_command_left_is_not_shown(tmp_path, capsys, kind):
    written(tmp_path)
    view = kind(tmp_path, ["a"])
    view.show(False)
    assert capsys.readouterr().err == ""
    written(tmp_path, step=13)
    view.show(False)
    assert "13/100" in capsys.readouterr().err


def test_a_terminal_is_redrawn_in_place_and_never_wrapped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    view = Screen(tmp_path, ["a", "b"])
    for key in ("a", "b"):
        written(tmp_path, key)
    view.show(False)
    first = capsys.readouterr().err
    view.show(True)
    assert capsys.readouterr().err == f"\x1b[2F{first}"
    assert all(len(line.removeprefix("\x1b[2K")) == 39 for line in first.splitlines())


def test_the_pace_counts_what_lies_between_steps_and_leaves_out_the_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = Pace()
    pace.stepped(5)
    assert pace.rate is None
    for seconds, expected in ((60, 60), (1, 1), (5, 3), (0, 2)):  # compiles; steps; validates, too
        now[0] += seconds
        pace.stepped(pace.made[-1][0] + 1)
        assert pace.rate == expected
    for _ in range(heartbeat.PACE_STEPS + 1):
        now[0] += 7
        pace.stepped(pace.made[-1][0] + 1)
    assert pace.rate == 7


def test_the_cause_of_a_failed_task_is_the_error_that_its_function_raised():
    message = """ray::MapWorker.submit() (pid=1)
  File "scoring.py", line 1, in commit
OSError: No space left on device for part-1.parquet in
runs/images: make room there

The above exception was the direct cause of the following exception:

ray::MapWorker.submit() (pid=1)
ray.exceptions.UserCodeException: UDF failed to process a data block."""
    said = "OSError: No space left on device for part-1.parquet in runs/images: make room there"
    assert root_cause(RuntimeError(message)) == said
    assert root_cause(RuntimeError("just this")) == "just this"
    assert root_cause(RuntimeError()) == "RuntimeError"
