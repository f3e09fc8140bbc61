"""The keys that a command's help lists: all that it reads, as every test that runs one checks, and no others."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from measured_runs import build, settings
from reads import KEYS, watch

from pipelines.__main__ import main
from pipelines.commands import keys
from pipelines.commands.table import COMMANDS

ROOT = Path(__file__).parents[2]


def shown(capsys, *arguments):
    """The keys and their values in a help text."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    lines = (line.strip().partition("=") for line in capsys.readouterr().out.splitlines())
    return {key: value for key, _, value in lines if key in KEYS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_keys_that_the_command_reads_and_help_all_every_key(name, capsys):
    assert list(shown(capsys, name, "--help")) == keys.matching(COMMANDS[name].reads, KEYS)
    assert list(shown(capsys, name, "--help-all")) == KEYS


def test_help_shows_a_presets_values_wherever_it_is_named(capsys):
    assert shown(capsys, "sweep", "--help")["train.steps"] == "100"
    for arguments in (["sweep", "--preset", "smoke", "--help"], ["sweep", "--help", "--preset", "smoke"]):
        assert shown(capsys, *arguments)["train.steps"] == "4"
    assert shown(capsys, "demo", "--help")["run.name"] == "demo"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_pattern_of_a_command_names_keys(name):
    assert [pattern for pattern in COMMANDS[name].reads if not keys.matching([pattern], KEYS)] == []


def test_every_key_is_read_by_a_command_and_mentioned_outside_the_configuration():
    assert keys.matching([pattern for command in COMMANDS.values() for pattern in command.reads], KEYS) == KEYS
    mentioned = set()
    for path in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "tune").rglob("*.py")]:
        if path.name != "schema.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    mentioned.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    mentioned.update(node.value.split())
    limits = {"stop_held_out", "stop_diversity", "stop_kl", "stop_path"}  # read as Train.limits
    assert [key for key in KEYS if key.partition(".")[2] not in mentioned | limits] == []


def test_a_read_of_a_key_that_is_not_listed_is_noticed(tmp_path, monkeypatch):
    run = build(settings(tmp_path))
    short = dataclasses.replace(COMMANDS["measure"], reads=("run.*", "model.*"))
    monkeypatch.setitem(COMMANDS, "measure", short)
    unlisted = watch(monkeypatch)
    assert main(["measure", str(run.directory)]) == 0
    assert "measure reads evaluate.seeds" in unlisted and "measure reads measure.subsets" in unlisted
    assert not any(text.startswith("measure reads run.") for text in unlisted)


HEAVY = ("torch", "ray", "pyarrow", "numpy", "pandas", "scipy", "diffusers", "transformers", "matplotlib")


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["sweep", "--preset", "demo", "train.stepz=3"]])
def test_help_and_a_misspelled_key_answer_at_once(arguments):
    probe = (
        "import sys, pipelines.__main__ as m\n"
        f"try: assert m.main({arguments}) == 2\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print('modules', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    modules = done.stderr.rpartition("modules ")[2].split()
    assert set(HEAVY) & set(modules) == set() and len(modules) < 400
