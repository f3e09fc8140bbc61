"""The search for schedules: it finds known optima, resumes as if never stopped, and says what it did not find."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import add_random_adapter
from pipeline_toys import HERE, bright, overrides, pixels, red
from toy_search import METRICS, StepGrid, T, ToyDraw, knapsack, toy_plan

import aig
from aig import adapters, schedules
from aig.metrics import vendi_score
from aig.models import load
from aig.pareto import hypervolume, optimal_mask
from aig.sampler import to_uint8
from aig.world.scenes import held_out_prompts, training_prompts
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.config import ConfigError
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.show.estimates import Estimate, interval
from pipelines.study.resolved import resolve
from tune.search import candidates, findings, plan, workers
from tune.search.candidates import FAMILIES, KNOTS
from tune.search.plan import HELD_OUT, REFERENCES, SEARCH
from tune.search.run import CANDIDATES, PICTURE, RESULT, Work, run, search
from tune.search.store import EVALUATIONS, Store, Unit

# Ray's workers inherit it: they find the toys too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

KEY = "pipeline_toys-red-k1-kl0-s0"


def volume(points):
    return hypervolume(np.array(points), [0, 0])


def best_volume():
    return volume([knapsack(np.arange(T) >= k) for k in range(T + 1)])


def found_volume(trials):
    return volume([knapsack(np.array(StepGrid().weights(trial.candidate.schedule))) for trial in trials])


def searched(folder, draw, *asked):
    made = toy_plan(folder, *asked)
    return run(Work(made, Store(made.run, made.folder, made.identity()), draw))


def test_an_even_grid_of_steps_finds_the_known_front_exactly(tmp_path):
    trials, volumes = searched(
        tmp_path, ToyDraw(knapsack), "search.sampler=grid", "search.families=[step]", "search.trials=101"
    )
    assert found_volume(trials) == pytest.approx(best_volume(), abs=1e-12)
    assert volumes == sorted(volumes)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_every_sampler_comes_near_the_known_front_where_published_schedules_do_not(sampler, tmp_path):
    trials, _ = searched(tmp_path, ToyDraw(knapsack), f"search.sampler={sampler}", "search.trials=48")
    published = volume([knapsack(np.array(StepGrid().weights(text))) for text in REFERENCES])
    assert published < 0.9 * best_volume() < found_volume(trials) <= best_volume() + 0.02


def test_a_curve_that_fades_the_tuned_model_out_is_found_where_it_is_best(tmp_path):
    target = np.array(StepGrid().weights("piecewise:0=0|0.3=1|0.7=1|1=0"))

    def objectives(w):
        return -np.square(w - target).mean(), -np.abs(w - target).max()

    asked = [
        "search.families=[monotone, free]",
        "search.places=[0, 0.3, 0.7, 1]",
        "search.trials=160",
        "search.sampler=nsga2",
    ]
    trials, _ = searched(tmp_path, ToyDraw(objectives), *asked)
    errors = {family: [-t.values["fragile"] for t in trials if t.candidate.family == family] for family in FAMILIES}
    closest_monotone = np.square(target[7:] - target[7:].mean()).sum() / T  # isotonic regression of its fall
    assert min(errors["free"]) + plan_offset() < 0.5 * closest_monotone


def plan_offset():
    """What the toy's two search prompts add to every value, on average."""
    return len(SEARCH) + 0.5


@pytest.mark.parametrize("sampler", candidates.SAMPLERS)
@pytest.mark.parametrize("places", [None, (0.0, 0.2, 0.5, 0.9)])
def test_every_candidate_is_of_its_family(sampler, places):
    proposed = candidates.sampler(sampler, FAMILIES, places, 2, 40, 100, 0).ask(40)
    assert len(proposed) == 40
    u = np.linspace(0, 1, 50).tolist()
    for candidate in proposed:
        curve = schedules.parse(candidate.schedule)
        assert schedules.format_name(curve) == candidate.schedule
        if candidate.family in ("monotone", "free"):
            knots = [pair.split("=") for pair in candidate.schedule.removeprefix("piecewise:").split("|")]
            assert len(knots) == KNOTS
            assert places is None or tuple(float(place) for place, _ in knots) == places
        else:
            form = r"[\d.]+\*power" if candidate.family == "scaled" else candidate.family
            assert re.match(f"{form}:", candidate.schedule)
        assert curve(1.0) <= (candidates.TOPS[1] if candidate.family in ("ramp", "scaled") else 1)
        if candidate.family != "free":
            values = [curve(x) for x in u]
            assert values == sorted(values)


