"""Scoring a folder: which images it has, what is said about wrong ones, what is written, resumed and printed."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pipeline_toys import HERE, bright, red

from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.cluster.connect import Cluster
from pipelines.evaluate import scorers, streaming
from pipelines.score import means

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

RED, BRIGHT, SPOILED = "pipeline_toys:red", "pipeline_toys:bright", "pipeline_toys:spoiled"


def picture(seed: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_rows(file: Path, rows: list[dict]) -> None:
    if file.suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_folder(folder: Path, count: int = 6, kind: str = ".jsonl", **more: list) -> list[dict]:
    """PNG files of two sizes, some in a subfolder, two a prompt, with their metadata; returns its rows."""
    (folder / "sub").mkdir(parents=True)
    rows = []
    for i in range(count):
        name = f"sub/{i}.png" if i % 3 == 0 else f"{i}.png"
        (folder / name).write_bytes(png(picture(i, width=10 if i % 2 else 14)))
        rows.append({"file_name": name, "text": f"prompt {i // 2}"} | {key: values[i] for key, values in more.items()})
    write_rows(folder / f"metadata{kind}", rows)
    return rows


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def scored_units(monkeypatch):
    """Units go through the actor's class in this process, without Ray; returns how many each run had."""
    counts: list[int] = []

    def scored(units, job, config, most):
        counts.append(len(units))
        return (scorers.Scorer(job)(pa.Table.from_pylist([unit])) for unit in units)

    monkeypatch.setattr(streaming, "rows", lambda items: items)
    monkeypatch.setattr(streaming, "scored", scored)
    monkeypatch.setattr(streaming, "quiet_data", lambda: None)
    monkeypatch.setattr(streaming, "run", lambda plan, total, *names, **more: list(plan))
    monkeypatch.setattr("pipelines.commands.session.Session.connect", lambda self: Cluster({"CPU": 4.0}, False, None))
    return counts


def score(folder: Path, *arguments: str, rewards: tuple[str, ...] = (RED,)) -> int:
    asked = [text for reward in rewards for text in ("--reward", reward)]
    out = folder.parent / "scores.parquet"
    return main(["score", str(folder), *asked, "--out", str(out), "evaluate.score_batch=2", *arguments])


def scores(folder: Path) -> pa.Table:
    return pq.read_table(folder.parent / "scores.parquet")


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_every_image_has_the_score_of_its_file(tmp_path, scored_units, kind):
    rows = make_folder(tmp_path / "images", kind=kind)
    assert score(tmp_path / "images", rewards=(RED, BRIGHT)) == 0
    table = scores(tmp_path / "images")
    assert table.column_names == ["id", "file", "prompt", "height", "width", "pipeline_toys-red",
                                  "pipeline_toys-bright", "error"]  # fmt: skip
    assert table["file"].to_pylist() == [row["file_name"] for row in rows]
    assert table["prompt"].to_pylist() == [row["text"] for row in rows]
    assert len(set(table["id"].to_pylist())) == len(rows)
    for i, row in enumerate(table.to_pylist()):
        pixels = picture(i, width=10 if i % 2 else 14)
        assert (row["height"], row["width"]) == pixels.shape[:2]
        assert row["pipeline_toys-red"] == pytest.approx(red(tensor(pixels), [""]).item(), abs=1e-5)
        assert row["pipeline_toys-bright"] == pytest.approx(bright(tensor(pixels), [""]).item(), abs=1e-5)
    assert scored_units == [3]


def test_each_subfolder_may_have_its_own_metadata(tmp_path, scored_units):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").write_bytes(png(picture(0)))
        write_rows(tmp_path / "images" / name / "metadata.jsonl", [{"file_name": "0.png", "caption": name}])
    assert score(tmp_path / "images") == 0
    table = scores(tmp_path / "images")
    assert dict(zip(table["file"].to_pylist(), table["prompt"].to_pylist(), strict=True)) == {
        "a/0.png": "a", "b/0.png": "b",
    }  # fmt: skip


@pytest.mark.parametrize("struct", [False, True])
def test_a_parquet_file_may_hold_the_images_themselves(tmp_path, scored_units, struct):
    folder = tmp_path / "images"
    folder.mkdir()
    contents = [png(picture(i)) for i in range(5)]
    images = [{"bytes": c, "path": None} for c in contents] if struct else contents
    table = pa.table({"id": list("abcde"), "prompt": list("vwxyz"), "image": images})
    pq.write_table(table, folder / "part-1.parquet", row_group_size=2)
    pq.write_table(pa.table({"metric": ["vendi"]}), folder / "another.parquet")
    assert score(folder) == 0
    found = scores(folder)
    assert found["image_id"].to_pylist() == list("abcde")
    assert found["file"].to_pylist() == [f"part-1.parquet#{i}" for i in range(5)]
    expected = [red(tensor(picture(i)), [""]).item() for i in range(5)]
    assert found["pipeline_toys-red"].to_pylist() == pytest.approx(expected, abs=1e-5)


