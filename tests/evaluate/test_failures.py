"""Units that raise: tried twice, recorded, left out with their prompts; and images that are not this run's."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluations import arguments, save_lora
from measured_runs import TUNED, build, measured, refuse_ray, settings

from aig.models import TinyModel
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.cluster.connect import Cluster
from pipelines.commands import overview
from pipelines.config import ConfigError
from pipelines.evaluate import failures, generate, scorers
from pipelines.evaluate import images as dataset
from pipelines.evaluate.attempt import LONGEST, attempt
from pipelines.front import front
from pipelines.measure import table as measured_table
from pipelines.rewards import names
from pipelines.rewards import scores as rewards_scores
from pipelines.runs.directory import RunDir
from pipelines.runs.files import write_parquet
from pipelines.study.prompts import resolve_prompts
from pipelines.study.resolved import resolve, resolve_images


@dataclass(frozen=True)
class Unit:
    name: str
    prompt_id: int = 0
    prompt: str = "a star"
    seeds: tuple[int, ...] = (0, 1)


class Drawing(generate.Generator):
    """A generator without a model, which refuses some prompts, and counts its tries of each."""

    def __init__(self, refused, most=2):
        self.refused, self.most, self.tries = refused, most, []

    def units(self, rows):
        self.tries.append([row["prompt"] for row in rows])
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        for row in rows:
            if row["prompt"] in self.refused:
                raise ValueError(f"cannot draw {row['prompt']}\n on two lines")
        return [{**row, "image": [b"png"]} for row in rows]


def batch(*prompts):
    return pa.Table.from_pylist([
        {"unit": prompt, "prompt_id": i, "prompt": prompt, "seeds": [0]} for i, prompt in enumerate(prompts)
    ])  # fmt: skip


def test_a_prompt_that_cannot_be_drawn_is_tried_twice_and_the_others_of_its_batch_are_drawn():
    generator = Drawing({"b"})
    rows = generator(batch("a", "b")).to_pylist()
    assert [(row["unit"], row["image"], row["error"]) for row in rows] == [
        ("a", [b"png"], None), ("b", None, "ValueError: cannot draw b on two lines"),
    ]  # fmt: skip
    assert generator.tries == [["a", "b"], ["a"], ["b"]]
    generator.tries.clear()
    generator(batch("b"))
    assert generator.tries == [["b"], ["b"]]


def test_what_is_too_much_at_once_is_drawn_one_by_one():
    rows = Drawing(set(), most=1)(batch("a", "b")).to_pylist()
    assert [row["error"] for row in rows] == [None, None]


def test_an_error_that_leaves_the_gpu_useless_is_no_units_own():
    with pytest.raises(torch.AcceleratorError):
        attempt(lambda: (_ for _ in ()).throw(torch.AcceleratorError("device-side assert")))
    assert len(attempt(lambda: int("x" * 10_000))[1] or "") <= LONGEST + 4


class Job:
    """A job of an evaluation's kind, whose reward refuses stars."""

    warns, threads, batch = True, 1, 8

    def __init__(self, folder, keeps_failures=True):
        self.folder, self.keeps_failures = folder, keeps_failures

    def save(self, unit, table):
        write_parquet(self.folder / scorers.PART.format(unit=unit), table)

    def scores(self):
        return rewards_scores.Scores(names.columns(configuration.load(), ["pipeline_toys:refusing"]))

    def pictures(self, row):
        contents = [scorers.to_png(np.zeros((4, 4, 3), np.uint8))] * 2
        return scorers.Pictures(list("ab"), contents, [row["prompt"]] * 2, {"prompt": pa.array([row["prompt"]] * 2)})


def test_a_unit_that_makes_a_reward_raise_is_given_out_as_failed_and_the_next_is_scored(tmp_path):
    rows = [{"unit": "u", "prompt": "a star", "error": None}, {"unit": "v", "prompt": "a heart"}]
    rows += [{"unit": "w", "prompt": "a circle", "error": "ValueError: not drawn"}]
    found = scorers.Scorer(Job(tmp_path))(pa.Table.from_pylist(rows)).to_pylist()
    assert [(row["unit"], row["images"], row["stage"], row["error"]) for row in found] == [
        ("u", 0, "scored", "RuntimeError: a star has no brightness"), ("v", 2, None, None),
        ("w", 0, "drawn", "ValueError: not drawn"),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["part-v.parquet"]


def test_a_job_that_keeps_no_failures_ends_with_the_error(tmp_path):
    scorer = scorers.Scorer(Job(tmp_path, keeps_failures=False))
    with pytest.raises(RuntimeError, match="a star has no brightness"):
        scorer(pa.table({"unit": ["u"], "prompt": ["a star"]}))


def test_a_reward_that_fails_for_want_of_storage_ends_the_plan_and_makes_no_folder(tmp_path):
    folder = tmp_path / "run" / "images"
    scorer = scorers.Scorer(Job(folder))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'run'} is gone.*bring the storage back"):
        scorer(pa.table({"unit": ["u"], "prompt": ["a heart"]}))
    assert not list(tmp_path.iterdir())


