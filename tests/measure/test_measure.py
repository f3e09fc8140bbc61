"""Measuring what was drawn: every metric with its interval, broken arms marked, and two runs compared."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
import weakref
from dataclasses import replace
from itertools import combinations

import measured_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from measured_runs import BRIGHT, DIMENSION, RED, TUNED, build, columns, refuse_ray, settings
from scipy import stats
from scipy.spatial.distance import cdist

from aig import adapters, models
from aig.metrics import cmmd, frechet_distance, kernel_distance, log_spectral_distance, neighbour_scores, vendi_score
from aig.pareto import bootstrap
from pipelines import config as configuration
from pipelines.__main__ import main
from pipelines.cluster.connect import Cluster
from pipelines.config import ConfigError
from pipelines.config.values import slug
from pipelines.evaluate import generate, scorers
from pipelines.evaluate import pixels as evaluate_pixels
from pipelines.front import compare, front
from pipelines.front.loading import read_front
from pipelines.measure import broken as measure_broken
from pipelines.measure import measure, sets, tiles
from pipelines.measure import table as measured_table
from pipelines.measure.feature_file import FeatureFile, gathered
from pipelines.runs.directory import RunDir
from pipelines.show.estimates import interval
from pipelines.study.resolved import resolve, resolve_images

ARMS = ["base", TUNED, f"{TUNED}+linear", f"{TUNED}x0.5", f"{TUNED}@2"]


def measured(found, connect=refuse_ray):
    table = measured_runs.measured(found, connect)
    return table, {(row["arm"], row["metric"]): row for row in measured_table.read_rows(RunDir.of(found))}


def features_of(found, name):
    """An arm's features (prompts, seeds, d), made anew."""
    arm = next(arm for arm in resolve(found).arms if arm.arm.name == name)
    by_prompt = [
        np.concatenate([columns(arm, p, seeds, 1.0)["features"] for seeds in ((0, 1), (2, 3))]) for p in range(6)
    ]
    return np.stack(by_prompt).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, measured, with its table and its rows by arm and metric."""
    found = build(settings(tmp_path_factory.mktemp("runs")))
    return found, *measured(found)


def test_a_score_is_averaged_over_seeds_inside_a_prompt_and_then_over_the_prompts_it_was_measured_on(run):
    found, table, rows = run
    arm = next(arm for arm in resolve(found).arms if arm.arm.name == TUNED)
    by_prompt = [
        np.mean([columns(arm, p, seeds, 1.0)[slug(RED)].astype(np.float32) for seeds in ((0, 1), (2, 3))])
        for p in range(6)
    ]
    np.testing.assert_allclose(table.rows([TUNED])[slug(RED)][0], by_prompt, rtol=1e-6)
    row = rows[TUNED, slug(RED)]
    assert row["value"] == pytest.approx(np.mean(by_prompt)) and row["low"] < row["value"] < row["high"]
    assert (row["prompts"], row["seeds"], row["n"], row["interval"]) == (6, 4, 24, "studentized bootstrap of prompts")
    assert (rows[TUNED, "path"]["prompts"], rows[TUNED, "path"]["value"]) == (2, pytest.approx(1.0))


def test_measures_of_features_equal_the_librarys_on_the_same_rows(run):
    found, table, rows = run
    base, tuned = (features_of(found, name) for name in ("base", TUNED))
    np.testing.assert_allclose(table.rows([TUNED])["vendi"][0], [vendi_score(part) for part in tuned])
    flat = base.reshape(-1, DIMENSION), tuned.reshape(-1, DIMENSION)
    assert rows[TUNED, "frechet"]["value"] == pytest.approx(frechet_distance(*flat))
    assert [rows[TUNED, name]["value"] for name in ("precision", "recall", "density", "coverage")] == [
        *neighbour_scores(*flat, 5)
    ]
    halves = base[:, :2].reshape(-1, DIMENSION), base[:, 2:].reshape(-1, DIMENSION)
    floor = rows["base", "log_spectral_floor"]
    assert (floor["value"], floor["n"]) == (pytest.approx(log_spectral_distance(*halves)), 12)


def test_measures_of_sets_have_intervals_by_subsets_and_say_so(run):
    _, _, rows = run
    for metric in ("frechet", "log_spectral", "kid", "collapse", "density"):
        row = rows[TUNED, metric]
        assert row["interval"] == "subsets of 3 prompts" and row["low"] < row["value"] < row["high"]
    assert rows["base", "frechet"]["value"] == pytest.approx(0, abs=1e-9)


def test_intervals_of_shares_stay_between_0_and_1(run):
    _, _, rows = run
    shares = [row for (_, metric), row in rows.items() if metric in sets.SHARES]
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in shares)
    assert any(row["high"] == 1 > row["value"] for row in shares)  # where it would leave the range
    whole = [row for row in shares if row["value"] == 1 and row["interval"] != "none"]
    assert whole and all(row["low"] < 0.9 for row in whole)  # 24 hits of 24 are no certainty


def test_a_first_look_has_the_rewards_and_diversity_and_says_where_the_rest_is(run):
    found, _, _ = run
    said = measure.summary(resolve(found), everything=False)
    assert slug(RED) in said and "vendi" in said and "python -m pipelines measure" in said
    assert "frechet" not in said and "pixel_std" not in said


def test_no_arm_of_a_sound_run_is_broken_and_the_table_names_all(run):
    found, table, rows = run
    assert table.broken == table.warned == {}
    assert {row[told] for row in rows.values() for told in ("broken", "warning")} == {None}
    assert {arm for arm, _ in rows} == set(ARMS)
    said = measure.summary(resolve(found))
    assert all(arm in said for arm in ARMS) and "n = 24 images" in said and "subsets of 3 prompts" in said
    assert not list(found.directory.glob(".features*"))


def test_measuring_twice_gives_the_same_bytes(run):
    found, *_ = run
    files = RunDir.of(found)
    before = files.metrics.read_bytes()
    measured(found)
    assert files.metrics.read_bytes() == before


def test_subsets_are_bounded_and_large_enough_for_neighbours():
    assert sets.subset_size(prompts=6, seeds=4, images=4096) == 3
    assert sets.subset_size(prompts=1000, seeds=8, images=4096) == 500
    assert sets.subset_size(prompts=10_000, seeds=8, images=4096) == 512
    assert sets.subset_size(prompts=4, seeds=2, images=4096) * 2 > sets.NEIGHBOURS


def test_moments_inside_prompts_do_not_depend_on_how_many_prompts_are_taken_at_a_time(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(7, 4, 3)).astype(np.float32)
    whole = sets.within(rows)
    monkeypatch.setattr(sets, "BLOCK", 24)
    apart = sets.within(rows)
    assert apart.n == whole.n == 7 * 3 + 1
    np.testing.assert_allclose(apart.M2, whole.M2, rtol=1e-12)


def test_a_kernel_distance_of_many_rows_is_the_mean_over_parts_that_hold_each_row_once(monkeypatch):
    ref, gen = np.random.default_rng(0).normal(size=(2, 30, 3))
    monkeypatch.setattr(sets, "KERNEL_ROWS", 10)
    parts = [kernel_distance(ref[i::3], gen[i::3]) for i in range(3)]
    assert sets.in_parts(kernel_distance, ref, gen) == pytest.approx(np.mean(parts))
    monkeypatch.setattr(sets, "KERNEL_ROWS", 30)
    assert sets.in_parts(kernel_distance, ref, gen) == kernel_distance(ref, gen)


def test_features_of_clip_have_a_cmmd_too():
    ref, gen = np.random.default_rng(0).normal(size=(2, 3, 4, 5)) + 1
    clip, others = (sets.distances(ref, gen, extractor) for extractor in ("clip", "world"))
    assert clip["cmmd"] == pytest.approx(cmmd(ref.reshape(12, 5), gen.reshape(12, 5), unbiased=True))
    assert {name: value for name, value in clip.items() if name != "cmmd"} == others


def test_features_are_never_all_in_memory(tmp_path):
    arms, prompts, seeds, d = 12, 10, 8, 512
    paths = []
    for p in range(prompts):
        rows = np.random.default_rng(p).normal(size=(arms * seeds, d)).astype(np.float32)
        paths.append(tmp_path / f"{p}.parquet")
        pq.write_table(pa.table({
            "arm": np.repeat([f"arm {a}" for a in range(arms)], seeds),
            "prompt_id": np.full(arms * seeds, p), "seed_index": np.tile(np.arange(seeds), arms),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), d),
        }), paths[-1])  # fmt: skip
    place = {f"arm {a}": a for a in range(arms)}
    tracemalloc.start()
    with gathered(tmp_path / "all.npy", paths, (arms, prompts, seeds), place) as features:
        base = features.arm(0)
        for a in range(arms):
            assert features.arm(a).shape == base.shape
        np.testing.assert_array_equal(features.rows(arms - 1, 72, 80), rows[-seeds:])
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * base.nbytes < arms * base.nbytes / 3


# Broken arms


def test_the_spread_of_pixels_tells_flat_images_and_those_that_are_not_numbers():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1] = torch.tensor([0.9, 0.1, 0.4])[:, None, None]  # one colour, though its channels differ
    images[2, 0, 3, 3] = torch.nan
    images[3, 1, 0, 0] = torch.inf
    std = evaluate_pixels.pixel_std(images)
    assert std[0] == pytest.approx(float(images[0].flatten(1).std(1, correction=0).max()))
    assert std[1] < measure_broken.FLAT and torch.isnan(std[2:]).all()


def spoil(arm, column, value, rows=slice(None)):
    def change(name, made):
        if name == arm:
            made[column][rows] = value

    return change


def test_an_adapter_of_numbers_that_are_none_draws_images_that_are_told_apart(tmp_path):
    """Their PNGs look like any: it is the generator that sees them."""
    found = configuration.load("smoke", None, [f"run.storage={tmp_path}", "sweep.kl_weights=[0]", "evaluate.prompts=2"])
    model, files = models.load("tiny"), RunDir.of(found)
    adapters.attach(model.denoiser, "a", 2, 2.0, "attention")
    for name in (None, *(arm.arm.adapter for arm in resolve(found).arms)):
        if name is not None and not (files.adapters / name).exists():
            with torch.no_grad():
                for parameter in adapters.parameters(model.denoiser, "a"):
                    parameter.fill_(torch.nan if "@" in name else 0.01)
            adapters.save(model.denoiser, "a", files.adapters / name, {})
    study = resolve_images(found, model.defaults)
    generator, scorer = generate.Generator(study), scorers.Scorer(generate.Evaluation(study))
    unit = generate.units(study)[0]
    scorer(generator(pa.Table.from_pylist([unit.row()])))
    drawn = pq.read_table(files.images / scorers.PART.format(unit=unit.name)).to_pylist()
    by_arm = {row["arm"]: row for row in drawn}
    stopped = [name for name in by_arm if "@" in name]
    assert len(stopped) == 1 and np.isnan(by_arm[stopped[0]]["pixel_std"])
    for name, row in by_arm.items():
        assert np.isfinite(row["fragile"])
        if name not in stopped:
            pixels = scorers.from_png(row["image"]) / 255
            assert row["pixel_std"] == pytest.approx(pixels.std((0, 1)).max(), abs=1 / 255)


BREAKDOWNS = {
    "pixels that are not numbers": (spoil(ARMS[2], "pixel_std", np.nan, 0), "12 of 24 images have pixels that are"),
    "flat images": (spoil(ARMS[2], "pixel_std", 0.001), "24 of 24 images are one flat colour"),
    "a reward that is not a number": (spoil(ARMS[2], "gold", np.inf, 0), "gold is not finite for 12 of 24 images"),
    "features that are not numbers": (spoil(ARMS[2], "features", np.nan, 0), "features of 12 of 24 images are not"),
    "features that are all the same": (spoil(ARMS[2], "features", 1.0), "features of all 24 images are the same"),
}


@pytest.mark.parametrize("kind", BREAKDOWNS)
def test_an_arm_whose_images_are_unsound_is_shown_with_the_reason_and_has_no_part_in_a_front(kind, tmp_path, capsys):
    change, reason = BREAKDOWNS[kind]

    def change_and_win(name, made):
        change(name, made)
        if name == ARMS[2]:  # it would be best in everything
            made[slug(RED)] += 100

    found = build(settings(tmp_path), change_and_win)
    table, rows = measured(found)
    assert list(table.broken) == [ARMS[2]] and reason in table.broken[ARMS[2]]
    assert rows[ARMS[2], "frechet"]["broken"] == table.broken[ARMS[2]]
    assert f"{ARMS[2]} is broken, and on no front: {table.broken[ARMS[2]]}" in measure.summary(resolve(found))
    path = front.write_front(resolve(found))
    single = read_front(RunDir.of(found)).studies[0]
    broken = single.by_name[ARMS[2]]
    assert broken.broken == table.broken[ARMS[2]] and single.plane.points[ARMS[2]][0].value > 50
    assert broken.front_probability == 0
    for plane in single.planes.values():
        assert not any(ARMS[2] in names for names in plane.fronts.values())
        assert plane.reference[0] < 50 and plane.scale[0] < 50
        volumes = {family: volume.value for family, volume in plane.hypervolume.items()}
        assert volumes["aig"] <= volumes["all"] and volumes["lora"] <= 1.5
    assert "broken, on no front: AIG linear" in front.summary(path)


def test_a_shift_of_one_deviation_has_no_precision_left_though_its_spread_is_the_same():
    base, own = np.random.default_rng(0).normal(size=(2, 400, 64))
    found = neighbour_scores(base, own + 1, 5)
    assert neighbour_scores(base, own, 5).precision > 0.5 and found.precision < 0.05
    assert measure_broken.of_features(own + 1) == []
    told = f"precision {found.precision:.3g} is under 0.05"
    assert measure_broken.warning(configuration.Measure(), found.precision) == told
    assert measure_broken.warning(configuration.Measure(), 0.05) is None


def test_an_arm_that_is_shifted_and_keeps_its_spread_is_on_the_front_with_a_warning_beside_it(tmp_path):
    def shift(name, made):
        if name == ARMS[2]:
            made["features"] += 20
            made[slug(RED)] += 100

    found = build(settings(tmp_path, "sweep.train_seeds=[0, 1]"), shift)
    table, rows = measured(found)
    mean = ARMS[2].replace("-s0", "-mean")
    told = "precision 0 is under 0.05"
    assert table.broken == {} and table.warned == {ARMS[2]: told, mean: f"1 of 2 training seeds: {told}"}
    assert rows[ARMS[2], "precision"]["value"] == 0 and rows[ARMS[2], "vendi"]["warning"] == told
    assert measured_table.read_table(resolve(found)).warned == table.warned
    path = front.write_front(resolve(found))
    for single in read_front(RunDir.of(found)).studies[:2]:  # the mean, and the seed
        arm = next(arm for arm in single.arms if arm.label == "AIG linear")
        assert arm.broken is None and arm.warning.endswith(told)
        assert all(arm.name in single.plane.fronts[family] for family in ("all", "aig"))
        assert single.plane.reference[0] < 50 < single.plane.scale[0]
    text = measure.summary(resolve(found))
    assert f"! {ARMS[2]}: {told}" in text and f"{ARMS[2]} !" in text
    assert f"warning: AIG linear ({told})" in front.summary(path)
    listed = {arm["name"]: arm for arm in json.loads(RunDir.of(found).arms.read_text())["arms"]}
    assert listed[ARMS[2]]["warning"] == told and listed[TUNED]["warning"] is None
    assert sum(told in line for line in RunDir.of(found).table.read_text().splitlines()) == 2


def test_an_arm_that_is_broken_has_no_warning_too_and_neither_has_a_mean_of_which_one_seed_is(tmp_path):
    other = ARMS[2].replace("-s0", "-s1")

    def change(name, made):
        if name in (ARMS[2], other):
            made["features"] += 20
        if name == other:
            made["pixel_std"][:] = np.nan

    table, _ = measured(build(settings(tmp_path, "sweep.train_seeds=[0, 1]"), change))
    assert set(table.broken) == {other, other.replace("-s1", "-mean")} and set(table.warned) == {ARMS[2]}


def test_the_front_says_how_sure_it_is_that_an_arm_dominates_another(run):
    found, table, _ = run
    measured(found)
    front.write_front(resolve(found))
    single = read_front(RunDir.of(found)).studies[0]
    names = [arm.name for arm in single.arms]
    result = bootstrap(table.rows(names), found.front.bootstrap, x=slug(RED), y="vendi", seed=found.front.seed)
    expected = tuple(tuple(result.dominates(a, b) for b in range(5)) for a in range(5))
    assert single.dominance == expected and 0 < max(map(max, expected)) <= 1


def test_the_summary_and_the_table_give_the_held_out_rewards_plane_beside_the_proxys(run):
    """An arm that is best by the proxy alone is on that front and on no other."""
    found, *_ = run
    measured(found)
    path = front.write_front(resolve(found))
    single = read_front(RunDir.of(found)).studies[0]
    said, labels = front.summary(path), {arm.name: arm.label for arm in single.arms}
    roles = {
        slug(RED): f"the proxy ({slug(RED)})",
        slug(BRIGHT): f"the held-out reward ({slug(BRIGHT)})",
        "gold": "gold",
    }
    planes = single.planes
    assert list(planes) == list(roles)
    for x, plane in planes.items():
        assert f"  front by {roles[x]}: {', '.join(labels[name] for name in plane.fronts['all'])}\n" in said
        part = said.split(f"  by {roles[x]}, hypervolumes on ({x}, vendi) start at ")[1].split("\n  by ")[0]
        for row in plane.differences:
            rival = {"lora": "LoRA scaling", "early": "early stopping"}[row.b]
            shown = ["AIG", rival, "1|1 at 1", interval(row.estimate, plus=True)]
            assert shown in [re.split("  +", line.strip())[:4] for line in part.splitlines()]
    rows = {row["arm"]: row for row in csv.DictReader(RunDir.of(found).table.open())}
    for name, row in rows.items():
        for column, x in (("on_front", slug(RED)), ("on_held_out_front", slug(BRIGHT))):
            assert (row[column] == "True") == (name in planes[x].fronts["all"])


def test_the_front_says_what_separate_loops_would_have_made(run):
    found, *_ = run
    measured(found)
    path = front.write_front(resolve(found))
    assert read_front(RunDir.of(found)).cost == {"predictions": 5, "separate": 8, "published": 10}
    told = (
        "cost: 5 predictions per (prompt, seed); a loop for each arm that makes weights 0 and 1 by one prediction "
        "makes 8 (38 % fewer), the published script, with both at every step, 10 (50 % fewer)"
    )
    assert front.summary(path).endswith(told)


def test_images_of_one_colour_are_let_through_where_they_are_few(tmp_path):
    change = spoil(ARMS[2], "pixel_std", 0.001, 0)
    found = build(settings(tmp_path, "measure.max_constant=0.5"), change)
    assert measured(found)[0].broken == {}


def test_a_base_without_features_is_an_error_since_nothing_can_be_measured_against_it(tmp_path):
    found = build(settings(tmp_path), spoil("base", "features", np.nan, 0))
    with pytest.raises(ConfigError, match="the base model's features of 12 of 24 images are not finite"):
        measured(found)
    assert not list(found.directory.glob(".features*"))


def test_a_mean_over_training_seeds_is_broken_where_one_of_its_members_is(tmp_path):
    other = TUNED.replace("-s0", "-s1")
    found = build(settings(tmp_path, "sweep.train_seeds=[0, 1]"), spoil(other, "pixel_std", np.nan))
    table, rows = measured(found)
    mean = TUNED.replace("-s0", "-mean")
    assert table.broken[mean] == f"1 of 2 training seeds: {table.broken[other]}"
    assert rows[mean, "vendi"]["n"] == 48
    expected = (rows[TUNED, "frechet"]["value"] + rows[other, "frechet"]["value"]) / 2
    assert rows[mean, "frechet"]["value"] == pytest.approx(expected)


# Large sets


@pytest.mark.timeout(280)
def test_neighbours_by_ray_in_small_tiles_equal_those_of_one_process_exactly(ray_cluster, run, tmp_path):
    found, _, rows = run
    asked = []
    large = replace(found, measure=replace(found.measure, tiles_from=24, tile=7))

    def connect():
        asked.append("Ray")
        return Cluster({"CPU": 4.0}, False, None)

    _, tiled = measured(large, connect)
    assert asked == ["Ray"]
    for arm in ARMS:
        for metric in ("precision", "recall", "density", "coverage"):
            assert tiled[arm, metric] == rows[arm, metric]


class Here(FeatureFile):
    """A feature file of this process alone, as one in a local mirror is for every other node."""

    def __reduce__(self):
        raise AssertionError("a path of this machine goes to a task")


@pytest.mark.timeout(280)
def test_tiles_get_blocks_and_no_file_of_the_drivers_machine(ray_cluster, tmp_path):
    n, d = 23, 4
    rows = np.random.default_rng(0).normal(size=(2, n, 1, d)).astype(np.float32)
    np.save(tmp_path / "features.npy", rows)
    found = tiles.Tiles(Here(tmp_path / "features.npy"), n, 3, 5)
    ref, gen = rows[0, :, 0], rows[1, :, 0]
    radii = found.radii(0)
    nearest = np.sort(cdist(ref.astype(float), ref.astype(float), "sqeuclidean"))[:, 3]
    np.testing.assert_allclose(radii.numpy(), nearest, rtol=1e-12)
    assert found.scores(0, 1, radii) == neighbour_scores(ref, gen, 3)


def test_no_more_blocks_are_kept_than_asked_for_and_none_is_read_again_while_it_is_kept():
    read, alive = [], weakref.WeakSet()

    class Stored:
        def __init__(self, block):
            alive.add(self)

    def load(arm, block):
        read.append(block)
        return np.zeros(1)

    kept = tiles.Blocks(load, 3, Stored)
    for i, j in combinations(range(6), 2):
        pair = kept.ref((0, i)), kept.ref((0, j))
        assert len(alive) <= 3 and kept.ref((0, i)) is pair[0]
        del pair
    assert read[:6] == [0, 1, 2, 3, 4, 5]
    enough = tiles.Blocks(load, 6, Stored)
    read.clear()
    for i, j in combinations(range(6), 2):
        enough.ref((0, i)), enough.ref((0, j))
    assert read == [0, 1, 2, 3, 4, 5]


# The commands


def test_measure_needs_no_configuration_but_the_runs_directory_even_where_it_was_moved(run, tmp_path, capsys):
    found, _, rows = run
    moved = found.directory.rename(found.directory.with_name("moved"))
    try:
        assert main(["measure", str(moved), "front.level=0.5"]) == 0
    finally:
        moved.rename(found.directory)
    said = capsys.readouterr()
    assert "Images: 120 of 120 found, 0 missing, 0 duplicate." in said.out and "50 % intervals" in said.out
    narrow = {
        (row["arm"], row["metric"]): row for row in pq.read_table(found.directory / "metrics.parquet").to_pylist()
    }
    row, wide = narrow[TUNED, "vendi"], rows[TUNED, "vendi"]
    assert row["value"] == wide["value"] and row["high"] - row["low"] < wide["high"] - wide["low"]


@pytest.mark.parametrize("arguments", [["measure"], ["compare"], ["compare", "nowhere"]])
def test_a_command_without_its_run_says_so(arguments, capsys):
    assert main(arguments) == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err


def test_a_directory_that_is_no_run_is_named(tmp_path, capsys):
    assert main(["measure", str(tmp_path)]) == 2
    assert f"{tmp_path} is no run (it has no config.yaml)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same run trained on at another rate: its tuned arms go half as far."""
    found = build(settings(tmp_path_factory.mktemp("others"), "train.lr=0.5"), gain=0.5)
    measured(found)
    return found


