"""The house: which folder of the application may import which, and how large a file may get."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up: a folder imports from those above it in this list, and never from those below.
ROOMS = (
    "pipelines.config", "pipelines.show", "pipelines.cluster", "pipelines.runs", "pipelines.rewards",
    "pipelines.study", "pipelines.train", "pipelines.evaluate", "pipelines.measure", "pipelines.score",
    "pipelines.front", "pipelines.report", "tune.sweep", "tune.search", "pipelines.commands", "pipelines.__main__",
)  # fmt: skip
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("pipelines", "tune")
    for path in (ROOT / folder).rglob("*.py")
}


def room(module):
    return next((name for name in ROOMS if module == name or module.startswith(f"{name}.")), None)


def imported(module):
    """The modules of the application that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} imports relatively"
            yield from (
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


ARROWS = {
    (room(module), room(other))
    for module in MODULES
    for other in imported(module)
    if other in MODULES and room(module) != room(other)
}


def test_every_module_is_in_a_room():
    assert [name for name in MODULES if room(name) is None and name not in ("pipelines", "tune")] == []


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_from_those_beneath_it(name):
    beneath = ROOMS[: ROOMS.index(name)]
    assert {other for one, other in ARROWS if one == name} <= set(beneath)


def test_the_house_has_ten_floors_at_most():
    floors = {}
    for name in ROOMS:  # which are in order, so those beneath have theirs
        floors[name] = 1 + max((floors[other] for one, other in ARROWS if one == name), default=0)
    assert max(floors.values()) <= 10


def test_the_library_imports_nothing_of_the_application():
    pattern = re.compile(r"^\s*(?:from|import) (?:pipelines|tune|ray)\b", re.MULTILINE)
    assert [str(path) for path in (ROOT / "aig").rglob("*.py") if pattern.search(path.read_text())] == []


SOURCES = [path for folder in ("aig", "pipelines", "tune") for path in (ROOT / folder).rglob("*.py")]


def test_no_file_has_more_than_400_lines_but_the_configurations_keys():
    long = {path.relative_to(ROOT).as_posix() for path in SOURCES if path.read_text().count("\n") > 400}
    assert long <= {"pipelines/config/schema.py"}


def test_no_function_has_more_than_60_lines_but_the_sampling_loop():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        f"{path.relative_to(ROOT).as_posix()}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and node.end_lineno - node.lineno >= 60
    }
    assert long <= {"aig/sampler.py: advance"}
