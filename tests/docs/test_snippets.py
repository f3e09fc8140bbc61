"""What README, the documentation and the examples show: it runs, its commands parse, and what it points to is there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import aig
from pipelines.commands.options import parse
from pipelines.commands.session import Session
from pipelines.commands.table import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
README_WORDS = 800
DEMO_ADAPTER = "aig-runs/demo/adapters/fragile-k1-kl0-s0"
EXAMPLES = {
    name: ["--steps", "1"] for name in ("annealed_pipeline.py", "lemmas.py")
}  # fewer steps than anyone would take

FENCE = re.compile(r"(?:<!-- not run: (.*?) -->\n)?^( *)```(\w*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)
FILE = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:yaml|toml|cff)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Snippet(NamedTuple):
    code: str
    not_run: str
    """Why it is only compiled; empty if it runs."""


def python_snippets(page: Path) -> list[Snippet]:
    blocks = FENCE.findall(page.read_text())
    return [Snippet(code, reason) for reason, _, language, code in blocks if language == "python"]


def shell_lines(page: Path) -> list[str]:
    """Lines of code blocks, continuations joined, and code within sentences."""
    text = page.read_text()
    blocks = [code for _, _, language, code in FENCE.findall(text) if language in ("", "sh")]
    text = FENCE.sub("", text)
    blocks += INDENTED.findall(text)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + INLINE.findall(text)


def command_arguments(line: str) -> list[str] | None:
    """What a line gives to the command line, directly or through make; None for other lines and for outlines (…)."""
    words = shlex.split(line, comments=True) if line.startswith(("python -m pipelines ", "aig ", "make ")) else []
    if not words or "…" in line:
        return None
    if words[0] != "make":
        return words[1:] if words[0] == "aig" else words[3:]
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if "ARGS" not in given or words[1] not in ("demo", "submit"):
        return None
    arguments = ["demo"] * (words[1] == "demo") + shlex.split(given["ARGS"])
    return [*arguments, *(f"run.name={given[key]}" for key in ("RUN",) if key in given)]


SHOWN = {
    f"{page.relative_to(ROOT)}: {line}": arguments
    for page in PAGES
    for line in shell_lines(page)
    if (arguments := command_arguments(line))
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with the demo's run, as far as the pages use it, which is the working directory too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = aig.load("tiny")
    aig.adapters.attach(model.denoiser, "tuned", rank=2)
    with torch.no_grad():
        for parameter in aig.adapters.parameters(model.denoiser, "tuned"):
            parameter.add_(0.1)
    aig.adapters.save(model.denoiser, "tuned", tmp_path / DEMO_ADAPTER, {"reward": "fragile"})
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if python_snippets(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, home):
    names = {"__name__": "snippet"}
    for snippet in python_snippets(page):
        compiled = compile(snippet.code, str(page), "exec")
        if not snippet.not_run:
            exec(compiled, names)


@pytest.mark.parametrize("example", sorted(path.name for path in ROOT.glob("examples/*.py")))
def test_an_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example, *EXAMPLES.get(example, [])])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")


def test_pages_show_commands_both_ways_and_through_make():
    assert {line.split(": ", 1)[1].split()[0] for line in SHOWN} == {"python", "aig", "make"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A home with the runs that `measure` and `compare` take their configuration from."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("demo", "mine", "mine2"):
            arguments = parse(["demo", f"run.name={name}"])
            with Session(COMMANDS["demo"].resolve(arguments), "test", arguments) as session:
                session.claim()
    return home


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_parses_with_its_keys(line, runs, monkeypatch):
    monkeypatch.setenv("HOME", str(runs))
    monkeypatch.chdir(ROOT)  # where files that a command names lie, as deploy/gpu.yaml
    try:
        arguments = parse(SHOWN[line])
    except SystemExit as end:  # --help
        assert end.code == 0
    else:
        COMMANDS[arguments.command].resolve(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_are_there(page):
    text = FENCE.sub("", page.read_text())
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    missing = [link for link in links if not target_exists(page, link)]
    named = [code for code in INLINE.findall(text) if FILE.fullmatch(code) and "NAME" not in code]
    missing += [path for path in named if path.split("/")[0] in TOP and not (ROOT / path).exists()]
    programs = re.findall(r"python -m ((?:aig|benchmarks)[\w.]*)", page.read_text())
    missing += [module for module in programs if find_spec(module) is None]
    scripts = re.findall(r"python ([\w/]+\.py)", page.read_text())
    missing += [script for script in scripts if not (ROOT / script).exists()]
    assert missing == []


TOP = {path.name for path in ROOT.iterdir()}


def target_exists(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """The anchors that Python-Markdown and GitHub both give a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_names_what_the_checks_run():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= README_WORDS
    top = text.split("![")[0]
    assert "make demo" in top and "make test" in top
    targets = re.search(r"for target in ([\w ]+);", (ROOT / ".ci/run").read_text())
    assert targets and {"test", "kills"} <= set(targets[1].split())
    assert "`make kills`" in text


def test_how_it_is_built_lists_the_rooms_in_the_order_that_imports_follow():
    tested = re.findall(r'"(?:pipelines|tune)\.([a-z]\w*)"', (ROOT / "tests/test_house.py").read_text())
    shown = re.findall(r"^\| `(?:pipelines|tune)/(\w+)/`", (ROOT / "docs/house.md").read_text(), re.MULTILINE)
    assert shown == tested


def test_how_it_is_built_names_what_the_files_define():
    text = (ROOT / "docs/house.md").read_text()
    pairs = re.findall(r"`(\w+)` (?:\([^)]*\) )?(?:of|in) `([\w/]+\.py)`", " ".join(text.split()))
    assert len(pairs) >= 6
    missing = [pair for pair in pairs if not re.search(rf"^(?:def )?{pair[0]}\b", (ROOT / pair[1]).read_text(), re.M)]
    assert missing == []


def test_what_is_not_run_has_a_reason():
    reasons = [snippet.not_run for page in PAGES for snippet in python_snippets(page) if snippet.not_run]
    marks = sum(page.read_text().count("<!-- not run:") for page in PAGES)
    assert len(reasons) == marks and all(len(reason.split()) >= 3 for reason in reasons)
