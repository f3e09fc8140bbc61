"""The package as a whole: what importing it brings in, what that costs, and what an installed one holds."""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
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


PACKAGES = ("aig", "pipelines", "tune")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages_and_the_console_script(wheel):
    files = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        held = {name for name in archive.namelist() if not name.startswith(scripts.partition("/")[0])}
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(scripts).decode())
    assert held == expected
    assert {"aig/py.typed", "pipelines/presets/demo.yaml", "pipelines/report/page.html.j2"} < held
    assert dict(entries["console_scripts"]) == {"aig": "pipelines.__main__:script"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The program of a fresh environment with nothing of ours but the wheel; what it depends on is this one's."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "aig"


def run_installed(program, folder, *arguments):
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([program, *arguments], cwd=folder, env=outside, capture_output=True, text=True, timeout=500)


@pytest.mark.kills
@pytest.mark.timeout(600)
def test_the_installed_program_runs_the_demo_from_any_folder_with_a_reward_from_there(installed, tmp_path):
    (tmp_path / "mine.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    keys = [f"run.storage={tmp_path}/runs", "ray.address=local", "evaluate.rewards=[fragile, 'mine:red']"]
    done = run_installed(installed, tmp_path, "demo", "--preset", "smoke", *keys)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "smoke" / "report" / "index.html").is_file()
    assert "aig demo --preset smoke" in (tmp_path / "runs" / "smoke" / "arms.json").read_text()
    again = run_installed(installed, tmp_path, "report", f"run.storage={tmp_path}/elsewhere")
    assert again.returncode == 2 and "run `aig sweep` with the same configuration first" in again.stderr