@pytest.mark.parametrize("sampler", candidates.SAMPLERS)
@pytest.mark.parametrize("family", ["ramp", "scaled"])
def test_curves_beyond_the_tuned_model_are_searched_over_their_whole_range(sampler, family):
    proposed = candidates.sampler(sampler, [family], None, 2, 60, 60, 0).ask(60)
    tops = [schedules.parse(candidate.schedule)(1.0) for candidate in proposed]
    assert len({candidate.schedule for candidate in proposed}) == len(proposed) >= 56
    assert candidates.TOPS[0] <= min(tops) < 0.75
    assert 8 < max(tops) <= candidates.TOPS[1]
    if family == "ramp":
        starts = [float(candidate.schedule.removeprefix("ramp:").split(",")[0]) for candidate in proposed]
        assert candidates.STARTS[0] <= min(starts) < 0.2 < 0.7 < max(starts) <= candidates.STARTS[1]


def test_new_families_leave_the_proposals_of_the_others_as_they_were():
    """A search is resumed by proposing again."""
    asked = candidates.sampler("tpe", FAMILIES[:5], None, 2, 8, 24, 5).ask(4)
    assert [candidate.schedule for candidate in asked] == [
        "piecewise:0=0|0.15=0|0.55=0.4|1=0.85", "power:2.79", "power:6.4", "piecewise:0=0|0.35=0|0.7=0|1=0.1"
    ]  # fmt: skip


def test_a_ramp_beyond_the_tuned_model_is_found_where_it_is_best(tmp_path):
    target = np.array(StepGrid().weights("ramp:0.5,4"))

    def objectives(w):
        return -np.square(w - target).mean(), -np.abs(w - target).max()

    asked = ["search.families=[power, ramp]", "search.trials=96"]
    trials, _ = searched(tmp_path, ToyDraw(objectives), *asked)
    errors = {family: [-t.values["fragile"] for t in trials if t.candidate.family == family] for family in FAMILIES}
    assert min(errors["ramp"]) + plan_offset() < 0.2 * np.square(np.minimum(target, 1) - target).mean()


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_a_sampler_that_is_told_the_same_proposes_the_same(sampler):
    def proposals():
        one = candidates.sampler(sampler, FAMILIES, None, 2, 8, 24, 5)
        asked = []
        for _ in range(3):
            asked.append(one.ask(8))
            one.tell(np.array([knapsack(np.array(StepGrid().weights(c.schedule))) for c in asked[-1]]))
        return asked

    assert proposals() == proposals()


def contents(made):
    """Everything that a finished search leaves, its picture and the order of its measurements apart."""
    files = RunDir(made.config.directory)
    result = json.loads((made.folder / RESULT).read_text())
    rows = pq.read_table(made.folder / CANDIDATES).to_pylist()
    return result, rows, {path.name: path.read_text() for path in files.schedules.iterdir()}


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_an_interrupted_search_ends_as_an_uninterrupted_one_and_draws_nothing_twice(stop_after, tmp_path):
    asked = ["search.trials=24", "search.generation=8"]
    whole, whole_draw = toy_plan(tmp_path / "whole", *asked), ToyDraw(knapsack)
    search(whole, whole_draw)
    halved, first, second = toy_plan(tmp_path / "halved", *asked), ToyDraw(knapsack, stop_after), ToyDraw(knapsack)
    with pytest.raises(KeyboardInterrupt):
        search(halved, first)
    assert not (halved.folder / RESULT).exists()
    search(halved, second)
    assert contents(halved) == contents(whole)
    assert first.units + second.units == whole_draw.units
    assert (halved.folder / PICTURE).stat().st_size > 10_000