def test_the_metadata_may_lie_elsewhere_and_have_columns_of_other_names(tmp_path, scored_units):
    rows = make_folder(tmp_path / "images")
    (tmp_path / "images" / "metadata.jsonl").unlink()
    renamed = [{"where": row["file_name"], "what": row["text"], "style": "anime"} for row in rows]
    write_rows(tmp_path / "prompts.csv", renamed)
    options = ["--prompts", str(tmp_path / "prompts.csv"), "--file-column", "where", "--prompt-column", "what"]
    assert score(tmp_path / "images", *options, "--group-column", "style") == 0
    table = scores(tmp_path / "images")
    assert table["prompt"].to_pylist() == [row["text"] for row in rows]
    assert set(table["group"].to_pylist()) == {"anime"}


def test_a_finished_run_scores_nothing_again_and_changes_nothing(tmp_path, scored_units, capsys):
    make_folder(tmp_path / "images")
    assert score(tmp_path / "images") == 0
    before = (tmp_path / "scores.parquet").stat().st_mtime_ns
    assert score(tmp_path / "images") == 0
    assert scored_units == [3]
    assert (tmp_path / "scores.parquet").stat().st_mtime_ns == before
    assert "All of them were scored already." in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "scores.parquet"]


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path, scored_units, monkeypatch, capsys):
    make_folder(tmp_path / "images")
    assert score(tmp_path / "images") == 0
    whole = (tmp_path / "scores.parquet").read_bytes()
    (tmp_path / "scores.parquet").unlink()

    def interrupted(plan, total, *names, **more):
        next(iter(plan))
        raise KeyboardInterrupt

    everything = streaming.run
    monkeypatch.setattr(streaming, "run", interrupted)
    assert score(tmp_path / "images") == 130
    assert not (tmp_path / "scores.parquet").exists()
    monkeypatch.setattr(streaming, "run", everything)
    assert score(tmp_path / "images") == 0
    assert scored_units == [3, 3, 2]
    assert "2 of 6 images are scored already." in capsys.readouterr().out
    assert (tmp_path / "scores.parquet").read_bytes() == whole


def test_an_image_that_was_added_or_changed_is_scored_and_no_other(tmp_path, scored_units):
    folder = tmp_path / "images"
    rows = make_folder(folder)
    assert score(folder) == 0
    (folder / "new.png").write_bytes(png(picture(10)))
    (folder / "1.png").write_bytes(png(picture(11, 20, 20)))
    write_rows(folder / "metadata.jsonl", [*rows[:-1], {"file_name": "new.png", "text": "new"}])
    assert score(folder) == 0
    assert scored_units == [3, 1]
    table = scores(folder)
    assert table["file"].to_pylist() == [*(row["file_name"] for row in rows[:-1]), "new.png"]
    assert table["height"].to_pylist()[1] == 20


def test_an_interrupted_run_with_other_rewards_is_no_hindrance(tmp_path, scored_units, monkeypatch):
    make_folder(tmp_path / "images")
    everything = streaming.run

    def interrupted(plan, total, *names, **more):
        next(iter(plan))
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "run", interrupted)
    assert score(tmp_path / "images", rewards=(BRIGHT,)) == 130
    monkeypatch.setattr(streaming, "run", everything)
    assert score(tmp_path / "images") == 0
    assert scored_units == [3, 3]


def test_a_file_of_other_scores_is_not_overwritten(tmp_path, scored_units, capsys):
    make_folder(tmp_path / "images")
    assert score(tmp_path / "images") == 0
    assert score(tmp_path / "images", rewards=(BRIGHT,)) == 2
    assert "holds something else: give another --out" in capsys.readouterr().err
    assert "pipeline_toys-red" in scores(tmp_path / "images").column_names


def test_an_image_that_cannot_be_read_is_named_after_the_others_are_scored(tmp_path, scored_units, capsys):
    folder = tmp_path / "images"
    make_folder(folder)
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "2.png").write_bytes(png(picture(2))[:200])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "4.png")
    assert score(folder) == 1
    err = capsys.readouterr().err
    assert "3 of 6 images have no score: 1.png: not an image that can be read" in err
    assert "2.png: not an image" in err and "4.png: not an image that can be read (its mode is I;16" in err
    table = scores(folder)
    assert [row["file"] for row in table.to_pylist() if row["error"]] == ["1.png", "2.png", "4.png"]
    assert table["pipeline_toys-red"].null_count == table["height"].null_count == 3
    (folder / "1.png").write_bytes(png(picture(1)))
    assert score(folder) == 1
    assert scored_units == [3, 2]  # the mended one, and those that failed once more


