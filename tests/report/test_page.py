"""The page of a run, and its pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import reported_runs
import yaml
from PIL import Image

from pipelines.front.loading import read_front, write_front
from pipelines.front.names import GOLD
from pipelines.front.results import Arm, StudyResult
from pipelines.report import figures, style, words, write_report
from pipelines.report.images import read_grid
from pipelines.report.reading import read_run
from pipelines.runs.directory import RunDir
from pipelines.show.estimates import Estimate, interval

HELD_OUT, PROXY = reported_runs.HELD_OUT, reported_runs.PROXY


class Links(HTMLParser):
    """Collects what a page would load, its ids and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.arms: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and value is not None:
                self.links.append(value)
            if name == "id":
                self.ids.append(str(value))
            if name == "data-arm":
                self.arms.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def change_study(run: Path, change: Callable[[StudyResult], StudyResult]) -> StudyResult:
    """Write a run's results with another first study."""
    front = read_front(RunDir(run))
    changed = change(front.studies[0])
    write_front(RunDir(run), replace(front, studies=(changed, *front.studies[1:])))
    return changed


def change_arm(run: Path, name: str, **changes: Any) -> Arm:
    """Write a run's results with another arm in the first study."""

    def change(study: StudyResult) -> StudyResult:
        return replace(study, arms=tuple(replace(a, **changes) if a.name == name else a for a in study.arms))

    return change_study(run, change).by_name[name]


def text_of(run: Path) -> str:
    return Links(write_report(run).read_text()).text


