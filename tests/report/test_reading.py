"""What is wrong with a run's files, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.report import write_report


def edit(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Damage of a JSON file."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_png(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"image": b"not a picture"} for row in rows]), path)


def drop_prompts(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["prompt"]), path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.yaml", Path.unlink, r"^config\.yaml is missing in copy/: give the directory of a run"),
        ("config.yaml", lambda p: p.write_text("a: [1"), r"^config\.yaml is not YAML .*: give"),
        ("config.yaml", lambda p: p.write_text("[]"), r"^config\.yaml is wrong at its top: \[\], .*: give"),
        ("arms.json", Path.unlink, r"^arms\.json is missing in copy/: run `python -m pipelines measure RUN` again"),
        ("arms.json", truncate, r"^arms\.json is not JSON \(line \d+: .*: run"),
        ("arms.json", edit(lambda c: c.pop("arms")), r"^arms\.json has no arms: run"),
        ("arms.json", edit(lambda c: c["arms"][2].pop("name")), r"^arms\.json has no arms\[2\]\.name: run"),
        ("arms.json", edit(lambda c: c["arms"].pop()), r"^front\.json is out of date: arms\.json has no arm '.*run"),
        ("front.json", Path.unlink, r"^front\.json is missing in copy/: run `python -m pipelines front --config"),
        ("front.json", lambda p: p.write_text("[]"), r"^front\.json is wrong at its top: \[\], .*: run"),
        ("front.json", edit(lambda c: c.pop("format")), r"^front\.json was written by another version \(format 1, not"),
        ("curves/*-kl0-s0.jsonl", truncate, r"^curves/.*-kl0-s0\.jsonl, line \d, is not JSON .*: run `python -m pip"),
        ("curves/*-kl0-s0.jsonl", lambda p: p.write_text("{}\n"), r"jsonl, line 1, has no step: run"),
        ("images/*.parquet", truncate, r"^images/part-.*\.parquet is not a parquet file .*: delete it and run"),
        ("images/*.parquet", drop_prompts, r"^images/part-.*\.parquet has no column prompt: delete it and run"),
        ("images/*.parquet", spoil_png, r"^images/ has an image that is not a PNG \(arm 'base', prompt \d, seed 0\)"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_and_the_fix_and_leaves_the_earlier_report(
    copy: Path, file: str, damage: Callable[[Path], Any], message: str
) -> None:
    before = (copy / "report" / "index.html").read_bytes()
    for path in copy.glob(file):
        damage(path)
    with pytest.raises(ValueError, match=message) as error:
        write_report(copy)
    assert "\n" not in str(error.value)
    assert (copy / "report" / "index.html").read_bytes() == before
    assert not list(copy.glob(".report*"))


def test_a_directory_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="nowhere is not a directory: give the directory of a run"):
        write_report(Path("nowhere"))