def test_runs_are_compared_arm_by_arm_on_the_same_prompts(run, other, capsys):
    found, table, _ = run
    measured(found)
    assert main(["compare", str(found.directory), str(other.directory)]) == 0
    said = capsys.readouterr().out
    assert "on 6 shared prompts" in said and "The runs differ in train.lr is 0.001 and 0.5" in said
    rows = pq.read_table(other.directory / "comparisons" / "smoke.parquet").to_pylist()
    by_name = {(row["name"], row["metric"]): row for row in rows}
    tuned, base = by_name[TUNED, slug(RED)], by_name["base", "vendi"]
    # Half as far of 2, exactly, on every prompt: pairing takes the prompts' differences away.
    assert tuned["value"] == pytest.approx(-1, abs=1e-6) and tuned["high"] - tuned["low"] < 1e-5
    assert tuned["a"] == pytest.approx(table.rows([TUNED])[slug(RED)].mean())
    assert (base["value"], base["low"], base["high"]) == (0, 0, 0)
    for metric, x in (("hypervolume", slug(RED)), ("held-out hypervolume", slug(BRIGHT)), ("gold hypervolume", "gold")):
        family = by_name["pipeline_toys-red-k1-s0 all", metric]
        assert family["value"] == pytest.approx(family["b"] - family["a"])
        assert (family["x"], family["y"]) == (x, "vendi") and metric in said
        # By gold the base, which both runs share, dominates all that is tuned.
        assert family["value"] == 0 if metric == "gold hypervolume" else family["low"] < family["high"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("evaluate.seeds=2", "differ in their seeds (evaluate.seeds is 4 and 2)"),
        ("run.seed=1", "differ in their noise (run.seed is 0 and 1)"),
        (
            "evaluate.features=world",
            "differ in their features (evaluate.features is 'pipeline_toys:pixels' and 'world')",
        ),
        ("model.height=64", "differ in their noise (model.height is None and 64)"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused_with_the_difference(change, expected, run, tmp_path):
    with pytest.raises(ConfigError) as error:
        compare.compare(resolve(run[0]), resolve(settings(tmp_path, change)))
    assert expected in str(error.value)


def test_runs_on_other_prompts_are_refused_and_compared_on_the_shared_ones_where_asked(run, tmp_path):
    found, *_ = run
    fewer = build(settings(tmp_path, "evaluate.prompts=4", "run.name=fewer"))
    measured(fewer)
    measured(found)
    with pytest.raises(ConfigError, match=r"2 only in the first, as 'a .*', 0 only in the second\): pass --shared"):
        compare.compare(resolve(found), resolve(fewer))
    result = compare.compare(resolve(found), resolve(fewer), shared=True)
    assert result.prompts == 4
    assert all(row.estimate.value == 0 for row in result.rows)
    assert not any(row.metric == "frechet" for row in result.rows)  # their sets are of other prompts


def test_measures_of_sets_are_compared_on_the_same_subsets(run, other):
    found, *_ = run
    _, rows = measured(found)
    _, others = measured(other)
    by_name = {(row.name, row.metric): row for row in compare.compare(resolve(found), resolve(other)).rows}
    for metric in ("frechet", "kid", "recall", "vendi_pooled"):
        row = by_name[TUNED, metric]
        assert (row.a, row.b) == (rows[TUNED, metric]["value"], others[TUNED, metric]["value"])
        value, low, high = row.estimate
        assert value == pytest.approx(row.b - row.a) and low <= value <= high
        assert row.interval == "subsets of 3 prompts"
    ours, theirs = (measure.read_sets(resolve(config))[TUNED] for config in (found, other))
    place = ours.names.index("frechet")
    differences = theirs.found.replicates[:, place] - ours.found.replicates[:, place]
    half = 1.0 * differences.std(ddof=1)  # half of the prompts: √(3 / 3)
    value, _, high = by_name[TUNED, "frechet"].estimate
    assert (high - value) / half == pytest.approx(stats.t.ppf(0.975, 5), rel=0.02)
    assert by_name["base", "frechet"].estimate == (0, 0, 0)


def test_a_run_measured_by_an_earlier_version_is_compared_without_measures_of_sets(run, other):
    found, *_ = run
    measured(found)
    (found.directory / measured_table.PER_SUBSET).unlink()
    metrics = {row.metric for row in compare.compare(resolve(found), resolve(other)).rows}
    assert "frechet" not in metrics and "vendi" in metrics
    measured(found)


def test_hypervolumes_start_where_the_configuration_says_and_print_it(run):
    found, *_ = run
    measured(found)
    given = {"reference": {"vendi": 0.5, "gold": -9}, "scale": {slug(RED): 4.0}}
    path = front.write_front(resolve(replace(found, front=replace(found.front, **given))))
    single = read_front(RunDir.of(found)).studies[0]
    front.write_front(resolve(found))
    default = read_front(RunDir.of(found)).studies[0]
    assert single.plane.reference == (default.plane.reference[0], 0.5)
    assert single.plane.scale == (4.0, default.plane.scale[1])
    assert single.planes["gold"].reference == (-9, 0.5)
    assert single.plane.hypervolume["all"].value > 0
    at, unit = (", ".join(f"{value:.4g}" for value in pair) for pair in (default.plane.reference, default.plane.scale))
    assert f"hypervolumes on ({slug(RED)}, vendi) start at ({at}), in units of ({unit})" in front.summary(path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("front.reference={vendy: 1}", "front.reference: 'vendy' is no metric of the run; it has"),
        ("front.scale={vendi: 0}", "front.scale: vendi is 0: give a positive number"),
        ("front.reference={vendi: high}", "front.reference: vendi is 'high': give a number"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(given, expected, run, capsys):
    found, *_ = run
    measured(found)
    named = [f"run.name={found.run.name}", f"run.storage={found.run.storage}"]
    assert main(["front", "--config", str(found.directory / "config.yaml"), *named, given]) == 2
    assert expected in capsys.readouterr().err


def test_an_arm_that_is_broken_in_one_run_is_marked_and_in_no_hypervolume(run, tmp_path):
    found, *_ = run
    measured(found)
    bad = build(settings(tmp_path, "run.name=bad"), spoil(ARMS[2], "pixel_std", np.nan))
    measured(bad)
    result = compare.compare(resolve(found), resolve(bad))
    marked = {row.name for row in result.rows if row.broken}
    assert marked == {ARMS[2]}
    family = next(row for row in result.rows if row.name.endswith(" aig"))
    assert np.isnan(family.estimate.value)  # without it the family is what both share: nothing is left to compare
    assert f"{ARMS[2]} is broken" in compare.summary(result, "a", "b")


def test_an_arm_that_is_warned_of_in_one_run_is_compared_with_the_warning(run, tmp_path):
    found, *_ = run
    measured(found)
    far = build(settings(tmp_path, "run.name=far"), spoil(ARMS[2], "features", np.arange(DIMENSION) * 1e3, 0))
    measured(replace(far, measure=replace(far.measure, min_precision=0.6)))
    result = compare.compare(resolve(found), resolve(far))
    assert {row.name for row in result.rows if row.warning} == {ARMS[2]}
    assert not any(row.broken for row in result.rows)
    family = next(row for row in result.rows if row.name.endswith(" aig"))
    assert family.estimate.value != 0 and f"! {ARMS[2]}: b: precision 0" in compare.summary(result, "a", "b")


def test_a_table_is_cut_into_parts_that_fit_the_terminal():
    from pipelines.show import tables
    from pipelines.show.estimates import Estimate

    cells = {f"arm {i}": {f"metric {m}": Estimate(i + m, i, m + i + 1) for m in range(6)} for i in range(3)}
    text = tables.estimates(
        cells, [f"metric {m}" for m in range(7)], {"arm 1": "it fell apart"}, {"arm 2": "far off"}, 60
    )
    assert max(map(len, text.splitlines())) <= 60 and "metric 5" in text and "metric 6" not in text
    assert text.count("arm 1 *") > 1 and text.count("arm 2 !") > 1
    assert text.endswith("* arm 1 is broken, and on no front: it fell apart\n! arm 2: far off")