def test_a_score_that_is_nan_is_recorded_with_the_image_and_kept_out_of_the_mean(tmp_path, scored_units, capsys):
    folder = tmp_path / "images"
    rows = make_folder(folder)
    rows[2]["text"] = "a red heart"
    write_rows(folder / "metadata.jsonl", rows)
    assert score(folder, rewards=(SPOILED, BRIGHT)) == 1
    captured = capsys.readouterr()
    assert "1 of 6 images have no score: 2.png: the score of pipeline_toys-spoiled is nan" in captured.err
    row = scores(folder).to_pylist()[2]
    assert row["pipeline_toys-spoiled"] is None and row["pipeline_toys-bright"] is not None
    assert " nan" not in captured.out


def test_a_weighted_sum_is_a_column_beside_those_of_its_terms(tmp_path, scored_units, capsys):
    make_folder(tmp_path / "images")
    define = f"rewards.define={{shine: {{name: '{BRIGHT}'}}}}"
    assert score(tmp_path / "images", define, rewards=(f"0.5*{RED} + 3*shine",)) == 0
    table = scores(tmp_path / "images")
    total = "0-5-pipeline_toys-red-3-shine"
    expected = 0.5 * table["pipeline_toys-red"].to_numpy() + 3 * table["shine"].to_numpy()
    np.testing.assert_allclose(table[total].to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert "raw weighted sum" in capsys.readouterr().out


@pytest.mark.parametrize("metadata", [False, True])
def test_a_reward_that_reads_no_prompt_needs_none(tmp_path, scored_units, metadata, capsys):
    folder = tmp_path / "images"
    rows = make_folder(folder)
    (folder / "metadata.jsonl").unlink()
    if metadata:
        write_rows(folder / "metadata.jsonl", [{"file_name": row["file_name"]} for row in rows])
    assert score(folder, rewards=("pipeline_toys:promptless",)) == 0
    found = {row["file"]: row for row in scores(folder).to_pylist()}
    assert set(found) == {row["file_name"] for row in rows} and {row["prompt"] for row in found.values()} == {""}
    for i, row in enumerate(rows):
        expected = bright(tensor(picture(i, width=10 if i % 2 else 14)), [""]).item()
        assert found[row["file_name"]]["pipeline_toys-promptless"] == pytest.approx(expected, abs=1e-5)
    said = capsys.readouterr().out
    assert "6 images in" in said and "6 of them without prompts" in said
    line = next(line for line in said.splitlines() if line.startswith("all"))
    assert line.split()[1:3] == ["6", "6"] and "[" in line  # an image is the unit where there is no prompt


def test_beside_a_reward_that_reads_prompts_they_are_needed(tmp_path, capsys):
    folder = tmp_path / "images"
    make_folder(folder)
    (folder / "metadata.jsonl").unlink()
    assert score(folder, rewards=("pipeline_toys:promptless", RED)) == 2
    assert "has no prompts: put a metadata.jsonl" in capsys.readouterr().err


def test_a_folder_without_images_is_refused_where_no_prompt_is_needed(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert score(tmp_path / "images", rewards=("pipeline_toys:promptless",)) == 2
    assert "has no image files" in capsys.readouterr().err


def test_groups_are_printed_with_intervals_over_prompts(tmp_path, scored_units, capsys):
    styles = ["anime"] * 4 + ["photo"] * 4
    make_folder(tmp_path / "images", 8, style=styles)
    assert score(tmp_path / "images", "--group-column", "style") == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("group"))
    cells = [line.split() for line in lines[start : start + 4]]
    assert [cell[:3] for cell in cells[1:3]] == [["anime", "2", "4"], ["photo", "2", "4"]]
    assert cells[3][:4] == ["all", "groups", "4", "8"]
    assert lines[start + 4] == "(means over prompts, with 95 % intervals; no interval below 4 prompts)"
    assert not any("[" in line for line in lines[start + 1 : start + 3]) and "[" in lines[start + 3]


def test_the_unit_of_the_interval_is_the_prompt():
    """Ten copies of every image change nothing; nor does a prompt that has more images than another."""
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, 12)
    prompts = [f"p{i}" for i in range(12)]
    once = means.means(pa.table({"prompt": prompts, "r": values}), ["r"], configuration.Front())[0]
    repeats = [3, 1, 10, *[2] * 9]
    many = pa.table({"prompt": np.repeat(prompts, repeats), "r": np.repeat(values, repeats)})
    again = means.means(many, ["r"], configuration.Front())[0]
    assert (again.prompts, again.images) == (12, 32)
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))
    assert once.value == pytest.approx(values.mean())
    half = 2.201 * values.std(ddof=1) / 12**0.5  # the t interval with 11 degrees of freedom
    assert (once.high - once.low) / 2 == pytest.approx(half, rel=0.15)


