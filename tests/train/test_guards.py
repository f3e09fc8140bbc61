"""Guard rails: exploding steps, and trainings that stop before their reward is hacked."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_toys import HERE, overrides
from safetensors.torch import load_file

from aig import adapters
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.commands import overview
from pipelines.config import ConfigError, Train
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study import limits as study_limits
from pipelines.study import trainings
from pipelines.study.limits import Stop, Verdict, judge
from pipelines.study.resolved import resolve
from pipelines.study.trials import Trials
from pipelines.train import records, worker
from pipelines.train.guard import Explosions
from pipelines.train.worker import Training
from tune.sweep import run

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

RED, PALE = "pipeline_toys:red", "pipeline_toys:pale"
KEY = "pipeline_toys-red-k1-kl0-s0"


def rows(column, *values, **more):
    """Validations at the steps 0, 10, 20, ... with these values of a column."""
    return [{"step": 10 * i, column: value, **more} for i, value in enumerate(values)]


def test_a_held_out_reward_may_fall_by_so_much_under_its_best():
    settings = Train(stop_held_out=0.5)
    assert judge(settings, rows("held_out", 1.0, 2.0, 1.5)) == Verdict(True)
    fallen = rows("held_out", 1.0, 2.0, 1.5, 1.25)
    assert judge(settings, fallen) == Verdict(False, Stop(30, "held_out", 1.25, 1.5))


def test_diversity_may_fall_to_a_share_of_the_bases():
    settings = Train(stop_diversity=0.75)
    assert judge(settings, rows("diversity", 2.0, 4.0, 1.5)) == Verdict(True)
    assert judge(settings, rows("diversity", 2.0, 1.49)) == Verdict(False, Stop(10, "diversity", 1.49, 1.5))


@pytest.mark.parametrize(("name", "column"), [("kl", "kl_to_base"), ("path", "path")])
def test_a_distance_to_the_base_may_rise_to_its_limit(name, column):
    settings = Train(**{f"stop_{name}": 3.0})
    assert judge(settings, rows(column, 0.0, 3.0)) == Verdict(True)
    assert judge(settings, rows(column, 0.0, 3.5)) == Verdict(False, Stop(10, name, 3.5, 3.0))


def test_patience_counts_validations_in_a_row_and_what_is_beyond_is_not_held():
    settings = Train(stop_kl=1.0, stop_patience=2)
    assert judge(settings, rows("kl_to_base", 0, 2)) == Verdict(False)
    assert judge(settings, rows("kl_to_base", 0, 2, 1)) == Verdict(True)
    assert judge(settings, rows("kl_to_base", 0, 2, 1, 2)) == Verdict(False)
    assert judge(settings, rows("kl_to_base", 0, 2, 1, 2, 3)) == Verdict(False, Stop(40, "kl", 3, 1.0))


def test_a_validation_without_a_value_is_neither_within_nor_beyond():
    settings = Train(stop_diversity=0.9)
    assert judge(settings, rows("diversity", 2.0, None)) == Verdict(False)


def test_a_share_that_no_diversity_can_fall_under_is_refused():
    with pytest.raises(ConfigError, match=r"is 0\.5, and the base's diversity 1\.250: .* give a share above 0\.8"):
        judge(Train(stop_diversity=0.5), rows("diversity", 1.25))


VALUES = st.lists(st.tuples(*[st.floats(1.01, 4)] * 3), min_size=1, max_size=20)


@given(VALUES, st.integers(1, 3))
def test_a_training_that_is_judged_at_each_validation_stops_where_the_whole_curve_says(values, patience):
    settings = Train(stop_held_out=1.0, stop_diversity=0.999, stop_kl=3.5, stop_patience=patience)
    names = ("held_out", "diversity", "kl_to_base")
    curve = [{"step": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(values)]
    curve[0]["diversity"] = 3.0
    whole = judge(settings, curve).stop
    first = next((stop for i in range(len(curve)) if (stop := judge(settings, curve[: i + 1]).stop)), None)
    assert whole == first


@pytest.mark.parametrize(
    ("limit", "has_kl", "held_out", "said"),
    [
        (
            {"stop_kl": 3},
            False,
            PALE,
            "train.stop_kl is 3 nats, and deterministic sampling has no KL: give train",
        ),
        ({"stop_held_out": 0.5}, True, None, "no reward is held out from 'fragile': name another one in evaluate.rew"),
    ],
)
def test_a_limit_on_what_a_training_has_not_is_refused(limit, has_kl, held_out, said):
    with pytest.raises(ConfigError, match=said):
        study_limits.check(Train(**limit), has_kl, held_out)
    study_limits.check(Train(**limit), True, PALE)


def usual(count=20):
    """Losses around -3 with a typical deviation of 0.1, and gradients of norm 2."""
    return [(-3 + 0.1 * (-1) ** i, 2.0) for i in range(count)]


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (-3, 19.9, None),
        (-3, 20.1, "a gradient of norm 20.1, 10.1 times the median of the last 20 steps"),
        (-2.01, 2, None),
        (-1.9, 2, "a loss of -1.9, 11 usual deviations over the median of the last 20 steps, -3"),
        (-9, 2, None),
    ],
)
def test_a_step_far_beyond_what_was_usual_has_exploded(loss, norm, said):
    assert Explosions(10, 1, usual()).check(loss, norm) == said


def test_a_step_that_has_exploded_does_not_become_usual():
    watch = Explosions(10, 1, usual())
    for _ in range(50):
        assert watch.check(-3, 1000) is not None
    assert len(watch.state()) == 20


def test_nothing_is_unusual_at_first_nor_where_it_is_off():
    assert Explosions(10, 1, usual(9)).check(1e9, 1e9) is None
    assert Explosions(None, 1, usual()).check(1e9, 1e9) is None


def test_what_has_come_to_rest_may_move_again():
    resting = [(-10, 1e-6)] * 20
    assert Explosions(10, 1, resting).check(-9.95, 0.99) is None
    assert "a gradient" in (Explosions(10, 1, resting).check(-9.95, 1.01) or "")
    assert "a loss of -9.89" in (Explosions(10, 1, resting).check(-9.89, 0.99) or "")
    assert Explosions(10, 1, [(0, 0)] * 20).check(1, 2) is None


def test_what_a_checkpoint_holds_of_usual_steps_gives_the_same_answers():
    watch = Explosions(10, 1, usual())
    again = Explosions(10, 1, json.loads(json.dumps(watch.state())))
    for step in (*usual(60), (-3, 19), (0, 2), (-3, 25)):
        assert watch.check(*step) == again.check(*step)


def run_of(model, storage, **more):
    """A training of twelve steps on red, its held-out reward the opposite: it falls as the trained one rises."""
    held = {"evaluate__rewards": f"['{RED}', '{PALE}']", "evaluate__gold": "null", "train__steps": 12}
    return overrides(model, storage, **held, train__lr=3e-3, **more)


def loaded(arguments):
    return configuration.load("smoke", None, arguments)


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_an_exploding_step_stops_the_training_naming_prompts_or_is_left_out_and_counted(model, tmp_path, on_nan):
    found = loaded([*run_of(model, tmp_path), f"train.on_nan={on_nan}", "train.prompts=[a red star, a blue heart]"])
    started = Training(found, is_first=False)
    started.guard.explosions = Explosions(1000, 0, [(100.0 + i, 1e-9) for i in range(20)])
    before = [parameter.clone() for parameter in started.parameters]
    if on_nan == "stop":
        with pytest.raises(FloatingPointError, match=r"step 0 has a gradient of .* 'a (red star|blue heart)'.*skip"):
            started.advance(0, 1)
    else:
        started.advance(0, 1)
        assert (started.step, started.skipped) == (1, found.train.batch)
    assert all(torch.equal(a, b) for a, b in zip(before, started.parameters, strict=True))


def test_limits_are_in_an_adapters_record_only_where_they_are_set(model, tmp_path):
    plain = loaded(run_of(model, tmp_path))
    limited = replace(plain, train=replace(plain.train, stop_kl=3.0, stop_patience=2))
    without, within = (records.training_record(found, found.train, 4) for found in (plain, limited))
    assert not [name for name in without["train"] if name.startswith("stop")]
    assert within["train"] == {**without["train"], "stop_kl": 3.0, "stop_patience": 2}
    patient = replace(plain, train=replace(plain.train, stop_patience=2))
    assert records.training_record(patient, patient.train, 4) == without


class KilledError(Exception):
    pass


def proceed(found, until=10**6, state=None):
    """What a worker does, without Ray; it goes on from a state where there is one, and is killed as it reports a step
    after `until`. Returns the training, and its last state that was reported by then."""
    started = Training(found, is_first=True)
    if state is not None:
        torch.save(state, found.directory / "state.pt")
        started.restore(found.directory / "state.pt")
    states = {}

    def report(saving):
        if started.step > until:
            raise KilledError
        states[started.step] = copy.deepcopy(started.state())

    started.report = report
    try:
        worker.proceed(started, 0, 1)
    except KilledError:
        pass
    finally:
        started.finish()
    return started, states[max(states)] if states else None


GUARDED = {"train__stop_held_out": 0.6, "train__stop_patience": 2}


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """A training that its guard stops, without Ray."""
    found = loaded(run_of(model, tmp_path_factory.mktemp("undisturbed"), **GUARDED))
    identity.claim_directory(found)
    proceed(found)
    return found


def curve_of(found):
    lines = (RunDir.of(found).curves / f"{KEY}.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def weights(found, name=KEY):
    return load_file(RunDir.of(found).adapters / name / adapters.WEIGHTS)


def assert_same(found, wanted):
    assert curve_of(found) == curve_of(wanted)
    ours, theirs = (RunDir.of(each).adapters for each in (found, wanted))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    assert adapters.read_record(ours / KEY)["stopped"] == adapters.read_record(theirs / KEY)["stopped"]
    assert all(torch.equal(a, b) for a, b in zip(weights(found).values(), weights(wanted).values(), strict=True))


def test_a_training_that_is_stopped_leaves_the_adapter_of_its_last_validation_within_the_limits(undisturbed):
    record, curve = adapters.read_record(RunDir.of(undisturbed).adapters / KEY), curve_of(undisturbed)
    assert 0 < record["step"] < curve[-1]["step"] < undisturbed.train.steps
    best = max(row["held_out"] for row in curve)
    assert record["stopped"] == {
        "step": curve[-1]["step"], "why": "held_out", "value": curve[-1]["held_out"],
        "limit": pytest.approx(best - 0.6),
    }  # fmt: skip
    assert record["step"] == max(row["step"] for row in curve if row["held_out"] >= best - 0.6)
    snapshot = weights(undisturbed, f"{KEY}@{record['step']}")
    assert all(torch.equal(tensor, snapshot[name]) for name, tensor in weights(undisturbed).items())


def test_what_a_stopped_training_reports_is_the_validation_of_what_it_kept(model, tmp_path):
    found = loaded(run_of(model, tmp_path, **GUARDED))
    started, _ = proceed(found, 2)
    assert started.standing() == started.curve[-1] and started.standing()["step"] == 4
    started, _ = proceed(found)
    assert started.standing()["step"] == trainings.last_step(found) < started.curve[-1]["step"]
    rows, kept = trainings.standings(found), started.standing()
    assert rows[-1] == {**kept, "step": started.curve[-1]["step"]} and rows[:2] == started.curve[:2]


def test_a_training_that_is_stopped_is_finished_and_later_snapshots_are_gone(undisturbed):
    folders = trainings.adapter_folders(undisturbed)
    last = trainings.last_step(undisturbed)
    assert folders == [*((f"{KEY}@{step}", step) for step in range(2, last + 1, 2)), (KEY, last)]
    there = {path.name for path in RunDir.of(undisturbed).adapters.iterdir()}
    assert there == {name for name, _ in folders}
    assert records.is_finished(undisturbed)
    other = replace(undisturbed, train=replace(undisturbed.train, stop_held_out=0.5))
    assert not records.is_finished(other)
    shorter = replace(undisturbed, train=replace(undisturbed.train, steps=curve_of(undisturbed)[-1]["step"] - 1))
    assert trainings.stopped(shorter) is None


def test_arms_of_snapshots_that_are_gone_are_left_out_and_named(undisturbed):
    last = trainings.last_step(undisturbed)
    arms = resolve(undisturbed).arms
    assert [arm.step for arm in arms if arm.family == "early"] == list(range(2, last + 1, 2))
    assert {arm.step for arm in arms if arm.family == "tuned"} == {last}
    (line,) = resolve(undisturbed).notes
    assert line.startswith(f"{KEY}: stopped at step ") and f"adapter is that of step {last}; left out: stop at" in line
    assert overview.arm_count(Trials.of(undisturbed)) == len(arms)


def test_means_over_training_seeds_leave_out_what_not_every_training_has(undisturbed):
    two = replace(undisturbed, sweep=replace(undisturbed.sweep, train_seeds=(0, 1)))
    (mean,) = resolve(two).means
    last = trainings.last_step(undisturbed)
    assert [arm.step for arm in mean.arms if arm.family == "early"] == list(range(2, last + 1, 2))
    assert mean.one("tuned").step is None and "training seed 0: stopped at step" in (mean.one("tuned").stopped or "")
    assert all(len(arm.members) == 2 for arm in mean.arms if arm.family != "base")


def test_status_and_the_sweeps_table_say_where_and_why_it_stopped(undisturbed, tmp_path):
    told = study_limits.describe_stop(adapters.read_record(RunDir.of(undisturbed).adapters / KEY))
    assert "where the held-out reward was" in told and told.endswith(f"that of step {trainings.last_step(undisturbed)}")
    assert told in overview.report(undisturbed.directory)
    assert told in overview.report(shutil.copytree(undisturbed.directory, tmp_path / "elsewhere" / "moved"))
    row = run.result_row(undisturbed)
    assert row["step"] == trainings.last_step(undisturbed)
    assert f"{KEY}: {told}" in run.table([row])


def test_a_run_with_a_stopped_training_is_finished_to_the_commands_too(undisturbed, capsys):
    more = [f"train.stop_held_out={undisturbed.train.stop_held_out}", "train.stop_patience=2"]
    storage = undisturbed.directory.parent
    arguments = ["--preset", "smoke", *run_of(undisturbed.model.name, storage), *more]
    assert main(["train", *arguments]) == main(["sweep", "--train-only", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"Finished already: {RunDir.of(undisturbed).adapters / KEY} (stopped at step" in out
    assert "1 of 1 adapters are there already" in out
    assert not RunDir.of(undisturbed).images.exists()


@pytest.mark.parametrize("until", [2, 6])
def test_a_killed_training_is_stopped_where_an_undisturbed_one_is(undisturbed, model, tmp_path, until):
    """After step 6 it is killed when it has been stopped, and before that is in a checkpoint."""
    found = loaded(run_of(model, tmp_path, **GUARDED))
    started, state = proceed(found, until)
    assert state["step"] == until and started.step == until + 2
    assert records.is_finished(found) == (until == 6)
    proceed(found, state=state)
    assert_same(found, undisturbed)


def test_what_was_stopped_is_finished_from_its_last_checkpoint(undisturbed, model, tmp_path):
    found = loaded(run_of(model, tmp_path, **GUARDED))
    _, state = proceed(found)
    shutil.rmtree(RunDir.of(found).adapters / KEY)
    again, _ = proceed(found, state=state)
    assert again.guard.stop == Stop(**adapters.read_record(RunDir.of(undisturbed).adapters / KEY)["stopped"])
    assert_same(found, undisturbed)


def test_a_checkpoint_without_the_curves_beginning_is_not_gone_on_from(undisturbed, model, tmp_path):
    found = loaded(run_of(model, tmp_path, **GUARDED))
    _, state = proceed(found, 2)
    state["curve"] = json.dumps(json.loads(state["curve"])[1:])
    again = Training(found, is_first=False)
    torch.save(state, tmp_path / "state.pt")
    again.restore(tmp_path / "state.pt")
    assert again.step == 0


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_killed_worker_of_a_training_that_is_stopped_leaves_what_an_undisturbed_one_does(
    ray_cluster, undisturbed, model, tmp_path, capsys
):
    arguments = ["train", "--preset", "smoke", *run_of(model, tmp_path, **GUARDED)]
    found = loaded(arguments[3:])
    progress = RunDir.of(found).progress / f"{KEY}.json"
    killed = []

    def kill():
        while not killed:
            time.sleep(0.02)
            said = json.loads(progress.read_text()) if progress.exists() else {"step": 0}
            if said["step"] >= 3:
                os.kill(said["pid"], signal.SIGKILL)
                killed.append(said)

    threading.Thread(target=kill, daemon=True).start()
    assert main(arguments) == 0
    assert killed[0]["pid"] != json.loads(progress.read_text())["pid"]
    assert_same(found, undisturbed)
    assert f"{KEY} (stopped at step" in capsys.readouterr().out


def test_a_checkpoint_has_what_was_usual(model, tmp_path):
    found = loaded(run_of(model, tmp_path))
    first, state = proceed(found, 2)
    assert state["guard"]["held"] is None and len(state["guard"]["usual"]) == 2
    again = Training(found, is_first=False)
    torch.save(state, tmp_path / "state.pt")
    again.restore(tmp_path / "state.pt")
    assert again.step == 2
    assert again.guard.explosions.state() == first.guard.explosions.state()[:2]


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_an_evaluation_draws_the_arms_that_a_stopped_training_left(ray_cluster, undisturbed, capsys):
    limits = [f"train.stop_held_out={undisturbed.train.stop_held_out}", "train.stop_patience=2"]
    arguments = ["--preset", "smoke", *run_of(undisturbed.model.name, undisturbed.directory.parent), *limits]
    for command in ("evaluate", "front", "report"):
        assert main([command, *arguments]) == 0
    out = capsys.readouterr().out
    assert "left out: stop at 6, stop at 8, stop at 10" in out
    files = RunDir.of(undisturbed)
    arms = {arm["name"]: arm for arm in json.loads(files.arms.read_text())["arms"]}
    assert arms.keys() == {"base", KEY, f"{KEY}+linear", f"{KEY}x0.5", f"{KEY}@2", f"{KEY}@4"}
    told = study_limits.describe_stop(adapters.read_record(files.adapters / KEY))
    assert {name for name, arm in arms.items() if arm["stopped"] == told} == arms.keys() - {"base"}
    assert arms[KEY]["step"] == 4
    assert told in (files.root / "report" / "index.html").read_text()
    assert "nothing is missing" in overview.report(undisturbed.directory)


def test_a_stop_survives_json():
    stop = Stop(40, "kl", 3.5, 3.0)
    assert Stop(**json.loads(json.dumps(asdict(stop)))) == stop
