"""The sweep without Ray: what is trained under which name, what a search draws, and what is compared with what."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from measured_runs import RED, build, measured, settings
from pipeline_toys import HERE
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune.schedulers import TrialScheduler

from pipelines import config as configuration
from pipelines.commands import preflight
from pipelines.config import ConfigError
from pipelines.front import front
from pipelines.front.loading import read_front
from pipelines.report import write_report
from pipelines.runs import directory, identity
from pipelines.runs.directory import RunDir
from pipelines.runs.files import write_json
from pipelines.study import trainings, trials
from pipelines.study.resolved import resolve
from pipelines.study.trainings import adapter_key
from pipelines.study.trials import Record, Trials
from pipelines.train import records
from tune.sweep import generations as sweep_generations
from tune.sweep import space, watch

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

SEARCH = ("sweep.lr_range=[0.0001, 0.01]", "sweep.kl_range=[0.1, 50]", "sweep.ranks=[2, 4]", "sweep.generation=3")


def sweep(storage, *asked):
    return configuration.load("smoke", None, [f"run.storage={storage}", *asked])


def keys(found):
    return [adapter_key(train) for train in trainings.trainings(found)]


def curve(found, key, **values):
    """Leave the curve of a training, with these values at its end."""
    path = RunDir.of(found).curves / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": 0}) + "\n" + json.dumps({"step": found.train.steps, **values}) + "\n")


def outcome(settings):
    """Made-up values of a trial: both are best where the learning rate is 0.001."""
    away = math.log10(settings["lr"] / 0.001) ** 2
    return {"reward": -away, "diversity": 1 - away}


def run_search(found, record, generations, fail=()):
    """Draw and end so many generations, with `outcome` for their values."""
    for _ in range(generations):
        for train in sweep_generations.draw(found, record):
            key = adapter_key(train)
            if key in fail:
                record.errored[key] = "ValueError: no"
            else:
                curve(found, key, **outcome({"lr": train.lr}))
    return [settings for generation in record.drawn for settings in generation]


# Names and groups


def test_a_learning_rate_or_rank_of_its_own_is_in_the_name_and_one_that_is_trains_own_is_not(tmp_path):
    found = sweep(tmp_path, "sweep.kl_weights=[0]", "sweep.lrs=[0.001, 0.0003]", "sweep.ranks=[2, 16]")
    assert keys(found) == [
        "fragile-k1-kl0-s0", "fragile-k1-kl0-r16-s0", "fragile-k1-kl0-lr0.0003-s0", "fragile-k1-kl0-lr0.0003-r16-s0",
    ]  # fmt: skip


def test_a_swept_rank_keeps_the_adapters_scale_and_the_records_say_what_was_trained(tmp_path):
    found = sweep(tmp_path, "sweep.kl_weights=[0]", "sweep.ranks=[2, 6]", "train.alpha=3", "sweep.lrs=[0.5]")
    for train in trainings.trainings(found):
        record = records.training_record(found, train, 4)["train"]
        assert (record["alpha"] / record["rank"], record["lr"]) == (1.5, 0.5)
        assert "label" not in record


EARLY = ("sweep.kl_weights=[0, 1, 10]", "sweep.early_kl_weights=[1, 10]")


def test_a_kl_on_early_steps_has_adapters_records_and_arms_of_its_own(tmp_path):
    found = sweep(tmp_path, *EARLY, "evaluate.kl_schedules=[linear]")
    old = sweep(tmp_path, EARLY[0])
    assert keys(old) == [f"fragile-k1-kl{w}-s0" for w in (0, 1, 10)]
    assert keys(found) == [f"fragile-k1-kl{w}-s0" for w in ("0", "1", "1-early", "10", "10-early")]
    planned = trainings.trainings(found)
    recorded = [records.training_record(found, train, 1)["train"].get("kl_steps") for train in planned]
    assert recorded == [None, None, "early", None, "early"]
    (single,) = resolve(found).singles
    arms = {arm.label: (arm.family, arm.kl_steps) for arm in single.arms if (arm.kl_weight or 0) > 1}
    assert arms == {
        "KL 10": ("kl", None),
        "KL 10 + AIG linear": ("kl-aig", None),
        "KL 10 (early)": ("early_kl", "early"),
        "KL 10 (early) + AIG linear": ("kl-aig", "early"),
    }


def test_without_a_kl_its_steps_make_no_other_adapter(tmp_path):
    asked = "train.kl_steps=all"
    assert keys(sweep(tmp_path, EARLY[0], asked)) == [f"fragile-k1-kl{w}-s0" for w in ("0", "1-all", "10-all")]
    plain, every = (sweep(tmp_path, *more) for more in ((), (asked,)))
    assert records.training_record(every, every.train, 1) == records.training_record(plain, plain.train, 1)


def test_tune_makes_the_training_of_a_trial_again_from_its_parameters(tmp_path):
    found = sweep(tmp_path, *EARLY)
    planned = trainings.trainings(found)
    queue = sweep_generations.Queue(found, Record(), planned, drawing=False)
    assert [watch.trained(found, queue.suggest(str(i))) for i in range(len(planned))] == planned


def test_a_kl_on_early_steps_that_is_asked_for_twice_is_trained_once(tmp_path):
    found = sweep(tmp_path, "sweep.kl_weights=[0, 1]", "sweep.early_kl_weights=[1, 10]", "train.kl_steps=early")
    assert keys(found) == [f"fragile-k1-kl{w}-s0" for w in ("0", "1-early", "10-early")]


def test_a_search_refuses_early_kl_weights_with_what_to_set(tmp_path):
    with pytest.raises(ConfigError, match=r"set train\.kl_steps=early for all of its trials"):
        sweep(tmp_path, *EARLY, "sweep.search=random", "sweep.lr_range=[0.1, 0.2]")


def test_each_learning_rate_and_rank_is_a_study_with_its_own_kl_weights_and_seeds_have_means(tmp_path):
    found = sweep(tmp_path, "sweep.lrs=[0.001, 0.0003]", "sweep.ranks=[2, 4]", "sweep.train_seeds=[0, 1]")
    singles = {single.name: single for single in resolve(found).singles}
    assert len(singles) == 8 and len(resolve(found).means) == 4
    one = singles["fragile-k1-lr0.0003-r4-s1"]
    assert one.one("tuned").arm.adapter == "fragile-k1-kl0-lr0.0003-r4-s1"
    assert {(arm.lr, arm.rank) for arm in one.arms if arm.family != "base"} == {(0.0003, 4)}
    assert [arm.label for arm in one.arms if arm.family == "kl"] == ["KL 10"]
    mean = next(single for single in resolve(found).means if single.name == "fragile-k1-lr0.0003-r4")
    assert mean.one("tuned").members == tuple(f"fragile-k1-kl0-lr0.0003-r4-s{seed}" for seed in (0, 1))


def test_what_failed_has_no_arms_and_neither_has_a_study_whose_tuned_adapter_failed(tmp_path):
    found = sweep(tmp_path, "sweep.train_seeds=[0, 1]", "sweep.lrs=[0.001, 0.1]")
    errored = {"fragile-k1-kl10-s1": "ValueError: no", "fragile-k1-kl0-lr0.1-s0": "ValueError: no"}
    Record(errored=errored).write(found)
    study = resolve(found)
    assert [single.name for single in study.singles] == ["fragile-k1-s0", "fragile-k1-s1", "fragile-k1-lr0.1-s1"]
    families = {single.name: {arm.family for arm in single.arms} for single in study.singles}
    assert "kl" in families["fragile-k1-s0"] and "kl" not in families["fragile-k1-s1"]
    (mean,) = study.means
    assert mean.name == "fragile-k1" and "kl" not in {arm.family for arm in mean.arms}
    assert list(study.notes) == [f"left out, since its training failed: {key}" for key in errored]


def test_an_evaluation_where_every_tuned_adapter_failed_says_why(tmp_path):
    found = sweep(tmp_path)
    Record(errored={"fragile-k1-kl0-s0": "RuntimeError: disk full"}).write(found)
    with pytest.raises(ConfigError, match=r"disk full.*--retry-errored"):
        Trials.of(found).check_drawn()


def test_the_presets_of_published_models_sweep_the_nine_published_kl_weights():
    for name in ("sd14", "sdxl"):
        assert configuration.load(name).sweep.kl_weights == (0, 0.1, 0.5, 1, 2, 5, 10, 20, 50)


# Searches


def test_a_trial_is_named_by_its_settings_to_two_digits_and_its_name_gives_them_back(tmp_path):
    found = sweep(tmp_path, "sweep.search=random", "sweep.trials=20", *SEARCH)
    for train in sweep_generations.draw(found, Record()):
        name = re.fullmatch(
            r"fragile-k1-kl(?P<kl>[\d.]+)-lr(?P<lr>[\d.e-]+?)(?:-r(?P<rank>\d+))?-s0", adapter_key(train)
        )
        assert name is not None, adapter_key(train)
        assert (float(name["kl"]), float(name["lr"]), int(name["rank"] or 2)) == (train.kl_weight, train.lr, train.rank)
        assert 0.1 <= train.kl_weight <= 50 and 0.0001 <= train.lr <= 0.01


def test_random_draws_are_uniform_in_the_logarithm(tmp_path):
    found = sweep(tmp_path, "sweep.search=random", "sweep.trials=200", *SEARCH)
    drawn = sorted(math.log10(train.lr) for train in sweep_generations.draw(found, Record()))
    # The Kolmogorov-Smirnov distance of 200 draws is over 0.115 with probability 0.01; rounding adds under 0.02.
    assert max(abs((x + 4) / 2 - i / 200) for i, x in enumerate(drawn)) < 0.135


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    found = sweep(tmp_path, "sweep.search=random", *SEARCH)
    found.directory.mkdir()
    RunDir.of(found).sweep.write_text("{")
    with pytest.raises(ConfigError, match=r"sweep.json cannot be read .*: restore it"):
        trainings.trainings(found)


def test_other_adapters_have_lora_scales_and_schedules_where_asked_for(tmp_path):
    found = sweep(tmp_path, "evaluate.kl_schedules=[linear]", "evaluate.kl_lora_scales=[0.5]")
    mixed = [arm for arm in resolve(found).arms if arm.family.startswith("kl-")]
    assert [(arm.family, arm.label, arm.arm.lora_scale, arm.arm.schedule) for arm in mixed] == [
        ("kl-aig", "KL 10 + AIG linear", 1.0, "linear"), ("kl-lora", "KL 10 + LoRA ×0.5", 0.5, "tuned"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_the_same_seed_draws_the_same_trials_and_another_seed_others(kind, tmp_path):
    drawn = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        found = sweep(tmp_path / name, f"sweep.search={kind}", "sweep.trials=9", f"sweep.seed={seed}", *SEARCH)
        drawn.append(run_search(found, Record(), 3))
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 9


def test_a_search_that_was_interrupted_draws_on_as_if_it_had_not_been(tmp_path):
    whole, parts = (sweep(tmp_path / name, "sweep.search=optuna", "sweep.trials=12", *SEARCH) for name in "ab")
    expected = run_search(whole, Record(), 4)
    run_search(parts, Record(), 2)
    assert run_search(parts, trials.read(parts), 2) == expected
    assert sweep_generations.draw(parts, trials.read(parts)) == []


def test_more_trials_leave_those_that_are_there_as_they_are(tmp_path):
    fewer, more = (sweep(tmp_path, "sweep.search=optuna", f"sweep.trials={n}", *SEARCH) for n in (6, 9))
    first = run_search(fewer, Record(), 2)
    assert trials.draws(more, trials.read(more)) and not trials.draws(fewer, trials.read(fewer))
    assert run_search(more, trials.read(more), 1)[:6] == first


def test_optuna_comes_closer_to_what_is_best_than_chance_does(tmp_path):
    away = {}
    for kind in ("random", "optuna"):
        drawn = []
        for seed in range(4):
            asked = ("sweep.trials=24", f"sweep.seed={seed}", *SEARCH)
            found = sweep(tmp_path / f"{kind}{seed}", f"sweep.search={kind}", *asked)
            drawn += run_search(found, Record(), 8)[12:]
        away[kind] = sum(abs(math.log10(settings["lr"] / 0.001)) for settings in drawn) / len(drawn)
    assert away["optuna"] < 0.7 * away["random"]  # uniform: 0.5 decades on average


def test_a_trial_that_failed_teaches_optuna_nothing_and_stops_nothing(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", "sweep.trials=6", *SEARCH)
    first = run_search(found, Record(), 1)
    failing = adapter_key(trainings.training(found, **first[0]))
    again = sweep(tmp_path / "again", "sweep.search=optuna", "sweep.trials=6", *SEARCH)
    assert len(run_search(again, Record(), 2, fail=[failing])) == 6


GUARDED = ("train.stop_held_out=1", "train.steps=12", "train.snapshot_every=12")


def guarded(found, train, kept=4):
    """Leave a training that a guard has stopped at its last validation: the reward rises on, and what is kept is an
    earlier step's."""
    single = replace(found, train=train)
    files, key = RunDir.of(single), adapter_key(train)
    values = [{"step": step, "reward": step, "held_out": 8 - step, "diversity": 20.0 - step} for step in (0, 2, 4, 6)]
    files.curves.mkdir(parents=True, exist_ok=True)
    (files.curves / f"{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    stopped = {"step": 6, "why": "held_out", "value": 2.0, "limit": 3.0}
    write_json(files.adapters / key / directory.RECORD, {"step": kept, "stopped": stopped})
    return single


def test_optuna_learns_from_the_values_of_the_adapter_that_a_guard_kept(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", "sweep.trials=6", *GUARDED, *SEARCH)
    record = Record()
    first = sweep_generations.draw(found, record)
    for train in first[1:]:
        curve(found, adapter_key(train), reward=100.0, diversity=1.0)
    guarded(found, first[0])
    assert [trial.values for trial in sweep_generations.study(found, record).trials] == [[4, 16], [100, 1], [100, 1]]


def test_a_failed_trial_and_one_without_finite_values_count_as_failed(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", "sweep.trials=6", *SEARCH)
    record = Record()
    first, second, third = sweep_generations.draw(found, record)
    curve(found, adapter_key(first), reward=1.0, diversity=2.0)
    curve(found, adapter_key(second), reward=1.0, diversity=math.nan)
    curve(found, adapter_key(third), reward=1.0, diversity=2.0)
    record.errored[adapter_key(third)] = "ValueError: no"
    states = [trial.state.name for trial in sweep_generations.study(found, record).trials]
    assert states == ["COMPLETE", "FAIL", "FAIL"]


def test_a_trial_that_a_scheduler_stopped_is_told_by_where_it_stood(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", *GUARDED, *SEARCH)
    (train, *_) = sweep_generations.draw(found, Record())
    single = guarded(found, train)
    shutil.rmtree(RunDir.of(single).adapters)
    assert sweep_generations.objectives(single) == [6, 14]


def test_asha_compares_with_what_a_guard_kept(tmp_path):
    asked = ("sweep.scheduler=asha", "sweep.proxy=reward", "sweep.reduction=2", "train.validate_every=2", *GUARDED)
    found = sweep(tmp_path, "sweep.kl_weights=[0, 1]", *asked, "sweep.grace=3")
    guarded(found, trainings.trainings(found)[0])
    for reward, decision in ((3.9, TrialScheduler.STOP), (4.1, TrialScheduler.CONTINUE)):
        asha, trial = watch.scheduler(found), SimpleNamespace(trial_id="new")
        asha.on_trial_add(None, trial)
        assert asha.on_trial_result(None, trial, {"step": 6, "reward": reward}) == decision


def test_a_small_space_is_drawn_whole_once_and_the_search_ends(tmp_path):
    found = sweep(tmp_path, "sweep.search=random", "sweep.trials=50", "sweep.kl_weights=[1, 2, 5]", "sweep.ks=[1, 2]")
    record = Record()
    drawn = sweep_generations.draw(found, record)
    assert sorted((train.k, train.kl_weight) for train in drawn) == [(k, w) for k in (1, 2) for w in (1, 2, 5)]
    assert record.exhausted and not trials.draws(found, record)


def test_a_generation_is_handed_out_when_the_one_before_it_has_ended(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", "sweep.trials=4", "sweep.generation=2", *SEARCH[:3])
    queue = sweep_generations.Queue(found, Record(), trainings.references(found), drawing=True)
    assert queue.suggest("0")["adapter"] == "fragile-k1-kl0-s0"
    assert queue.suggest("1") is None
    queue.on_trial_complete("0")
    handed = [queue.suggest("1"), queue.suggest("2")]
    assert queue.suggest("3") is None
    for number, parameters in enumerate(handed, 1):
        curve(found, parameters["adapter"], reward=0.0, diversity=float(number))
        queue.on_trial_complete(str(number), error=number == 2)
    queue.record.errored[handed[1]["adapter"]] = "ValueError: no"
    assert queue.suggest("3")["adapter"] == queue.keys[3] and queue.suggest("4")["adapter"] == queue.keys[4]
    assert queue.suggest("5") is None
    for number in ("3", "4"):
        queue.on_trial_complete(number)
    assert queue.suggest("5") == "FINISHED" and len(set(queue.keys)) == 5
    assert watch.trained(found, handed[0]) in trainings.trainings(found)


def test_nothing_is_drawn_that_would_learn_from_a_trial_that_was_only_interrupted(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", "sweep.trials=4", "sweep.generation=2", *SEARCH[:3])
    queue = sweep_generations.Queue(found, Record(), trainings.references(found), drawing=True)
    queue.suggest("0")
    queue.on_trial_complete("0", error=True)
    assert queue.suggest("1") == "FINISHED" and queue.record.drawn == []


def test_an_error_is_recorded_with_its_cause_and_a_death_of_the_trials_process_is_none(tmp_path):
    def error_of(raised):
        path = tmp_path / "error.pkl"
        path.write_bytes(cloudpickle.dumps(raised))
        return SimpleNamespace(pickled_error_file=str(path), config={"adapter": "key"})

    keep = watch.Keep(sweep(tmp_path), Record())
    keep.on_trial_error(0, [], error_of(ActorDiedError()))
    keep.on_trial_error(0, [], error_of(RayTaskError("train", "Traceback", ActorDiedError())))
    assert keep.record.errored == {}
    keep.on_trial_error(0, [], error_of(RayTaskError("train", "Traceback\nValueError: no reward", ValueError())))
    assert trials.read(keep.config).errored == {"key": "ValueError: no reward"}


def test_a_trial_that_ended_unrecognized_has_failed_and_only_what_asha_stopped_was_stopped(tmp_path):
    asked = ("sweep.scheduler=asha", "sweep.proxy=reward", "sweep.reduction=2", "train.steps=12", "sweep.ranks=[2, 4]")
    found = sweep(tmp_path, *asked, "train.snapshot_every=12", "train.validate_every=2")
    asha = watch.scheduler(found)
    keep = watch.Keep(found, Record(), asha.stopped)
    names = ("reward", "k", "kl_weight", "lr", "rank", "seed")
    ended = []
    for train, reward in zip(trainings.trainings(found), (2.0, 1.0), strict=False):
        settings = {"adapter": adapter_key(train), **{name: getattr(train, name) for name in names}}
        ended.append(SimpleNamespace(trial_id=f"t{reward}", config=settings, last_result={"step": 2, "reward": reward}))
        asha.on_trial_add(None, ended[-1])
        asha.on_trial_result(None, ended[-1], ended[-1].last_result)
        keep.on_trial_complete(0, [], ended[-1])
    ahead, behind = (trial.config["adapter"] for trial in ended)
    assert trials.read(found).stopped == {behind: "ASHA stopped it at step 2: reward 1 was behind"}
    assert list(keep.record.errored) == [ahead]
    assert re.match("it ended at step 2, and its curve, its adapter .* --retry-errored$", keep.record.errored[ahead])
    plain = watch.Keep(found, Record())
    plain.on_trial_complete(0, [], ended[1])
    assert plain.record.stopped == {} and list(plain.record.errored) == [behind]


def test_what_a_sweep_lists_once_is_settled_and_what_is_open_is_drawn(tmp_path):
    found = sweep(tmp_path, "sweep.search=random", "sweep.lr_range=[0.001, 0.002]", "sweep.kl_weights=[3]")
    assert list(space.space(found)) == ["lr"]
    assert space.settings(found, {"lr": 0.00123}) == {
        "reward": "fragile", "k": 1, "kl_weight": 3.0, "lr": 0.0012, "rank": 2, "seed": 0,
    }  # fmt: skip
    assert space.settings(found, {"lr": 0.0010000001})["lr"] == 0.001


def test_an_evaluation_of_a_search_that_has_trials_left_is_refused(tmp_path):
    found = sweep(tmp_path, "sweep.search=optuna", "sweep.trials=6", *SEARCH)
    run_search(found, Record(), 1)
    with pytest.raises(ConfigError, match=r"3 of 6 trials.*sweep.trials=3"):
        Trials.of(found).check_drawn()
    Trials.of(sweep(tmp_path, "sweep.search=optuna", "sweep.trials=3", *SEARCH)).check_drawn()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["sweep.lr_range=[0.1, 0.2]"], "sweep.lr_range is for a search: set sweep.search=optuna"),
        (["sweep.search=optuna", "sweep.kl_range=[2, 1]"], r"give \[low, high\]"),
        (["sweep.search=random", "sweep.train_seeds=[0, 1]"], "give one"),
        (["sweep.search=random", "sweep.lr_range=[1, 2]", "sweep.lrs=[1]"], "give one of them"),
        (["sweep.search=optuna", "sweep.objectives=[reward]"], "at least two"),
        (["train.method=full", "sweep.ranks=[2]"], "has no rank"),
        (["sweep.scheduler=asha", "sweep.grace=2"], "nothing is left for ASHA"),
        (["train.label=a/b"], "letters, digits"),
        (["sweep.search=tpe"], "one of grid, random, optuna"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_with_the_fix(asked, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path, *asked)


def test_a_search_with_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to draw"):
        sweep_generations.draw(sweep(tmp_path, "sweep.search=random", "sweep.kl_weights=[1]"), Record())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["sweep.search=optuna", "sweep.rewards=[fragile, robust]"], "sweep.objectives has 'reward'"),
        (["sweep.scheduler=asha", "sweep.rewards=[fragile, robust]"], "sweep.proxy has 'held_out'"),
        (["sweep.scheduler=asha", "sweep.proxy=gold", "evaluate.gold=null"], "evaluate.gold names none"),
    ],
)
def test_trials_are_compared_by_one_measure_or_not_at_all(asked, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        preflight._check_compared(sweep(tmp_path, *asked))
    preflight._check_compared(sweep(tmp_path, "sweep.rewards=[fragile, robust]"))


# Tune


def test_a_trials_results_have_flat_names_and_finite_numbers():
    row = {"step": 4, "reward": 1.5, "held_out": None, "kl_to_base": 2.0, "scores": {"red": 1}, "loss": math.nan}
    assert watch.flat(row) == {"step": 4, "timesteps_total": 4, "reward": 1.5, "kl": 2.0}


def test_asha_compares_a_new_trial_with_curves_that_are_there_and_lets_the_last_step_be(tmp_path):
    found = sweep(
        tmp_path, "sweep.kl_weights=[0, 1, 2, 3]", "sweep.scheduler=asha", "sweep.proxy=reward", "train.steps=12",
        "train.snapshot_every=12", "sweep.reduction=2",
    )  # fmt: skip
    for key, rewards in zip(keys(found), ([5, 6], [4, 5], [3, 4]), strict=False):
        path = RunDir.of(found).curves / f"{key}.jsonl"
        path.parent.mkdir(exist_ok=True, parents=True)
        rows = [{"step": step, "reward": reward} for step, reward in zip((2, 4), rewards, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def decision(name, **row):
        asha, trial = watch.scheduler(found), SimpleNamespace(trial_id=name)
        asha.on_trial_add(None, trial)
        return asha.on_trial_result(None, trial, row)

    assert decision("behind", step=2, reward=0.0) == TrialScheduler.STOP
    assert decision("ahead", step=2, reward=9.0) == TrialScheduler.CONTINUE
    assert decision("over", step=12, reward=9.0) == TrialScheduler.CONTINUE
    assert decision("unmeasured", step=2) == TrialScheduler.CONTINUE
    none = replace(found, sweep=replace(found.sweep, scheduler="none"))
    assert watch.scheduler(none).on_trial_result(None, SimpleNamespace(), {}) == TrialScheduler.CONTINUE


# What becomes of them


def report_of(found):
    """The report without pictures, since none were drawn."""
    shutil.rmtree(RunDir.of(found).images)
    return write_report(found.directory).read_text()


@pytest.fixture
def searched(tmp_path):
    """A measured run of a search: the reference, and four trials with learning rates and KL weights of their own."""
    more = ("sweep.search=random", "sweep.trials=4", *SEARCH[:2], "evaluate.kl_schedules=[linear]")
    found = settings(tmp_path, *more)
    identity.claim_directory(found)
    sweep_generations.draw(found, Record())
    build(found)
    measured(found)
    front.write_front(resolve(found))
    return found


def test_one_table_has_every_arm_with_its_settings_and_its_measures(searched):
    files = RunDir.of(searched)
    rows = list(csv.DictReader(files.table.open()))
    assert [row["arm"] for row in rows] == [arm.arm.name for arm in resolve(searched).arms]
    drawn = {adapter_key(train): train for train in trainings.trainings(searched)}
    assert len(drawn) == 5
    for row, arm in zip(rows, resolve(searched).arms, strict=True):
        if arm.family == "base":
            assert row["reward"] == row["lr"] == row["kl_weight"] == ""
            continue
        train = drawn[str(arm.arm.adapter).partition("@")[0]]
        trained = (row["reward"], int(row["k"]), float(row["lr"]), int(row["rank"]), float(row["kl_weight"]))
        assert trained == (RED, 1, train.lr, train.rank, train.kl_weight)
        assert (float(row["lora_scale"]), row["schedule"]) == (arm.arm.lora_scale, arm.arm.schedule)
    plane = read_front(files).studies[0].plane
    for row in rows:
        expected = [pytest.approx(value) for value in plane.points[row["arm"]][1]]
        assert [float(row[name]) for name in ("vendi", "vendi_low", "vendi_high")] == expected
        assert (row["on_front"] == "True") == (row["arm"] in plane.fronts["all"])


def test_what_a_search_drew_is_a_family_of_the_front_beside_aig_and_shown_in_the_report(searched):
    single = read_front(RunDir.of(searched)).studies[0]
    assert sum(arm.family == "trial" for arm in single.arms) == 4
    assert sum(arm.family == "trial-aig" for arm in single.arms) == 4
    compared = [(row.a, row.b) for row in single.plane.differences]
    assert {("aig", "trial"), ("trial-aig", "trial")} <= set(compared)
    assert single.trainings == {"trial": 5, "lora": 1, "aig": 1, "early": 1, "trial-aig": 5, "all": 5}
    page = report_of(searched)
    assert "searched settings" in page and "learning rate" in page
    for train in trainings.trainings(searched)[1:]:
        assert f"KL {train.kl_weight:g}, lr {train.lr:g}" in page


def test_the_report_tells_studies_of_several_learning_rates_apart(tmp_path):
    found = build(settings(tmp_path, "sweep.lrs=[0.001, 0.0003]"))
    measured(found)
    front.write_front(resolve(found))
    page = report_of(found)
    for lr in ("0.001", "0.0003"):
        assert f"K = 1, learning rate {lr}, training seed 0" in page
