"""Prompts: files as they are published, which of them train and which judge, what is said where they are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import measured_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aig.models import TinyModel
from aig.world.scenes import held_out_prompts, training_prompts
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.config import ConfigError
from pipelines.evaluate import generate
from pipelines.front import front
from pipelines.study import models, prompts
from pipelines.study.prompts import EVALUATE, HELD_OUT, SEARCH, TRAIN, read, resolve_prompts
from pipelines.study.resolved import resolve, resolve_images
from pipelines.train import dry_run

STAR, HEART = "a red star", "a blue heart"
RIDING = 'a horse "riding" an astronaut'
SIGN = '"Deep Learning" on a sign, and "more"'


def asked(*overrides: str) -> configuration.Config:
    return configuration.load(None, None, overrides)


# --- files ------------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "text": ("a.txt", f"{STAR}\n{HEART}\n".encode(), [STAR, HEART]),
    "blank lines, doubles and any suffix": ("a.prompts", f"{STAR}\n\n {HEART} \n{STAR}".encode(), [STAR, HEART]),
    "line ends of Windows": ("a.txt", f"{STAR}\r\n{HEART}\r\n".encode(), [STAR, HEART]),
    "line ends of old Macs": ("a.txt", f"{STAR}\r{HEART}".encode(), [STAR, HEART]),
    "a byte-order mark": ("a.txt", f"\ufeff{STAR}\n{HEART}".encode(), [STAR, HEART]),
    "what str.splitlines cuts at": (
        "a.txt", f"{STAR}\u2028on\x0ba\x0ctree\x1c\x85\u2029.\n{HEART}".encode(),
        [f"{STAR}\u2028on\x0ba\x0ctree\x1c\x85\u2029.", HEART],
    ),
    "PartiPrompts": (
        "PartiPrompts.tsv",
        f"Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tnote\n{RIDING}\tAnimals\tImagination\t\n"
        f'{SIGN}\tArtifacts\tWriting\t\n"unfinished\tArtifacts\t\t\n{STAR}\u2028, {HEART}\tArts\tBasic\n'.encode(),
        ["bond", RIDING, SIGN, '"unfinished', f"{STAR}\u2028, {HEART}"],
    ),
    "a table with a byte-order mark": ("a.tsv", f"\ufeffprompt\tn\n{STAR}\t1\n{HEART}\t2".encode(), [STAR, HEART]),
    "a table of commas": (
        "a.csv", b'id,Caption\r\n1,"a cat, on a mat"\r\n\r\n2,"a horse ""riding"" an astronaut"\r\n',
        ["a cat, on a mat", RIDING],
    ),
    "HPDv2's benchmark": ("anime.json", json.dumps([STAR, RIDING]).encode(), [STAR, RIDING]),
    "HPDv2's test": (
        "test.json", json.dumps([{"prompt": STAR, "rank": [0, 1]}, {"prompt": HEART, "rank": [1, 0]}]).encode(),
        [STAR, HEART],
    ),
    "objects by line": (
        "metadata.jsonl",
        f'{{"n": 1, "prompt": "{STAR}\u2028."}}\n\n{{"n": 2, "prompt": "{HEART}"}}\n'.encode(),
        [f"{STAR}\u2028.", HEART],
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_file_is_read_as_it_is_published(layout, tmp_path):
    name, content, expected = PUBLISHED[layout]
    (tmp_path / name).write_bytes(content)
    assert read(str(tmp_path / name), TRAIN) == expected
    for key in (TRAIN, EVALUATE, SEARCH, HELD_OUT):
        assert resolve_prompts(asked(f"{key}={tmp_path / name}"), key) == expected


@pytest.mark.parametrize("column", ["caption", "prompt", "text", "Prompt"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_file_is_read_by_its_column_of_prompts_as_pick_a_pic_has_it(column, kind, tmp_path):
    texts = pa.array([STAR, HEART, STAR]).cast(kind)
    table = pa.table({"jpg_0": [b"\xff\xd8"] * 3, column: texts, "label_0": [1.0] * 3})
    pq.write_table(table, tmp_path / "validation.parquet")
    assert read(str(tmp_path / "validation.parquet"), TRAIN) == [STAR, HEART]


WRONG = {
    "nothing": ("a.txt", b"", "has 0 prompts: give at least two"),
    "one prompt": ("a.txt", b"a red star\n\n", "has 1 prompts: give at least two"),
    "an empty table": ("a.tsv", b"\n", "is empty: give a header with a column prompt, caption or text"),
    "a header alone": ("a.csv", b"prompt,n\n", "has 0 prompts"),
    "no header": (
        "a.csv",
        b"a red star\na blue heart\n",
        "has no column of prompts, but 'a red star': name one",
    ),
    "no column": (
        "a.tsv",
        b"Category\tNote\nx\ty",
        "has no column of prompts, but 'Category', 'Note': name one",
    ),
    "two columns": ("a.tsv", b"prompt\tText\nx\ty", "has several columns of prompts (prompt, Text): leave one of them"),
    "a column twice": ("a.tsv", b"prompt\tprompt\nx\ty", "has several columns of prompts (prompt, prompt)"),
    "commas unquoted": (
        "a.csv",
        b"n,prompt\n1,a cat, on a mat\n2,b",
        "has 3 cells in row 2 and 2 columns: commas",
    ),
    "tabs in a prompt": ("a.tsv", b"prompt\na\tb\nc", "has 2 cells in row 2 and 1 columns: tabs separate them"),
    "a short row": ("a.tsv", b"n\tprompt\n1\tx\n2\n3\ty", "has no 'prompt' in row 3: fill it in"),
    "a quote left open": ("a.csv", b'prompt,n\n"a cat,1\na dog,2\n', "cannot be read (unexpected end of data)"),
    "a quote that ends early": ("a.csv", b'prompt\n"Deep" on a sign\nx\n', "cannot be read ("),
    "another encoding": ("a.txt", "Salvador Dalí\n".encode("latin-1"), "is not UTF-8 (byte 12): save it as UTF-8"),
    "no JSON": ("a.json", b"[", "cannot be read (Expecting value: line 1"),
    "no list": ("a.json", b'{"prompts": []}', "is JSON, and no list: give a list of texts"),
    "an empty list": ("a.json", b"[]", "has 0 prompts"),
    "a number among texts": ("a.json", b'["a", 3]', "has 3 as entry 2: a prompt is a text"),
    "null among texts": ("a.json", b'["a", null]', "has None as entry 2: a prompt is a text"),
    "an object among texts": ("a.json", b'["a", {"prompt": "b"}]', "has {'prompt': 'b'} as entry 2"),
    "an object without": ("a.jsonl", b'{"prompt": "a"}\n{"n": 1}\n', "has None as 'prompt' of object 2"),
    "a line that is no JSON": ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": "b"', "is no JSON in line 3 (Expecting"),
    "objects without": ("a.jsonl", b'{"url": "a"}\n{"n": 1}\n', "has no column of prompts, but 'url', 'n'"),
    "objects with two": ("a.jsonl", b'{"prompt": "a", "text": "b"}\n', "has several columns of prompts (prompt, text)"),
    "no parquet": ("a.parquet", b"a red star\n", "cannot be read ("),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_say_what_its_prompts_are_is_refused_with_the_reason_and_the_fix(case, tmp_path):
    name, content, said = WRONG[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(str(tmp_path / name), EVALUATE)
    assert str(error.value).startswith(f"evaluate.prompts: {tmp_path / name} {said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["txt", "tsv", "csv", "json", "jsonl", "parquet"])
def test_a_file_that_is_not_there_is_named_whatever_its_kind(suffix, tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.\w+ cannot be read \(No such file or directory\): give a file of"):
        read(str(tmp_path / f"absent.{suffix}"), TRAIN)


@pytest.mark.parametrize(("values", "said"), [([STAR, None], "None as 'caption' of row 2"), ([1, 2], "1 as 'caption'")])
def test_a_column_of_something_else_than_texts_is_refused(values, said, tmp_path):
    pq.write_table(pa.table({"caption": values}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=said):
        read(str(tmp_path / "a.parquet"), TRAIN)


def test_files_are_read_without_torch_and_ray():
    probe = "import sys, pipelines.study.prompts; assert not {'torch', 'ray'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", probe], check=True)


# --- which train and which judge --------------------------------------------------------------------------------------


def test_a_number_takes_captions_that_train_or_captions_that_judge():
    every = asked("train.prompts=32", "evaluate.prompts=16", "search.prompts=32", "search.held_out=16")
    for key in (TRAIN, SEARCH):
        assert resolve_prompts(every, key) == training_prompts()
    for key in (EVALUATE, HELD_OUT):
        assert resolve_prompts(every, key) == held_out_prompts()
    assert set(prompts.validation_prompts(every)) <= set(training_prompts())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("train.prompts=33", "train.prompts is 33: the embedded world has 32 training captions; give fewer"),
        ("search.prompts=33", "search.prompts is 33: the embedded world has 32 training captions"),
        ("evaluate.prompts=17", "evaluate.prompts is 17: the embedded world has 16 held-out captions"),
        ("search.held_out=17", "search.held_out is 17: the embedded world has 16 held-out captions"),
        ("train.prompts=[]", r"train.prompts is \[\]: give at least one prompt"),
    ],
)
def test_more_captions_than_there_are_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        resolve_prompts(asked(wrong), wrong.partition("=")[0])


REAL = ("sd14", "sdxl", "sd3", "flux")
NEEDS = {
    "check": (TRAIN, EVALUATE), "train": (TRAIN, EVALUATE), "sweep": (TRAIN, EVALUATE), "evaluate": (TRAIN, EVALUATE),
    "demo": (TRAIN, EVALUATE), "search": (SEARCH, HELD_OUT),
}  # fmt: skip


@pytest.mark.parametrize("preset", REAL)
@pytest.mark.parametrize("command", NEEDS)
def test_another_model_than_the_embedded_one_needs_prompts_before_anything_is_downloaded(
    command, preset, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("nothing is to be downloaded"))
    assert main([command, "--preset", preset, f"run.storage={tmp_path / 'runs'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {' and '.join(NEEDS[command])} must be given: ") and err.count("\n") == 1
    assert (
        f"as in {NEEDS[command][0]}=FILE {NEEDS[command][1]}=FILE" in err
        and configuration.load(preset).model.name in err
    )
    assert not (tmp_path / "runs").exists()


def test_only_what_is_missing_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("nothing is to be downloaded"))
    given = ["--preset", "sdxl", f"run.storage={tmp_path / 'runs'}"]
    assert main(["sweep", *given, f"train.prompts=[{STAR}, {HEART}]"]) == 2
    assert capsys.readouterr().err.startswith("error: evaluate.prompts must be given: ")
    # What adapters from elsewhere were trained on is no matter of this run.
    assert main(["evaluate", *given, "--adapter", f"mine={tmp_path / 'lora.safetensors'}"]) == 2
    assert capsys.readouterr().err.startswith("error: evaluate.prompts must be given: ")
    (tmp_path / "a.tsv").write_text("Category\nx\n")
    assert main(["sweep", *given, f"train.prompts=[{STAR}, {HEART}]", f"evaluate.prompts={tmp_path / 'a.tsv'}"]) == 2
    assert "has no column of prompts, but 'Category'" in capsys.readouterr().err


@pytest.mark.parametrize("preset", REAL)
def test_a_dry_run_needs_no_prompts_and_says_that_they_are_missing(preset):
    config_ = configuration.load(preset)
    assert dry_run._prompts(config_) == (
        "missing: give train.prompts and evaluate.prompts, each as a list or a file, as in train.prompts=FILE "
        "evaluate.prompts=FILE"
    )
    given = configuration.load(preset, None, [f"train.prompts=[{STAR}, {HEART}]", f"evaluate.prompts=[{HEART}, a cat]"])
    assert dry_run._prompts(given).startswith("Trained on 2 prompts, judged on 2, of which 1 were trained on too")


def test_a_dry_run_shows_its_prompts(capsys):
    assert main(["train", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Trained on 32 captions of the embedded world, judged on 16 held-out ones: none is in both." in out


# --- what both train and judge ----------------------------------------------------------------------------------------


def test_prompts_that_train_and_judge_are_counted_white_space_and_case_aside():
    found = asked(
        f"train.prompts=[{STAR}, {HEART}, a cat, a dog]",
        "evaluate.prompts=[A  red Star, a bird, a Dog, the end, a fox]",
        "train.validate_prompts=2",
    )
    assert prompts.prompt_lists(found) == {
        "split": "given", "train": 4, "validate": 2, "evaluate": 5, "overlap": 2, "overlap_validate": 1, "elsewhere": 0,
    }  # fmt: skip
    said = prompts.describe(prompts.prompt_lists(found))
    assert "Trained on 4 prompts, judged on 5, of which 2 were trained on too (1 of them in validations" in said


def test_captions_of_the_world_are_split_and_given_ones_may_overlap():
    assert prompts.prompt_lists(asked()) == {
        "split": "embedded", "train": 32, "validate": 8, "evaluate": 16, "overlap": 0, "overlap_validate": 0,
        "elsewhere": 0,
    }  # fmt: skip
    mixed = asked(f"evaluate.prompts={json.dumps(training_prompts()[6:10])}")
    found = prompts.prompt_lists(mixed)
    assert (found["split"], found["overlap"], found["overlap_validate"]) == ("given", 4, 2)


def test_what_adapters_from_elsewhere_were_trained_on_is_said_to_be_unknown():
    alone = asked("sweep.rewards=[]", "evaluate.adapters=['mine=/x.safetensors']")
    assert prompts.describe(prompts.prompt_lists(alone)) == (
        "Judged on 16 prompts; what adapters from elsewhere were trained on is not known."
    )
    beside = prompts.describe(prompts.prompt_lists(asked("evaluate.adapters=['mine=/x.safetensors']")))
    assert "none is in both; what adapters from elsewhere" in beside


def test_the_check_tells_the_overlap(tmp_path, capsys):
    given = [f"run.storage={tmp_path / 'runs'}", f"evaluate.prompts=[{STAR}, {HEART}]", f"train.prompts=[{STAR}]"]
    assert main(["check", "--preset", "smoke", *given]) == 0
    assert "Trained on 1 prompts, judged on 2, of which 1 were trained on too" in capsys.readouterr().out


def test_the_record_of_the_fronts_has_the_counts_and_the_keys_that_others_read(tmp_path):
    found = measured_runs.build(measured_runs.settings(tmp_path))
    measured_runs.measured(found)
    written = json.loads(front.write_front(resolve(found)).read_text())
    assert written["prompts"] == 6
    assert written["prompt_lists"] == prompts.prompt_lists(found)
    assert (written["prompt_lists"]["evaluate"], written["prompt_lists"]["overlap"]) == (6, 0)


def test_validations_draw_noise_that_no_evaluation_draws():
    many = asked("evaluate.seeds=512", "train.validate_seeds=512")
    evaluated = {seed for unit in _units(many) for seed in unit.seeds}
    assert not evaluated & set(prompts.validation_seeds(many))
    assert len(set(prompts.validation_seeds(many))) == 512


def _units(found: configuration.Config) -> list[generate.Unit]:
    """Units of the base alone: their names need no adapters."""
    alone = replace(found.sweep, rewards=())
    evaluate = replace(found.evaluate, adapters=())
    return generate.units(resolve_images(replace(found, sweep=alone, evaluate=evaluate), TinyModel.defaults))