def test_the_page_loads_nothing_from_outside_itself(page: str) -> None:
    links = Links(page).links
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?:|@import|url\((?!#)|<link (?!rel=\"icon\" href=\"data:,\")|<iframe", page)


def test_ids_in_the_page_are_unique_and_every_reference_finds_one(page: str) -> None:
    parsed = Links(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    references = {link[1:] for link in parsed.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert references and references <= set(parsed.ids)


def test_every_arm_of_the_front_has_a_row_and_a_picture_of_its_own(run: Path, page: str) -> None:
    study = read_front(RunDir(run)).studies[0]
    assert sorted(Links(page).arms) == sorted(arm.name for arm in study.arms) and len(study.arms) == 11
    grid = read_grid(run / "images", study)
    assert grid is not None and all(f'alt="{arm.label}: {grid.prompts[0]}"' in page for arm in study.arms)


def test_the_main_figures_are_written_as_pictures_that_are_not_blank(run: Path) -> None:
    names = {path.stem for path in (run / "report").glob("*.png")}
    assert names == {"tradeoff", "planes", "curves", "reward_vs_kl", "hypervolume", "images"}
    for path in (run / "report").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"), float)
        assert min(pixels.shape) > 150 and pixels.std() > 10, path.name


def test_the_page_has_all_that_is_said_of_the_run(run: Path, page: str) -> None:
    data, text = read_run(run), Links(page).text
    (study,) = data.studies
    said = [sentence.text for sentence in words.study_sentences(study)]
    said += [
        *words.caveats(data),
        words.headline(study),
        *words.headline_elsewhere(study),
        words.tuning_headline(study),
    ]
    assert len(said) > 15 and all(sentence in text for sentence in said)
    rows = re.findall(r"<tr>(.*?)</tr>", page.split('<details class="undecided">')[1].split("</details>")[0], re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row.replace("&gt;", ">")) for row in rows[1:]]
    assert len(cells) == len(words.undecided(study)) > 5
    for row, (role, d) in zip(cells, words.undecided(study), strict=True):
        families = [study.counted(family, short=True) for family in (d.a, d.b)]
        assert row == [*families, role, d.sizes_short, interval(d.estimate, plus=True), f"{d.p_adjusted:.2g}"]
    assert f"{len(cells)} undecided comparisons" in text
    assert "Proxy reward rises, diversity falls, held-out reward rises and gold falls" in text
    assert "one weight at every step is DeRaDiff's fixed mix, a family of its own" in text
    assert "AIG on every KL weight has the schedules on the adapter of each KL weight, 0 included" in text
    assert f"all {3 * 8} comparisons of this report at 95 %" in text


def test_n_seeds_level_and_reference_stand_beside_the_results(run: Path, page: str) -> None:
    text, plane = Links(page).text, read_front(RunDir(run)).studies[0].plane
    assert "n = 18 images per arm (6 prompts × 3 seeds), training seed 0, 95 % intervals" in text
    (x, y), (unit_x, unit_y) = plane.reference, plane.scale
    assert f"from reference ({x:.4g}, {y:.4g}), in units of ({unit_x:.4g}, {unit_y:.4g})".replace("-", "−") in text
    assert "5; separate loops 8, published script 10" in text
    assert "Arms share states while their weights have been equal: 5 predictions per (prompt, seed); a loop" in text
    assert "python -m pipelines demo" in text and "kl_weights:" in text and "torch " in text
    assert "Trained on 32 captions of the embedded world, judged on 6 held-out ones: none is in both." in text
    assert "Distances to the base are means over the first 2 prompts." in text


def test_a_run_of_two_prompts_is_drawn_without_intervals_and_says_why_once(tmp_path: Path) -> None:
    text = text_of(reported_runs.build(tmp_path, "evaluate.prompts=2").directory)
    assert text.count("no interval below 4") == 1 and "2 prompts: no interval below 4, and no verdict." in text
    assert not re.search(r"\d \[[+−]?\d", text) and "Not measured in this run" not in text
    assert "8 comparisons of families have no verdict" in text and "24 comparisons without a verdict" in text
    assert re.search(r"AIG, KL 0 \(1 training\)KL \(3 trainings\)proxy\d\|\d at \d[+−]?\d[\d.]+–", text)
    assert "beats" not in text.split("How to read this")[0]


def test_a_training_that_a_guard_has_stopped_is_named_with_the_reason(copy: Path) -> None:
    why = "stopped at step 40, where diversity was 1.21, under 1.5; its adapter is that of step 20"
    front = read_front(RunDir(copy))
    key = next(arm.training for arm in front.studies[0].arms if arm.family == "tuned")
    for arm in front.studies[0].arms:
        if arm.training == key:
            change_arm(copy, arm.name, stopped=why)
    page = write_report(copy).read_text()
    assert f"{key}: the training was {why}." in Links(page).text
    assert page.count("KL weight 0 (stopped)") == 1


def test_what_is_missing_is_said_and_an_earlier_report_is_replaced_whole(copy: Path) -> None:
    for name in ("curves", "images"):
        shutil.rmtree(copy / name)
    (copy / "report" / "stale.txt").write_text("from an earlier run")

    def strip(study: StudyResult) -> StudyResult:
        arms = tuple(replace(arm, metrics={"vendi": arm.metrics["vendi"]}) for arm in study.arms)
        planes = {study.reward: replace(study.plane, differences=())}
        return replace(study, held_out=None, claims=(), arms=arms, planes=planes)

    change_study(copy, strip)
    files = RunDir(copy)
    write_front(files, replace(read_front(files), cost={}))
    listing = files.read_json(files.arms)
    files.write_json(files.arms, {name: listing[name] for name in ("format", "arms")})
    text = text_of(copy)
    for said in (
        "No training curves",
        "No image grid",
        "No figure of reward against KL",
        "Not measured in this run: held-out reward",
        "Annealing was not compared with another family",
        "No differences between families",
        "The command is not on record",
        "The cost of sampling is not on record",
        "was not checked for missing and duplicate images",
        "of the environment that wrote this report",
    ):
        assert said in text, said
    names = ["hypervolume.png", "index.html", "planes.png", "tradeoff.png"]
    assert sorted(path.name for path in (copy / "report").iterdir()) == names
    assert not list(copy.glob(".report*"))


def test_a_broken_arm_is_shown_with_its_reason_and_is_on_no_front(tmp_path: Path) -> None:
    def flatten(name: str, columns: dict[str, np.ndarray]) -> None:
        if name.endswith("+linear") and "-kl0-" in name:
            columns["pixel_std"][:] = 0

    run = reported_runs.build(tmp_path, change=flatten).directory
    study = read_front(RunDir(run)).studies[0]
    (arm,) = [arm for arm in study.arms if arm.broken]
    assert arm.title == "AIG linear (broken)" and study.size("aig") == 1
    assert all(arm.name not in names for plane in study.planes.values() for names in plane.fronts.values())
    assert "AIG linear" not in str(words.best_arms(study, HELD_OUT)).replace("+ AIG linear", "")
    page = write_report(run).read_text()
    text = Links(page).text
    assert f"AIG linear (broken): {arm.broken}. It is shown, on no front and in no hypervolume." in text
    assert "Crossed out, since their images are unsound: AIG linear (broken)." in text
    row = page.split(f'data-arm="{arm.name}"')[1].split("</tr>")[0]
    assert ">broken</td>" in row and "AIG linear (broken)" in row


def test_an_arm_of_little_precision_has_the_warning_beside_it_and_takes_part(copy: Path) -> None:
    why, before = "precision 0.008 is under 0.05", read_front(RunDir(copy)).studies[0]
    arm = change_arm(copy, before.arms[1].name, warning=why)
    assert arm.title == "tuned (!)" and read_front(RunDir(copy)).studies[0].size("all") == before.size("all")
    page = write_report(copy).read_text()
    text = Links(page).text
    assert f"tuned (!): {why}. Another style has little precision too: look at its images. It takes part." in text
    assert "Marked (!), since few of their images lie among the base's: tuned (!)." in text
    assert f", {why}</title>" in page and "Crossed out" not in text


def test_path_lengths_of_all_prompts_have_no_note(copy: Path) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["evaluate"]["path_prompts"] = 6
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert "Distances to the base are means over the first" not in write_report(copy).read_text()


def test_reward_is_set_against_a_kl_in_nats_only_where_there_is_one(copy: Path, page: str) -> None:
    text = Links(page).text
    assert "Reward against path length" in text and "This path length is no KL" in text
    assert "Reward against KL" not in text
    for arm in read_front(RunDir(copy)).studies[0].arms:
        change_arm(copy, arm.name, metrics={**arm.metrics, "kl_to_base": arm.metrics["path"]})
    text = text_of(copy)
    assert "Reward against KL" in text and "This path length is no KL" not in text


def test_a_kl_in_nats_has_a_logarithmic_axis_and_rings_where_gold_is_below_the_base(copy: Path) -> None:
    def drawn() -> tuple[set[str], list[int]]:
        run = read_run(copy)
        with style.style():
            panels = [panel.figure.axes[0] for panel in (figures.reward_vs_kl(run, run.studies[0]) or (None, []))[1]]
        rings = [sum(line.get_markersize() == figures.RING["markersize"] for line in ax.lines) for ax in panels]
        return {ax.get_xscale() for ax in panels}, rings

    arms = read_front(RunDir(copy)).studies[0].arms
    assert drawn() == ({"linear"}, [0, 0, 0])
    below = [arm for arm in arms if arm.family == "aig"]
    for arm in arms:
        gold = Estimate(0.5 if arm in below else 1.0 + (arm.family != "base"))
        change_arm(copy, arm.name, metrics={**arm.metrics, "kl_to_base": arm.metrics["path"], GOLD: gold})
    assert drawn() == ({"log"}, [len(below)] * 3)
    assert f"Ringed: gold is below the base's ({', '.join(arm.title for arm in below)})" in text_of(copy)


def test_several_training_seeds_are_shown_as_their_mean_first_and_text_from_files_is_escaped(tmp_path: Path) -> None:
    root = reported_runs.build(tmp_path, "sweep.train_seeds=[0, 1]").directory
    files, label = RunDir(root), "<script>alert(1)</script> $x"
    change_arm(root, read_front(files).studies[0].arms[1].name, label=label)
    listing = files.read_json(files.arms)
    listing["check"]["missing"] = 3
    files.write_json(files.arms, listing)
    stages: list[str] = []
    page = write_report(root, stages.append).read_text()
    text = Links(page).text
    assert "<script>alert(1)" not in page and label in text
    assert (
        "n = 36 images per arm (6 prompts × 3 seeds × 2 training seeds; the base 18), mean of training seeds 0, 1"
        in text
    )
    assert text.index("mean of training seeds 0, 1") < text.index(f"{PROXY} reward, K = 1, training seed 0")
    assert "clearly ahead for these two adapters" in text and " in training seeds 0 and 1)" in text
    assert " comparisons of families have no verdict" in text
    assert "KL weight 10, seed 0" in text and "KL weight 10, seed 1" in text
    assert "The images dataset is not complete" in text
    assert any("training seed 0" in stage for stage in stages)
    names = {path.stem for path in (root / "report").glob("*.png")}
    assert {f"tradeoff-{PROXY}-k1", f"tradeoff-{PROXY}-k1-s0", f"images-{PROXY}-k1", "overview"} <= names


def test_a_curve_is_read_for_each_training(run: Path) -> None:
    data = read_run(run)
    assert sorted(data.curves) == sorted({arm.training for arm in data.front.by_name.values() if arm.training})
    first = next(iter(data.curves.values()))
    assert [row.step for row in first] == [0, 2, 4] and np.isnan(first[0].diversity) and first[0].reward == 12