def test_a_finished_search_draws_nothing_and_more_trials_go_on_from_it(tmp_path, capsys):
    asked = ["search.trials=8", "search.generation=8"]
    path = search(toy_plan(tmp_path, *asked), ToyDraw(knapsack))
    before, again = path.read_bytes(), ToyDraw(knapsack)
    search(toy_plan(tmp_path, *asked), again)
    assert again.units == [] and path.read_bytes() == before
    assert "Finished already" in capsys.readouterr().out
    rows = pq.read_table(path.with_name(CANDIDATES)).to_pylist()
    search(toy_plan(tmp_path, "search.trials=16", "search.generation=8"), again)
    more = pq.read_table(path.with_name(CANDIDATES)).to_pylist()
    assert [row["schedule"] for row in more[:8]] == [row["schedule"] for row in rows]
    curves = [curve for unit in again.units if unit.set == SEARCH for curve in unit.curves]
    assert len(more) == 16 and not {row["curve"] for row in rows} & set(curves)


@pytest.mark.parametrize("objectives", [METRICS[:2], METRICS])
def test_gold_is_always_told_and_counts_as_an_objective_only_where_it_is_asked_for(objectives, tmp_path):
    made = replace(toy_plan(tmp_path, "search.trials=32", "search.sampler=random"), objectives=objectives)
    path = search(made, ToyDraw(lambda w: (*knapsack(w), -abs(w.mean() - 0.3))))
    rows = pq.read_table(path.with_name(CANDIDATES)).to_pylist()
    at = {count: np.array([[row[name] for name in METRICS[:count]] for row in rows]) for count in (2, 3)}
    assert [row["on_front"] for row in rows] == optimal_mask(at[len(objectives)]).tolist()
    assert optimal_mask(at[2]).tolist() != optimal_mask(at[3]).tolist()
    assert all("gold" in row[HELD_OUT] for row in json.loads(path.read_text())["schedules"])
    assert "gold" in findings.summary(path)


def test_the_summary_tells_of_prompts_that_were_seen_before_they_judge(tmp_path):
    made = replace(toy_plan(tmp_path, "search.trials=8", "search.sampler=random"), trained_on=3, evaluated=2)
    said = findings.summary(search(made, ToyDraw(knapsack)))
    assert "Of the held-out prompts the adapter was trained on 3" in said
    assert "Of evaluate.prompts 2 are in the search set" in said


def test_what_was_found_is_judged_by_the_held_out_reward_too(tmp_path):
    """The knapsack's optima earn the trained reward alone: the other has the references at its best."""
    made = toy_plan(tmp_path, "search.trials=32", "search.sampler=random")

    class BothRewards(ToyDraw):
        def __call__(self, units):
            for unit, measured in super().__call__(units):
                opposite = (-2.0 * np.array(measured.values["fragile"])).tolist()
                yield unit, replace(measured, values={**measured.values, "robust": opposite})

    result = json.loads(search(made, BothRewards(knapsack)).read_text())
    elsewhere = result["by_held_out_reward"]
    assert elsewhere["reward"] == "robust"
    at = {row["name"]: [row[HELD_OUT][name][0] for name in ("robust", "vendi")] for row in result["schedules"]}
    published = np.array([at[name] for name in REFERENCES])
    found = np.array([at[name] for name in [*REFERENCES[:2], *list(at)[len(REFERENCES) :]]])
    box = findings.Box.around(published)
    assert elsewhere["hypervolume_difference"][0] == pytest.approx(box.volume(found) - box.volume(published))
    shown = interval(Estimate(*elsewhere["hypervolume_difference"]), plus=True)
    told = f"With the held-out reward robust in place of fragile: {shown} on the same prompts."
    assert told in result["statement"] and "robust" in findings.summary(made.folder / RESULT).splitlines()[1].split()


def test_the_cost_of_a_search_stands_beside_that_of_separate_loops(tmp_path):
    draw = ToyDraw(knapsack)
    path = search(toy_plan(tmp_path), draw)
    units = len(draw.units)
    cost = json.loads(path.read_text())["cost"]
    assert cost == {"predictions": 3 * units, "separate": 4 * units, "published": 6 * units}
    assert f"{3 * units} predictions; a loop for each arm" in findings.summary(path)
    assert f"makes {4 * units} (25 % fewer), the published script" in findings.summary(path)


