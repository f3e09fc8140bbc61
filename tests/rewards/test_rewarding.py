"""Rewards in a configuration: what a name means, what may be trained on, and what the terms of a sum are divided by."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import bare_training
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_toys import HERE, bright, overrides, red

from aig import adapters, rewards
from aig.models import TinyModel
from aig.sampler import Arm, sample_arms, to_uint8
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.cluster.connect import Cluster
from pipelines.config import ConfigError
from pipelines.config.values import slug
from pipelines.evaluate import images as dataset
from pipelines.evaluate import scorers
from pipelines.rewards import names
from pipelines.rewards import scores as rewards_scores
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.runs.files import write_parquet
from pipelines.study import models, trainings
from pipelines.study import statistics as reward_statistics
from pipelines.study.prompts import validation_prompts
from pipelines.study.resolved import resolve_images
from pipelines.train import validation, worker

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

RED, BRIGHT, SPOILED = "pipeline_toys:red", "pipeline_toys:bright", "pipeline_toys:spoiled"
RED_COLUMN, BRIGHT_COLUMN = "pipeline_toys-red", "pipeline_toys-bright"


def defined(**definitions):
    return configuration.load(
        None, None, [f"rewards.define={json.dumps({k.replace('_', '-'): v for k, v in definitions.items()})}"]
    )


def named(found):
    return [(term.name, term.weight, term.column) for term in found]


def test_a_definition_is_the_reward_that_it_names_under_its_own_name():
    found = names.terms(defined(my_hps={"name": "hpsv2.1", "weights": "/data/w.pt"}), "my-hps")
    assert named(found) == [("hpsv2.1", 1, "my-hps")]
    assert found[0].weights == "/data/w.pt"


def test_a_sum_of_definitions_and_sums_is_multiplied_out():
    loaded = defined(mine={"name": "fragile"}, mix="0.5*mine + 2*robust", pair=[{"name": "clip", "weight": 3}, "gold"])
    assert named(names.terms(loaded, "mix")) == [("fragile", 0.5, "mine"), ("robust", 2, "robust")]
    assert named(names.terms(loaded, "2*mix + 1e+1*pair")) == [
        ("fragile", 1, "mine"), ("robust", 4, "robust"), ("clip", 30, "clip"), ("gold", 10, "gold"),
    ]  # fmt: skip


def test_a_name_of_the_library_may_be_given_other_weights():
    loaded = defined(pickscore={"name": "pickscore", "weights": "/data/pick"}, both="pickscore + clip")
    assert names.terms(loaded, "both")[0].weights == "/data/pick"


@pytest.mark.parametrize(
    ("definitions", "name", "expected"),
    [
        ({"a": "b", "b": "a"}, "a", "'a' is not known"),
        ({"a": {"name": "hpsv2.1", "wieghts": "x"}}, "a", "did you mean 'weights'"),
        ({"a": {"name": "fragile"}}, "a + half*a", "'half' is no number"),
        ({}, "fragile + 2*fragile", "fragile occurs twice"),
        ({}, "fragil", "did you mean 'fragile'"),
    ],
)
def test_what_a_name_cannot_mean_is_said(definitions, name, expected):
    with pytest.raises(ValueError, match=expected):
        names.terms(defined(**definitions), name)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rewards.define={gold: {name: fragile}}", "'gold' cannot be a name"),
        ("rewards.define={'a+b': fragile}", "cannot be a name"),
        ("rewards.define={a: 3}", "a is 3: give a mapping"),
        ("rewards.define=fragile", "rewards.define is 'fragile': give a mapping"),
        ("rewards.dtype=float16", "give one of float32, bfloat16"),
        ("train.on_nan=hope", "give one of stop, skip"),
    ],
)
def test_a_wrong_definition_is_named_with_its_fix(override, expected):
    with pytest.raises(ConfigError, match=expected.replace("'", "['\"]")):
        configuration.load(None, None, [override])


@pytest.mark.parametrize("name", ["gold", "0.5*fragile + 0.5*gold_a", "judge", "0.5*fragile + 1e-6*judge", "mix"])
def test_gold_is_refused_for_training_wherever_it_hides(name):
    loaded = defined(judge={"name": "gold"}, mix=["fragile", {"name": "gold", "label": "nice"}])
    names.check(loaded, name)
    with pytest.raises(ValueError, match="exists to judge and is never tuned to"):
        names.check(loaded, name, trained=True)


def test_missing_weights_are_an_error_before_anything_is_loaded(tmp_path):
    loaded = defined(mine={"name": "hpsv2.1", "weights": str(tmp_path / "absent.pt")})
    with pytest.raises(ValueError, match=r"absent\.pt"):
        names.check(loaded, "0.5*fragile + 0.5*mine")


def test_every_term_of_a_sum_is_a_column():
    loaded = defined(mine={"name": "fragile"}, mix="0.5*mine + 0.5*robust")
    found = names.columns(loaded, ["mix", "robust", "fragile"])
    assert list(found.parts) == ["mine", "robust", "fragile"]
    assert found.sums == {"mix": {"mine": 0.5, "robust": 0.5}}


def test_two_rewards_of_one_column_are_refused():
    loaded = defined(mix=[{"name": "fragile", "label": "robust", "weight": 0.5}])
    with pytest.raises(ConfigError, match="share the column 'robust'"):
        names.columns(loaded, ["robust", "mix"])


def test_no_term_of_the_trained_sum_is_held_out():
    loaded = configuration.load(None, None, ["evaluate.rewards=[fragile, robust, clip]"])
    assert names.held_out(loaded, "fragile") == "robust"
    assert names.held_out(loaded, "0.5*fragile + 0.5*robust") == "clip"


def smoke(model, storage, *more, **keys):
    return configuration.load("smoke", None, [*overrides(model, storage, **keys), *more])


def base_images(found):
    """The base model's images of the validations' prompts and noise, uint8, with their prompts."""
    loaded = models.load_model(found)
    prompts, indices = validation_prompts(found), [configuration.VALIDATION_SEEDS + i for i in range(2)]
    texts = [prompt for prompt in prompts for _ in indices]
    seeds = indices * len(prompts)
    sampling = models.resolve_sampling(found, loaded.defaults)
    latents = sample_arms(loaded, texts, seeds, [Arm("base", None, 1.0, "base")], found.run.seed, sampling).latents[
        "base"
    ]
    with torch.no_grad():
        return to_uint8(loaded.decode(latents)).permute(0, 3, 1, 2), texts


@pytest.fixture(scope="module")
def with_sum(model, tmp_path_factory):
    """A run that trains on a weighted sum, its statistics measured; connecting to Ray is not needed for it."""
    total = f"0.5*{RED} + 0.5*{BRIGHT}"
    found = smoke(model, tmp_path_factory.mktemp("runs"), f"train.reward='{total}'", f"evaluate.rewards=['{total}']")
    identity.claim_directory(found)
    with pytest.MonkeyPatch.context() as patch:
        task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=reward_statistics._task))
        patch.setattr(reward_statistics, "ray", SimpleNamespace(remote=lambda _: task, get=lambda result: result))
        reward_statistics.ensure(found, lambda: Cluster({"CPU": 4.0}, False, None))
    return found


def test_statistics_are_those_of_the_base_models_images_as_saved(with_sum):
    images, prompts = base_images(with_sum)
    found = reward_statistics.read(with_sum)
    for column, reward in ((RED_COLUMN, red), (BRIGHT_COLUMN, bright)):
        values = reward(images.float() / 255, prompts).double()
        assert found[column] == pytest.approx((values.mean().item(), values.std().item()), rel=1e-4)
    written = json.loads(RunDir.of(with_sum).reward_statistics.read_text())
    assert written["components"][RED_COLUMN]["n"] == len(prompts)


def test_a_recorded_sum_of_the_base_models_own_scores_has_mean_zero(with_sum):
    images, prompts = base_images(with_sum)
    columns = names.columns(with_sum, with_sum.evaluate.rewards)
    found = rewards_scores.Scores(columns, reward_statistics.read(with_sum))(images, prompts)
    (total,) = columns.sums
    assert list(found) == [RED_COLUMN, BRIGHT_COLUMN, total]
    assert found[total].mean().item() == pytest.approx(0, abs=1e-4)
    z = [(found[name] - found[name].mean()) / found[name].std() for name in (RED_COLUMN, BRIGHT_COLUMN)]
    np.testing.assert_allclose(found[total], 0.5 * z[0] + 0.5 * z[1], atol=1e-3)


def test_the_trained_sum_is_the_recorded_one(with_sum):
    images, prompts = base_images(with_sum)
    statistics = reward_statistics.read(with_sum)
    trained = names.load_trained(with_sum, torch.device("cpu"), statistics)
    columns = names.columns(with_sum, with_sum.evaluate.rewards)
    recorded = rewards_scores.Scores(columns, statistics)(images, prompts)[next(iter(columns.sums))]
    torch.testing.assert_close(trained(images.float() / 255, prompts), recorded, rtol=1e-4, atol=1e-4)


def test_statistics_that_are_there_are_not_measured_again(with_sum):
    before = RunDir.of(with_sum).reward_statistics.stat().st_mtime_ns
    reward_statistics.ensure(with_sum, lambda: pytest.fail("nothing is to be measured"))
    assert RunDir.of(with_sum).reward_statistics.stat().st_mtime_ns == before


def test_missing_statistics_say_what_makes_them(with_sum, tmp_path):
    other = replace(with_sum, run=replace(with_sum.run, storage=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"reward_statistics\.json has no statistics of pipeline_toys-red"):
        reward_statistics.read(other)


@pytest.mark.parametrize(
    ("term", "error", "said"),
    [("constant", ValueError, "scores all 4 images of the base model 3"), ("spoiled", FloatingPointError, "heart")],
)
def test_a_term_that_cannot_be_normalized_is_refused(model, tmp_path, term, error, said):
    total = f"{RED} + pipeline_toys:{term}"
    prompts = "train.prompts=[a blue heart, a red star]"
    found = smoke(model, tmp_path, f"train.reward='{total}'", prompts)
    with pytest.raises(error, match=said):
        reward_statistics.measure(found, [f"pipeline_toys-{term}"])


def test_a_training_on_a_sum_measures_its_terms_first_and_ascends_the_sum(ray_cluster, model, tmp_path, monkeypatch):
    bare_training.instead_of_ray_train(monkeypatch)
    total = f"0.5*{RED} + 0.5*{BRIGHT}"
    arguments = [*overrides(model, tmp_path), f"train.reward='{total}'", "evaluate.rewards=['pipeline_toys:red']"]
    assert main(["train", "--preset", "smoke", *arguments]) == 0
    found = configuration.load("smoke", None, arguments)
    files, key = RunDir.of(found), trainings.adapter_key(found.train)
    curve = [json.loads(line) for line in (files.curves / f"{key}.jsonl").read_text().splitlines()]
    assert curve[0]["reward"] == pytest.approx(0, abs=1e-3)  # z-scored by these very images
    assert curve[-1]["reward"] > curve[0]["reward"]
    assert curve[0]["scores"].keys() == {RED_COLUMN, BRIGHT_COLUMN, slug(total), "gold"}
    assert curve[0]["held_out"] is None
    record = adapters.read_record(files.adapters / key)
    assert record["reward_statistics"].keys() == {RED, BRIGHT}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_an_evaluation_has_a_column_for_the_sum_and_for_each_term(ray_cluster, model, tmp_path):
    arguments = [*overrides(model, tmp_path), "rewards.define={mix: 'pipeline_toys:red + 2*pipeline_toys:bright'}"]
    arguments += ["sweep.rewards=[mix]", "evaluate.rewards=[mix]"]
    assert main(["sweep", "--preset", "smoke", *arguments]) == 0
    found = configuration.load("smoke", None, arguments)
    table = dataset.read(resolve_images(found, TinyModel.defaults)).table
    (mean, std), (mean_2, std_2) = (reward_statistics.read(found)[name] for name in (RED_COLUMN, BRIGHT_COLUMN))
    expected = (table[RED_COLUMN].to_numpy() - mean) / std + 2 * (table[BRIGHT_COLUMN].to_numpy() - mean_2) / std_2
    np.testing.assert_allclose(table["mix"].to_numpy(), expected, rtol=1e-4, atol=1e-4)


def spoiled(model, storage, on_nan, *more):
    """A training in which images of a heart have no score."""
    prompts = "train.prompts=[a red star, a blue heart]"
    found = smoke(model, storage, f"train.reward={SPOILED}", prompts, f"train.on_nan={on_nan}", *more)
    return worker.Training(found, is_first=False)


def test_a_training_stops_at_a_nan_score_and_names_the_image(model, tmp_path):
    started = spoiled(model, tmp_path, "stop", "train.batch=8")
    with pytest.raises(FloatingPointError, match=r"'a blue heart' with noise seed \d+"):
        started.advance(0, 1)


def test_a_training_that_skips_counts_and_has_the_mean_of_the_others(model, tmp_path):
    started = spoiled(model, tmp_path, "skip", "train.batch=8")
    prompts, _ = worker.draw(started.prompts, 0, 0, 8)
    before = [parameter.clone() for parameter in started.parameters]
    started.advance(0, 1)
    assert started.skipped == prompts.count("a blue heart") > 0
    assert np.isfinite(list(started.sums.values())).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, started.parameters, strict=True))
    assert all(parameter.isfinite().all() for parameter in started.parameters)


def test_a_training_of_which_nothing_is_left_stops_in_the_end(model, tmp_path):
    started = spoiled(model, tmp_path, "skip", "train.batch=1", "model.steps=1")
    started.prompts = ["a blue heart"]
    before = [parameter.clone() for parameter in started.parameters]
    for _ in range(worker.EMPTY_STEPS - 1):
        started.advance(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, started.parameters, strict=True))
    with pytest.raises(
        FloatingPointError,
        match="no finite gradient, and the 9 before it were no better",
    ):
        started.advance(0, 1)


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_validation_never_averages_nan_in_silence(model, tmp_path, on_nan):
    started = spoiled(model, tmp_path, on_nan)
    columns = reward_statistics.columns(started.config)
    scores = rewards_scores.Scores(columns, extractor=started.config.evaluate.features)
    arguments = (started.config, started.model, scores, started.draft.sampling, 0)
    if on_nan == "stop":
        with pytest.raises(FloatingPointError, match="2 images without a finite score, first that of 'a blue heart'"):
            validation.validate(*arguments)
        return
    row = validation.validate(*arguments).row
    assert row["left_out"] == 2
    assert row["scores"].keys() == {"pipeline_toys-spoiled", RED_COLUMN, BRIGHT_COLUMN}
    assert np.isfinite([row["reward"], row["held_out"], row["diversity"]]).all()


class WarningJob:
    """A job of an evaluation's kind: four images, of which the third has no score."""

    warns, threads, batch, keeps_failures = True, 1, 2, True

    def __init__(self, folder):
        self.folder = folder

    def save(self, unit, table):
        write_parquet(self.folder / scorers.PART.format(unit=unit), table)

    def scores(self):
        return rewards_scores.Scores(names.columns(configuration.load(), [SPOILED]))

    def pictures(self, row):
        contents = [scorers.to_png(np.zeros((4, 4, 3), np.uint8))] * 4
        return scorers.Pictures(list("abcd"), contents, ["a star", "a star", "a heart", "a star"], {})