def test_failures_are_written_as_they_come_and_forgotten_when_all_is_made(tmp_path):
    run, units = RunDir(tmp_path), [Unit(name) for name in "abc"]
    kept = failures.Failures(run, units, 8)
    kept.add("a", "drawn", "ValueError: no")
    expected = {"unit": "a", "prompt_id": 0, "prompt": "a star", "seeds": [0, 1], "stage": "drawn"}
    assert failures.read(run) == [{**expected, "error": "ValueError: no"}]
    kept.close()
    assert run.failures.exists()
    failures.Failures(run, units, 8).close()
    assert not run.failures.exists() and failures.read(run) == []


def test_too_many_failures_in_a_row_end_the_plan_unless_one_was_made_between_or_they_had_failed_before(tmp_path):
    units = [Unit(str(i)) for i in range(20)]
    kept = failures.Failures(RunDir(tmp_path), units, 3)
    for i in range(6):
        kept.add(str(i), "drawn", "no")
        kept.succeeded()
    kept.add("6", "drawn", "no")
    kept.add("7", "drawn", "no")
    with pytest.raises(failures.EvaluationError, match=r"3 groups of images failed in a row.*with CUDA is gone"):
        kept.add("8", "drawn", "CUDA is gone")

    again = failures.Failures(RunDir(tmp_path), units, 3)
    for i in range(9):
        again.add(str(i), "drawn", "no")
    again.add("9", "drawn", "no")
    again.add("10", "drawn", "no")
    with pytest.raises(failures.EvaluationError, match="3 groups"):
        again.add("11", "drawn", "no")


@pytest.fixture
def run(tmp_path):
    """A run of five arms, six prompts in two units each; the second unit of the third prompt failed."""
    found = build(settings(tmp_path))
    lost = [unit for unit in generate.units(resolve_images(found, TinyModel.defaults)) if unit.prompt_id == 2][1]
    files = RunDir.of(found)
    (files.images / generate.PART.format(unit=lost.name)).unlink()
    failures.Failures(files, [lost], 8).add(lost.name, "drawn", "ValueError: no")
    return found


def read(found):
    return dataset.read(resolve_images(found, TinyModel.defaults), without=["image", "features"])


def test_a_prompt_that_failed_is_left_out_for_all_arms_and_counted(run):
    images = read(run)
    assert (images.expected, images.found, images.missing, images.failed) == (5 * 6 * 4, 5 * 5 * 4, 0, 5 * 4)
    assert images.left_out == (2,) and 2 not in images.table["prompt_id"].to_pylist()
    images.require_complete()


def test_what_is_measured_without_a_prompt_is_what_a_run_of_the_other_prompts_measures(run, tmp_path):
    table = measured(run)
    prompts = resolve_prompts(run, "evaluate.prompts")
    kept = prompts[:2] + prompts[3:]
    whole = build(settings(tmp_path / "whole"))
    expected = measured(whole)
    assert table.prompts == kept == measured_table.read_table(resolve(run)).prompts
    for metric, values in table.rows([TUNED]).items():
        np.testing.assert_array_equal(values[0], np.delete(expected.rows([TUNED])[metric][0], 2), metric)
    again = measured_table.read_table(resolve(run))
    for metric, values in table.values.items():
        np.testing.assert_array_equal(again.values[metric], values)
    rows = {(row["arm"], row["metric"]): row for row in measured_table.read_rows(RunDir.of(run))}
    assert rows[TUNED, "vendi"]["prompts"] == 5 and rows[TUNED, "frechet"]["n"] == 20


def test_the_prompts_left_out_are_named_in_the_record_and_the_fronts_rest_on_the_others(run):
    measured(run)
    check = json.loads(RunDir.of(run).arms.read_text())["check"]
    prompts = resolve_prompts(run, "evaluate.prompts")
    assert check == {
        "expected": 120, "found": 100, "missing": 0, "duplicate": 0, "failed": 20, "prompts_left_out": [prompts[2]],
    }  # fmt: skip
    assert json.loads(front.write_front(resolve(run)).read_text())["prompts"] == 5


def test_a_share_of_failures_that_is_let_pass_is_told_and_a_larger_one_is_an_error(run, capsys):
    with pytest.raises(failures.EvaluationError, match=r"1 of 12 groups of images failed, and 1 prompts are left out"):
        failures.conclude(resolve(run))
    passing = configuration.load("smoke", None, [f"run.storage={run.run.storage}", "evaluate.max_failed=0.1"])
    failures.conclude(resolve(passing))
    assert "1 of 12 groups of images failed" in capsys.readouterr().out


def test_the_status_names_what_failed(run):
    lost = resolve_prompts(run, "evaluate.prompts")[2]
    assert f"failures   1 units, as of {lost!r}: ValueError: no" in overview.report(run.directory)


def test_a_unit_that_was_made_after_all_is_no_failure(run):
    (row,) = failures.of_run(RunDir.of(run))
    files = RunDir.of(run)
    source = next(files.images.glob("*.parquet"))
    shutil.copyfile(source, files.images / generate.PART.format(unit=row["unit"]))
    assert failures.of_run(RunDir.of(run)) == [] and read(run).failed == 0