def test_the_measurements_of_an_earlier_version_are_refused_with_what_to_do(tmp_path):
    made = toy_plan(tmp_path)
    Work(made, Store(made.run, made.folder, made.identity()), ToyDraw(knapsack)).measure(SEARCH, ["linear"])
    path = made.folder / EVALUATIONS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{key: value for key, value in line.items() if key != "cost"} | {"naive": 4} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    with pytest.raises(ConfigError, match=r"line 1 is of an earlier version \(it has no 'cost'\): delete .*search"):
        Store(made.run, made.folder, made.identity())


def test_two_texts_of_one_curve_are_drawn_once(tmp_path):
    draw = ToyDraw(knapsack)
    made = toy_plan(tmp_path)
    table = Work(made, Store(made.run, made.folder, made.identity()), draw).measure(
        SEARCH, ["step:0.55", "step:0.6", "tuned", "step:0"]
    )
    assert [len(unit.curves) for unit in draw.units] == [2, 2]
    assert np.array_equal(table["fragile"][0], table["fragile"][1])


def test_a_line_whose_writer_was_killed_is_cut_off_and_drawn_again(tmp_path):
    made = toy_plan(tmp_path)
    Work(made, Store(made.run, made.folder, made.identity()), ToyDraw(knapsack)).measure(SEARCH, ["linear"])
    path = made.folder / EVALUATIONS
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    draw = ToyDraw(knapsack)
    Work(made, Store(made.run, made.folder, made.identity()), draw).measure(SEARCH, ["linear"])
    assert [unit.prompt_ids for unit in draw.units] == [(1,)]
    assert path.read_bytes() == whole


def test_a_search_with_other_settings_under_the_same_name_is_refused_and_the_difference_shown(tmp_path):
    made = toy_plan(tmp_path)
    Store(made.run, made.folder, made.identity())
    with pytest.raises(ConfigError, match=r"was made with seed = 0, not 1: choose another search\.name"):
        Store(made.run, made.folder, toy_plan(tmp_path, "search.seed=1").identity())


def flat(table, curves, prompts, noise):
    rng = np.random.default_rng(0)
    return {name: column[:, None] + noise * rng.normal(size=(curves, prompts)) for name, column in table.items()}


def concluded(tmp_path, held_out_gain, noise=0.01, prompts=16):
    """A result whose one found schedule gains 1 on the search set, and something else on held-out prompts."""
    made = toy_plan(tmp_path)
    trial = SimpleNamespace(
        generation=0, candidate=candidates.Candidate("free", "piecewise:0=1|1=0"), curve="c",
        values={"fragile": 1.0, "vendi": 2.0},
    )  # fmt: skip
    x, y = np.array([0, 1, 0.2, 0.4, 0.6, 0.8]), np.array([2, 1, 1.8, 1.6, 1.4, 1.2])

    def table(gain, prompts):
        return flat({"fragile": np.append(x, gain), "vendi": np.append(y, 1 + gain)}, 7, prompts, noise)

    return findings.conclude(made, [trial], [trial], table(1, 2), table(held_out_gain, prompts))


@pytest.mark.parametrize(("gain", "said"), [(1.0, "hold:"), (0.45, "not confirmed:"), (0.1, "are worse:")])
def test_the_statement_follows_the_held_out_interval(gain, said, tmp_path):
    result = concluded(tmp_path, gain, noise=0.2 if said.startswith("not") else 0.01)
    assert said in result["statement"]
    value, low, high = result["hypervolume_difference"][HELD_OUT]
    assert low <= value <= high
    assert (low > 0, high < 0) == (said == "hold:", said == "are worse:")


def test_three_held_out_prompts_give_values_and_no_verdict(tmp_path):
    result = concluded(tmp_path, 1.0, prompts=3)
    value, low, high = result["hypervolume_difference"][HELD_OUT]
    assert value > 0 and low is high is None
    assert result["statement"].startswith("No verdict on the found schedules: hypervolume +")
    assert result["statement"].endswith("no interval below 4 prompts.")
    assert all(row[HELD_OUT]["fragile"][1] is None and row["dominates"] == [] for row in result["schedules"])
    (tmp_path / "result.json").write_text(
        json.dumps(result | {"cost": {"predictions": 1, "naive": 2}}, allow_nan=False)
    )
    assert "[nan" not in findings.summary(tmp_path / "result.json")