def test_an_evaluated_image_without_a_score_is_recorded_with_its_reason_and_warned_of_by_its_id(tmp_path):
    said = scorers.Scorer(WarningJob(tmp_path))(pa.table({"unit": ["u"]}))["said"].to_pylist()[0]
    assert len(said) == 1 and "image c of the prompt 'a heart': the score of pipeline_toys-spoiled" in said[0]
    table = pq.read_table(tmp_path / "part-u.parquet")
    assert table["pipeline_toys-spoiled"].is_null().to_pylist() == [False, False, True, False]
    assert [reason is not None for reason in table["error"].to_pylist()] == [False, False, True, False]


def test_images_of_different_sizes_are_batched_by_size():
    images = [np.zeros(shape, np.uint8) for shape in ((4, 4, 3), (4, 6, 3), (4, 4, 3), (4, 4, 3))]
    assert scorers.batches([*images, None], 2) == [[0, 2], [3], [1]]


def test_a_report_scores_what_was_saved():
    """The embedded rewards see uint8 / 255; the column is the reward's own score of those images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    prompts = ["a red star", "a blue heart", "a red star"]
    found = rewards_scores.Scores(names.columns(configuration.load(), ["robust"]))(images, prompts)["robust"]
    torch.testing.assert_close(found, rewards.load("robust")(images.float() / 255, prompts).detach())


def test_a_check_starts_nothing_and_loads_every_reward_wholly_where_that_is_asked_for(tmp_path, capsys):
    given = ["sweep.kl_weights=[0]", f"run.storage={tmp_path}", "train.reward=fragile", "sweep.rewards=[fragile]"]
    assert main(["check", "--preset", "smoke", *given]) == 0
    assert "loads" not in capsys.readouterr().out
    assert main(["check", "--preset", "smoke", "--weights", *given]) == 0
    said = capsys.readouterr().out
    assert all(f"Reward {name!r} loads, and scores" in said for name in ("fragile", "robust", "gold"))
    assert not list(tmp_path.iterdir())


def test_a_check_of_the_weights_finds_a_file_that_is_no_checkpoint_where_a_plain_one_does_not(tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes(b"cut off")
    given = [
        f"rewards.define={{mine: {{name: hpsv2.1, weights: {tmp_path / 'weights.pt'}, architecture: ViT-B-32}}}}",
        "evaluate.rewards=[fragile, mine]", f"run.storage={tmp_path}",
    ]  # fmt: skip
    assert main(["check", "--preset", "smoke", *given]) == 0
    assert main(["check", "--preset", "smoke", "--weights", *given]) == 2
    assert "reward 'mine'" in capsys.readouterr().err