def test_a_run_of_which_too_little_is_left_is_not_measured(tmp_path):
    found = build(settings(tmp_path))
    files, units = RunDir.of(found), generate.units(resolve_images(found, TinyModel.defaults))
    lost = [unit for unit in units if unit.prompt_id > 0]
    kept = failures.Failures(files, lost, 99)
    for unit in lost:
        (files.images / generate.PART.format(unit=unit.name)).unlink()
        kept.add(unit.name, "drawn", "no")
    with pytest.raises(failures.EvaluationError, match=r"5 of 6 prompts failed, and two have to be left: no; see"):
        measured(found)


def test_images_of_another_run_are_refused_and_left_where_they_are(tmp_path):
    theirs = build(settings(tmp_path / "theirs", "evaluate.lora_scales=[0.25]"))
    ours = build(settings(tmp_path / "ours"))
    folder = RunDir.of(ours).images
    for path in RunDir.of(theirs).images.glob("*.parquet"):
        shutil.copyfile(path, folder / path.name)
    there = sorted(path.name for path in folder.iterdir())
    with pytest.raises(
        ConfigError, match=r"part-\w+.parquet holds images of another run \('.*x0.25' is nothing of this"
    ):
        generate.generate(resolve_images(ours, TinyModel.defaults), refuse_ray)
    assert sorted(path.name for path in folder.iterdir()) == there


def test_images_of_adapters_that_were_trained_anew_make_room(tmp_path, capsys):
    ours = build(settings(tmp_path))
    folder = RunDir.of(ours).images
    stale = folder / "part-0123456789abcdef.parquet"
    shutil.copyfile(next(folder.glob("*.parquet")), stale)
    assert generate.generate(resolve_images(ours, TinyModel.defaults), refuse_ray) == 0
    assert (
        not stale.exists()
        and "Removing 1 groups of images that an earlier version made, or whose model, adapters"
        in capsys.readouterr().out
    )


def test_a_file_that_is_none_of_ours_is_refused_by_its_name(tmp_path):
    ours = build(settings(tmp_path))
    strange = RunDir.of(ours).images / "part-strange.parquet"
    pq.write_table(pa.table({"x": [1]}), strange)
    with pytest.raises(ConfigError, match=r"part-strange.parquet is no file of images"):
        generate.generate(resolve_images(ours, TinyModel.defaults), refuse_ray)
    assert strange.exists()


class Plan:
    """A plan that is carried out in this process, without Ray."""

    def __init__(self, study, missing, pool, generator):
        self.study, self.missing = study, missing

    def iter_batches(self, **options):
        generator, scorer = generate.Generator(self.study), scorers.Scorer(generate.Evaluation(self.study))
        for unit in self.missing:
            yield scorer(generator(pa.Table.from_pylist([unit.row()])))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The folder of a model, and a LoRA file for it."""
    folder = tmp_path_factory.mktemp("models")
    return folder / "untrained", save_lora(folder / "untrained", folder / "mine.safetensors")


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(generate, "_plan", Plan)
    there = Cluster({"CPU": 4.0}, started=False, dashboard=None)
    monkeypatch.setattr("pipelines.commands.session.Session.connect", lambda self: there)


SMALL = {"evaluate__prompts": 5, "model__steps": 2, "evaluate__path_prompts": 0}  # the fourth caption has a star


def test_an_evaluation_goes_on_without_a_poison_prompt_and_then_ends_with_exit_code_1(
    inputs, without_ray, tmp_path, capsys
):
    given = arguments(*inputs, tmp_path, **SMALL)
    found = configuration.load("smoke", None, given[2:])
    for _ in range(2):  # the same again, of what failed alone
        assert main(["evaluate", *given]) == 1
        said = capsys.readouterr()
        assert "Images: 32 of 40 found, 0 missing, 0 duplicate, 8 left out." in said.out
        assert "1 of 5 groups of images failed, and 1 prompts are left out: 'a green star'" in said.err
        (row,) = failures.read(RunDir.of(found))
        assert (row["prompt_id"], row["stage"]) == (3, "scored") and "a star has no brightness" in row["error"]
    assert "4 of 5 groups of images are there already" in said.out
    assert json.loads(RunDir.of(found).front.read_text())["prompts"] == 4
    assert main(["evaluate", *given, "evaluate.max_failed=0.2"]) == 0
    assert main(["measure", str(found.directory)]) == 0


def test_an_error_that_hits_every_group_ends_the_evaluation_at_once(inputs, without_ray, tmp_path, capsys):
    stars = [f"a {colour} star" for colour in ("red", "green", "blue", "pink", "cyan")]
    given = arguments(*inputs, tmp_path, **{**SMALL, "evaluate__prompts": json.dumps(stars)})
    assert main(["evaluate", *given, "evaluate.failures_in_a_row=3"]) == 1
    said = capsys.readouterr().err
    assert "3 groups of images failed in a row" in said and "RuntimeError: a star has no brightness" in said
    files = RunDir(configuration.load("smoke", None, given[2:]).directory)
    assert len(failures.read(files)) == 3 and not files.metrics.exists()