def test_the_kept_schedules_are_few_distinct_new_and_each_adds_to_the_front(tmp_path):
    made = toy_plan(tmp_path, "search.keep=3", "search.sampler=random", "search.trials=64")
    draw = ToyDraw(knapsack)
    work = Work(made, Store(made.run, made.folder, made.identity()), draw)
    trials, _ = run(work)
    references = work.measure(SEARCH, REFERENCES)
    kept = findings.choose(made, trials, references)
    curves = [trial.curve for trial in kept]
    assert len(kept) == 3 == len(set(curves))
    assert not set(curves) & {made.curve(text) for text in REFERENCES}
    box = findings.Box.around(findings.points(made, references))
    at = np.array([[trial.values[name] for name in made.objectives] for trial in kept])
    ends = findings.points(made, references)[:2]
    whole = box.volume(np.vstack([ends, at]))
    assert all(box.volume(np.vstack([ends, np.delete(at, i, axis=0)])) < whole for i in range(3))


# With a model.


@pytest.fixture(scope="module")
def model():
    return load("tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with an adapter, as if trained on the toy reward; returns the arguments of its commands."""
    storage = tmp_path_factory.mktemp("runs")
    arguments = ["--preset", "smoke", *overrides(Path("tiny"), storage, search__prompts=3, search__held_out=2)]
    arguments += [
        "search.trials=4", "search.generation=2", "search.seeds=2", "search.held_out_seeds=2", "search.workers=1",
    ]  # fmt: skip
    identity.claim_directory(configuration.load("smoke", None, arguments[2:]))
    model = load("tiny")
    add_random_adapter(model, "tuned", size=0.1)
    folder = RunDir(configuration.load("smoke", None, arguments[2:]).directory).adapters / KEY
    record = {"train": {"reward": "pipeline_toys:red", "prompts": ["a red circle"]}, "step": 4}
    adapters.save(model.denoiser, "tuned", folder, record)
    return arguments


def loaded(arguments, *more):
    return configuration.load("smoke", None, [*arguments[2:], *more])


def test_a_unit_holds_what_separate_sampling_gives(trained, model):
    made = plan.make(loaded(trained), model)
    evaluator = workers.Evaluator(
        configuration.to_dict(made.config), made.adapter, made.reward, made.prompts, made.seeds
    )
    texts = ("base", "tuned", "piecewise:0=0|0.5=1|1=0.4")
    measured = evaluator.draw(Unit(SEARCH, (0, 2), ("x", "y", "z"), texts))
    prompts = [made.prompts[SEARCH][p] for p in (0, 0, 2, 2)]
    for c, text in enumerate(texts):
        arm = aig.Arm(text, None if text == "base" else workers.ADAPTER, schedule=text)
        seeds = [configuration.SEARCH_SEEDS + index for index in (0, 1, 0, 1)]
        latents = aig.sample_arms(evaluator.model, prompts, seeds, [arm], 0, made.sampling).latents[text]
        with torch.no_grad():
            images = to_uint8(evaluator.model.decode(latents)).permute(0, 3, 1, 2).float() / 255
        for name, reward in (("pipeline_toys-red", red), ("gold", bright)):
            expected = reward(images, prompts).reshape(2, 2).mean(1).tolist()
            assert measured.values[name][c] == pytest.approx(expected, abs=1e-3)
        expected = [vendi_score(rows) for rows in pixels(images).reshape(2, 2, -1).numpy()]
        assert measured.values["vendi"][c] == pytest.approx(expected, abs=1e-3)
    assert 0 < measured.cost["predictions"] < measured.cost["separate"] < measured.cost["published"]


def test_captions_that_validate_a_search_are_none_that_it_or_a_training_sees(trained, model):
    made = plan.make(loaded(trained, "search.prompts=32", "search.held_out=16"), model)
    assert made.prompts[SEARCH] == (*training_prompts(),) and made.prompts[HELD_OUT] == (*held_out_prompts(),)
    assert made.trained_on == 0


def test_given_held_out_prompts_that_were_trained_on_are_counted(trained, model):
    given = ["search.prompts=[a green star, a yellow cross]", "search.held_out=[a red circle, a blue heart]"]
    assert plan.make(loaded(trained, *given), model).trained_on == 1


def test_prompts_that_choose_schedules_and_judge_their_arms_are_counted(trained, model):
    given = ["search.prompts=[a  Green star, a yellow cross]", "evaluate.prompts=[a green star, a blue heart]"]
    assert plan.make(loaded(trained, *given), model).evaluated == 1
    assert plan.make(loaded(trained, "evaluate.prompts=16"), model).evaluated == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["search.adapter=pipeline_toys-red-k1-kl0-s1"], f"did you mean '{KEY}'"),
        (["search.prompts=[a red star, a blue heart]", "search.held_out=[a blue heart, a pink square]"],
         r"share 1 prompts \('a blue heart'"),
        (["search.held_out=17"], "has 16 held-out captions"),
        (["search.held_out=[a beige dodecahedron, a red star]"], "search.held_out: "),
        (["search.objectives=[reward, gold]", "evaluate.gold=null"], "evaluate.gold names none"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused_with_the_fix(wrong, said, trained, model):
    with pytest.raises(ConfigError, match=said):
        plan.make(loaded(trained, *wrong), model)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("search.objectives=[reward]", "at least two objectives"),
        ("search.families=[cubic]", "give one of power, step"),
        ("search.places=[0, 0.5, 0.4, 1]", "four rising numbers"),
        ("search.sampler=nsga3", "give one of nsga2"),
        ("search.trails=3", "did you mean 'search.trials'"),
    ],
)
def test_a_wrong_search_setting_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        configuration.load(None, None, [wrong])