def test_one_prompt_has_a_mean_and_no_interval():
    (mean,) = means.means(pa.table({"prompt": ["p", "p"], "r": [1.0, 2.0]}), ["r"], configuration.Front())
    assert mean.value == 1.5 and np.isnan(mean.low)
    assert means.summary([mean], 0.95).splitlines()[1].split() == ["all", "1", "2", "1.50"]


def test_a_group_of_three_prompts_has_a_mean_and_no_interval_and_one_of_four_has_both():
    for prompts in (3, 4):
        rows = pa.table({"prompt": [f"p{i}" for i in range(prompts)], "r": np.arange(prompts, dtype=float)})
        found = means.means(rows, ["r"], configuration.Front())
        assert np.isnan([found[0].low, found[0].high]).all() == (prompts < 4)
        assert ("no interval below 4 prompts" in means.summary(found, 0.95)) == (prompts < 4)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ("no metadata", [], "has no prompts: put a metadata.jsonl"),
        ("no folder", [], "does not exist: give a folder of images"),
        ("no column", [], "has no column 'prompt' or 'text' or 'caption'; it has file_name, words: choose with"),
        ("", ["--prompt-column", "said"], "has no column 'said'; it has file_name, text"),
        ("", ["--group-column", "style"], "has no column 'style'"),
        ("empty prompt", [], "metadata.jsonl, line 2: text is empty: give every image a prompt"),
        ("twice", [], "sub/0.png is listed twice: give each file once"),
        ("absent", [], "2 of 6 files do not exist, the first gone.png (line 2)"),
        ("broken line", [], "metadata.jsonl, line 2: not JSON"),
        ("no rows", [], "has no column"),
        ("", ["--prompts", "nowhere.csv"], "--prompts nowhere.csv is not a file"),
        ("", ["--reward", "pickscor"], "reward 'pickscor' is not known; did you mean 'pickscore'?"),
        ("", ["--reward", "hpsv2.1"], "reward 'hpsv2.1' needs HPS_v2.1_compressed.pt from https://huggingface.co/xswu"),
        ("", ["--rewards", "pickscore"], "unknown option --rewards"),
        ("", ["evaluate.score_batch=0"], "evaluate.score_batch is 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, change, options, expected, capsys, monkeypatch):
    folder = tmp_path / "images"
    rows = make_folder(folder)
    file = folder / "metadata.jsonl"
    if change == "no metadata":
        file.unlink()
    elif change == "no folder":
        folder = tmp_path / "other"
    elif change == "no column":
        write_rows(file, [{"file_name": row["file_name"], "words": row["text"]} for row in rows])
    elif change == "empty prompt":
        write_rows(file, [rows[0], {**rows[1], "text": "  "}, *rows[2:]])
    elif change == "twice":
        write_rows(file, [*rows, rows[0]])
    elif change == "absent":
        write_rows(file, [rows[0], *({**row, "file_name": "gone.png"} for row in rows[1:3]), *rows[3:]])
    elif change == "broken line":
        file.write_text(json.dumps(rows[0]) + "\n{file_name\n")
    elif change == "no rows":
        file.write_text("")
    assert score(folder, *options) == 2
    err = capsys.readouterr().err
    assert expected in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "scores.parquet").exists()


def test_without_a_reward_the_command_says_so(tmp_path, capsys):
    assert main(["score", str(tmp_path)]) == 2
    assert "the following arguments are required: --reward" in capsys.readouterr().err


@pytest.mark.timeout(280)
def test_a_folder_goes_through_ray_to_the_same_scores_with_its_warnings(ray_cluster, tmp_path, capfd):
    folder = tmp_path / "images"
    make_folder(folder)
    assert score(folder, rewards=(RED, "pipeline_toys:warning")) == 0
    values = scores(folder)["pipeline_toys-red"].to_pylist()
    for i, value in enumerate(values):
        assert value == pytest.approx(red(tensor(picture(i, width=10 if i % 2 else 14)), [""]).item(), abs=1e-5)
    assert capfd.readouterr().err.count("were truncated") == 1
