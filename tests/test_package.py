"""The package as a whole: what importing it brings in, and what that costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("aig/**/*.py"))

IMPORT_EVERYTHING = """
import importlib, json, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""

TIME_IMPORT = """
import time, torch

start = time.process_time()
import aig
print(time.process_time() - start)
"""


def fresh_interpreter(code: str, *args: str) -> str:
    """The last line that `code` prints in a new process which starts at the repository's root."""
    command = [sys.executable, "-c", code, *args]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public_modules() -> list[str]:
    names = [module_name(source) for source in SOURCES]
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


def test_importing_aig_and_each_public_module_loads_no_ray():
    loaded = json.loads(fresh_interpreter(IMPORT_EVERYTHING, *public_modules()))
    assert "aig" in loaded
    assert [name for name in loaded if name.split(".")[0] == "ray"] == []


@pytest.mark.parametrize("source", SOURCES, ids=module_name)
def test_a_module_of_aig_imports_neither_ray_nor_the_application(source):
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    assert {name.split(".")[0] for name in imported} & {"ray", "pipelines", "tune"} == set()


def test_import_aig_takes_less_than_a_second_beyond_torch():
    """CPU seconds, not wall time, and the best of three: a busy machine or a cold disk is no failure."""
    seconds = []
    while len(seconds) < 3 and (not seconds or min(seconds) >= 1):
        seconds.append(float(fresh_interpreter(TIME_IMPORT)))
    assert min(seconds) < 1, f"{seconds}; python -X importtime -c 'import aig' shows where they go"
