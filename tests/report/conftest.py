"""A run with its report, and copies of it to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import reported_runs  # not above: the hub's client reads whether it is offline as it is imported

    from pipelines.report import write_report

    root = reported_runs.build(tmp_path_factory.mktemp("runs")).directory
    assert write_report(root) == root / "report" / "index.html"
    return root


@pytest.fixture(scope="session")
def page(run: Path) -> str:
    return (run / "report" / "index.html").read_text()


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")