def test_a_schedule_file_stands_in_the_configuration_as_its_content_and_in_the_arms_by_its_name(tmp_path):

    file = tmp_path / "mine.json"
    file.write_text('{"name": "mine", "knots": [[0, 0], [0.5, 1], [1, 0.4]]}')
    text = "piecewise:0=0|0.5=1|1=0.4"
    asked = configuration.load("smoke", None, [f"evaluate.schedules=[linear, 'file:{file}']"])
    assert asked.evaluate.schedules == ("linear", f"mine={text}")
    file.unlink()
    again = configuration.from_dict(configuration.to_dict(asked))
    arm = next(arm for arm in resolve(again).arms if arm.label == "AIG mine")
    assert (arm.arm.schedule, arm.arm.name) == (text, "fragile-k1-kl0-s0+mine")
    file.write_text('{"knots": [[0, 0], [0.5, 65]]}')
    with pytest.raises(ConfigError, match=r"evaluate\.schedules: .*mine\.json: .*\(0\.5, 65\): u must be in"):
        configuration.load("smoke", None, [f"evaluate.schedules=['file:{file}']"])


@pytest.mark.timeout(580)
def test_the_command_searches_validates_and_leaves_schedules_that_can_be_used(ray_cluster, trained, capsys):
    assert main(["search", *trained]) == 0
    said = capsys.readouterr().out
    made = loaded(trained)
    folder = RunDir.of(made).searches / KEY
    result = json.loads((folder / RESULT).read_text())
    assert result["statement"] in said
    rows = [row for row in result["schedules"] if row["found"]]
    for row in rows:
        schedule = schedules.parse(f"file:{RunDir.of(made).schedules / row['name']}.json")
        assert (schedule.label, schedules.format_name(schedule)) == (row["name"], row["schedule"])
        low, high = row[HELD_OUT]["vendi"][1:]
        assert low <= row[HELD_OUT]["vendi"][0] <= high
    assert len(pq.read_table(folder / CANDIDATES)) == 4 and (folder / PICTURE).exists()
    written = (folder / RESULT).read_bytes()
    assert main(["search", *trained]) == 0
    assert "Finished already" in capsys.readouterr().out
    assert (folder / RESULT).read_bytes() == written
