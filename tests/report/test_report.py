"""The report, from a run directory made of synthetic numbers and images."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.front import families
from pipelines.front.results import Claim, Difference, Plane, Study
from pipelines.report import labels, planes, style, words, write_report
from pipelines.report.images import read_grid, select
from pipelines.report.reading import read_run
from pipelines.runs.directory import IMAGES_FORMAT
from pipelines.show import estimates
from pipelines.show.estimates import Estimate

COLOURS = ("red", "blue", "green", "yellow")
SHAPES = ("star", "heart on a dark background", "circle", "cross")
PROMPT_LISTS = {
    "split": "given", "train": 200, "validate": 8, "evaluate": 16, "overlap": 3, "overlap_validate": 1, "elsewhere": 0,
}  # fmt: skip
UNITS = {"path": "mean squared difference of predictions (eps_mse)", "kl_to_base": "nats per image"}
HALF = {
    "fragile": 0.8,
    "robust": 0.5,
    "gold": 0.4,
    "accuracy": 0.2,
    "vendi": 0.5,
    "pairwise": 0.05,
    "path": 0.002,
    "kl_to_base": 1.5,
}


def arms_of(reward: str, k: int, seed: int) -> list[dict[str, Any]]:
    """Arms of one study, with the place of each on a made-up trade-off: d says how far it is tuned."""
    key = f"{reward}-k{k}-kl{{}}-s{seed}"
    rows: list[tuple[Any, ...]] = [("tuned", "tuned", 0, 1.0, 1.0, "tuned", 160)]
    rows += [(f"KL {w}", "kl", w, d, 1.0, "tuned", 160) for w, d in ((1, 0.82), (10, 0.5), (100, 0.2))]
    rows += [(f"LoRA ×{s}", "lora", 0, s**0.8, s, "tuned", 160) for s in (0.25, 0.5, 0.75)]
    schedules = {"linear": 0.83, "power:2": 0.72, "power:4": 0.5, "step:0.6": 0.64}
    rows += [(f"AIG {name}", "aig", 0, d, 1.0, name, 160) for name, d in schedules.items()]
    rows += [("fixed mix 0.5", "fixed", 0, 0.58, 1.0, "constant:0.5", 160)]
    rows += [(f"step {t}", "early", 0, (t / 160) ** 0.6, 1.0, "tuned", t) for t in (20, 40, 80, 120)]
    rows += [(f"KL {w} + AIG linear", "kl-aig", w, d, 1.0, "linear", 160) for w, d in ((1, 0.6), (10, 0.34))]
    base = {"name": "base", "label": "base", "family": "base", "adapter": None, "lora_scale": 1.0, "schedule": "base"}
    arms = [base | {"reward": None, "k": None, "kl_weight": None, "train_seed": None, "step": None, "d": 0.0}]
    for label, family, weight, d, scale, schedule, step in rows:
        adapter = key.format(weight) + (f"@{step}" if family == "early" else "")
        arm = {"name": f"{adapter}+{schedule}+{scale}", "label": label, "family": family, "adapter": adapter}
        arm |= {"lora_scale": scale, "schedule": schedule, "reward": reward, "k": k, "kl_weight": float(weight)}
        arms.append(arm | {"train_seed": seed, "step": step, "d": d})
    return [arm | {"id": f"{i:016x}", "members": []} for i, arm in enumerate(arms)]


def mean_of(studies: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Arms that are means over training seeds."""
    arms = [studies[0][0]]
    for members in list(zip(*studies, strict=True))[1:]:
        name = re.sub(r"-s\d+", "-mean", members[0]["name"], count=1)
        names = [member["name"] for member in members]
        arms.append(members[0] | {"name": name, "train_seed": None, "members": names})
    return arms


def measure(arm: dict[str, Any], rng: np.random.Generator, prompts: int) -> dict[str, list[float]]:
    """Made-up metrics of an arm, with intervals that shrink with the prompts."""
    d, gain = arm["d"], {"aig": 0.25, "kl-aig": 0.2, "kl": 0.3, "early": 0.1}.get(arm["family"], 0.0)
    truth = {"fragile": 12.4 + 5.5 * d, "robust": 16.5 + 0.8 * d, "gold": 3.3 + 1.9 * d - 2.2 * d**2 - 0.4 * gain}
    truth |= {"accuracy": 0.69 + 0.3 * d - 0.5 * d**2, "vendi": 4.8 - 1.5 * d - 0.8 * d**3 + gain}
    truth |= {"pairwise": 0.42 - 0.2 * d, "path": 0.08 * d**2, "kl_to_base": 40 * d**2}
    table = {}
    for metric, value in truth.items():
        half = HALF[metric] / math.sqrt(prompts / 2)
        value += rng.normal() * half / 3
        table[metric] = [value, value - half * rng.uniform(0.8, 1.2), value + half * rng.uniform(0.8, 1.2)]
    return table


def optimal(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other dominates."""
    everything = list(points.values())
    return [n for n, (x, y) in points.items() if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in everything)]


def by_seed(value: float, seeds: list[int]) -> dict[str, float]:
    """Made-up values of each training seed, whose mean is the value."""
    middle = (len(seeds) - 1) / 2
    return {str(seed): value + 0.02 * (i - middle) for i, seed in enumerate(seeds)}


def plane(
    metric: str, seeds: list[int], arms: list[dict[str, Any]], metrics: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Fronts, hypervolumes and differences: AIG on KL 0 beats LoRA, is undecided against early stops and loses to KL,
    which AIG on every KL weight beats.

    Against early stops the interval alone excludes zero; adjusted for all comparisons neither is ahead.
    """
    points = {arm["name"]: (metrics[arm["name"]][metric][0], metrics[arm["name"]]["vendi"][0]) for arm in arms}
    found = {"all": list(points)}
    for family in ("kl", "lora", "fixed", "aig", "early", "kl-aig"):
        own = (*families.members(family), "base", "tuned")
        found[family] = [arm["name"] for arm in arms if arm["family"] in own]
    volumes = {"kl": 0.61, "lora": 0.52, "fixed": 0.5, "aig": 0.6, "early": 0.59, "kl-aig": 0.63, "all": 0.66}
    return {
        "fronts": {f: optimal({n: points[n] for n in names}) for f, names in found.items()},
        "hypervolume": {family: [v, v - 0.03, v + 0.03] for family, v in volumes.items()},
        "differences": [
            {"a": "kl", "b": "aig", "value": 0.04, "low": 0.012, "high": 0.066}
            | {"verdict": "ahead", "p_adjusted": 0.012, "arms": [3, 4], "size": 3, "by_seed": by_seed(0.04, seeds)},
            {"a": "aig", "b": "lora", "value": 0.08, "low": 0.055, "high": 0.101}
            | {"verdict": "ahead", "p_adjusted": 0.0003, "arms": [4, 3], "size": 3, "by_seed": by_seed(0.08, seeds)},
            {"a": "aig", "b": "early", "value": 0.01, "low": 0.001, "high": 0.031}
            | {"verdict": "undecided", "p_adjusted": 0.2, "arms": [4, 4], "size": 4, "by_seed": by_seed(0.01, seeds)},
            {"a": "kl-aig", "b": "kl", "value": 0.02, "low": 0.008, "high": 0.034}
            | {"verdict": "ahead", "p_adjusted": 0.04, "arms": [6, 3], "size": 3, "by_seed": by_seed(0.02, seeds)},
        ],
        "reference": [min(x for x, _ in points.values()), min(y for _, y in points.values())],
        "normalization": [1.0, 2.0],
    }


def front_study(
    name: str, seeds: list[int], arms: list[dict[str, Any]], metrics: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """The study's entry in front.json."""
    reward, k = name.split("-")[0], int(name.split("-")[1][1:])
    other = "robust" if reward == "fragile" else "fragile"
    own = plane(reward, seeds, arms, metrics)
    entries = []
    for arm in arms:
        measured, best = metrics[arm["name"]], arm["name"] in own["fronts"]["all"]
        entry = {"arm": arm["name"], "label": arm["label"], "family": arm["family"], "metrics": measured}
        entry |= dict(zip(("x", "x_low", "x_high"), measured[reward], strict=True))
        entry |= dict(zip(("y", "y_low", "y_high"), measured["vendi"], strict=True))
        entries.append(entry | {"on_front": best, "front_probability": 0.9 if best else 0.1})
    gold = "gold falls under its peak along training (tuned - peak)"
    claims = [
        {"claim": "proxy reward rises (tuned - base)", "expected": 1, "value": 5.02, "low": 4.61, "high": 5.44},
        {"claim": "diversity falls (tuned - base)", "expected": -1, "value": -2.3, "low": -2.6, "high": -2.0},
        {"claim": gold, "expected": -1, "value": -0.12, "low": -0.41, "high": 0.0},
    ]
    claims = [claim | {"by_seed": by_seed(claim["value"], seeds)} for claim in claims]
    return {
        **{"study": name, "reward": reward, "held_out": other, "k": k, "train_seeds": seeds, "arms": entries},
        "leading": True,
        **own,
        "trainings": {"kl": 4, "lora": 1, "fixed": 1, "aig": 1, "early": 1, "kl-aig": 3, "all": 4},
        "planes": {metric: plane(metric, seeds, arms, metrics) for metric in (other, "gold")},
        "reward_vs_kl": [
            {
                **{"arm": arm["name"], "kl_weight": arm["kl_weight"], "metric": "path", "unit": UNITS["path"]},
                **{"distance": metrics[arm["name"]]["path"], "reward": metrics[arm["name"]][reward]},
            }
            for arm in arms
        ],
        "claims": claims,
    }


def write_curves(folder: Path, arms: list[dict[str, Any]], rng: np.random.Generator) -> None:
    """A training curve for each adapter."""
    for arm in arms:
        if arm["family"] not in ("tuned", "kl"):
            continue
        lines = []
        for step in range(0, 161, 20):
            d = (step / 160) ** 0.6 / (1 + 0.3 * math.log1p(arm["kl_weight"]))
            row = {"reward": 12.4 + 5.5 * d, "held_out": 16.5 + 0.8 * d - 0.5 * d**2, "diversity": 4.8 - 2.3 * d}
            row |= {"gold": 3.3 + 1.9 * d - 2.2 * d**2, "accuracy": 0.69 + 0.3 * d - 0.5 * d**2, "path": d**2}
            row = {key: value + 0.02 * rng.normal() for key, value in row.items()}
            lines.append(json.dumps({"step": step, **row, "loss": None, "seconds": 1.1 * step}))
        (folder / f"{arm['adapter']}.jsonl").write_text("\n".join(lines) + "\n")


def picture(arm: dict[str, Any], prompt: int, seed: int, size: int) -> bytes:
    """A disc on a ground, drowning in a checkerboard as d grows: PNG bytes."""
    rng = np.random.default_rng([prompt, seed])
    y, x = np.mgrid[:size, :size] / size
    center, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.2, 0.35)
    disc = ((x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2)[..., None]
    image = np.where(disc, np.random.default_rng(prompt).uniform(0.3, 1, 3), rng.uniform(0, 0.6, 3))
    check = ((np.arange(size)[:, None] + np.arange(size)[None]) % 2)[..., None] * np.array([0.6, 1.0, 0.8])
    image = (1 - 0.6 * arm["d"]) * image + 0.6 * arm["d"] * check
    buffer = io.BytesIO()
    Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def build_run(root: Path, train_seeds: int = 1, prompts: int = 4, seeds: int = 3, size: int = 16) -> Path:
    """A run directory as the pipeline leaves it: a study for each training seed, and their mean if there are more."""
    rng = np.random.default_rng(0)
    (root / "curves").mkdir(parents=True)
    (root / "images").mkdir()
    singles = [arms_of("fragile", 1, seed) for seed in range(train_seeds)]
    studies = {f"fragile-k1-s{seed}": ([seed], arms) for seed, arms in enumerate(singles)}
    if train_seeds > 1:
        studies = {"fragile-k1": (list(range(train_seeds)), mean_of(singles)), **studies}
    drawn = list({arm["name"]: arm for arms in singles for arm in arms}.values())
    everything = list({arm["name"]: arm for _, arms in studies.values() for arm in arms}.values())
    metrics = {arm["name"]: measure(arm, rng, prompts) for arm in everything}

    (root / "config.yaml").write_text(yaml.safe_dump({"train": {"k": 1, "steps": 160}, "run": {"seed": 0}}))
    n = len(drawn) * prompts * seeds
    listing = {
        "format": IMAGES_FORMAT,
        "arms": [{key: value for key, value in arm.items() if key != "d"} for arm in everything],
        "cost": {"predictions": 143, "separate": 190, "published": 224},
        "check": {"expected": n, "found": n, "missing": 0, "duplicate": 0},
        "command": "python -m pipelines demo",
        "versions": {"torch": "2.0"},
    }
    (root / "arms.json").write_text(json.dumps(listing))
    rows = []
    for arm in everything:
        count = prompts * seeds * max(1, len(arm["members"]))
        for metric, (value, low, high) in metrics[arm["name"]].items():
            row = {"arm": arm["name"], "metric": metric, "value": value, "low": low, "high": high}
            rows.append(row | {"n": count, "prompts": prompts, "seeds": seeds})
    pq.write_table(pa.Table.from_pylist(rows), root / "metrics.parquet")
    front = {
        **{"reward": "fragile", "diversity": "vendi", "level": 0.95, "n_bootstrap": 1000, "seed": 0},
        **{
            "prompts": prompts,
            "prompt_lists": PROMPT_LISTS,
            "seeds": seeds,
            "reference": [12.0, 1.0],
            "normalization": [6.0, 4.0],
        },
        **{"no_interval": None, "multiplicity": {"method": "holm", "level": 0.95, "comparisons": 12}},
        "studies": [front_study(name, of, arms, metrics) for name, (of, arms) in studies.items()],
    }
    for study in front["studies"]:
        if train_seeds > 1 and len(study["train_seeds"]) == 1:
            study["leading"] = False
            for row in [*study["differences"], *study["planes"]["gold"]["differences"]]:
                row |= {"verdict": None, "p_adjusted": None}
    (root / "front.json").write_text(json.dumps(front))
    write_curves(root / "curves", drawn, rng)
    texts = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]
    for p in range(prompts):
        images = [
            {
                **{"arm": arm["name"], "prompt_id": p, "prompt": texts[p], "seed_index": s},
                "image": picture(arm, p, s, size),
            }
            for arm in drawn
            for s in range(seeds)
        ]
        pq.write_table(pa.Table.from_pylist(images), root / "images" / f"part-{p}.parquet")
    return root


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report. Tests that change it work on a copy."""
    root = build_run(tmp_path_factory.mktemp("runs") / "demo")
    assert write_report(root) == root / "report" / "index.html"
    return root


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report" / "index.html").read_text()


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def edit(path: Path, change: Any) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def study_of(path: Path) -> Study:
    return read_run(path).studies[0]


def test_the_page_loads_nothing_from_outside_itself(page: str) -> None:
    links = Links(page).links
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?:|@import|url\((?!#)|<link (?!rel=\"icon\" href=\"data:,\")|<iframe", page)


def test_the_page_says_how_many_of_the_prompts_that_judge_were_trained_on(copy: Path, page: str) -> None:
    assert "Trained on 200 prompts, judged on 16, of which 3 were trained on too (1 of them in validations" in page
    edit(copy / "front.json", lambda content: content["prompt_lists"].update(split="embedded", train=32, overlap=0))
    said = "Trained on 32 captions of the embedded world, judged on 16 held-out ones: none is in both."
    assert said in words.caveats(read_run(copy))
    edit(copy / "front.json", lambda content: content.pop("prompt_lists"))  # of an older run
    assert not any("rained on" in text for text in words.caveats(read_run(copy))[:1])
    edit(copy / "front.json", lambda content: content.update(prompt_lists={"train": 3}))
    with pytest.raises(ValueError, match=r"front\.json is wrong: 'prompt_lists' of it"):
        read_run(copy)


def test_ids_in_the_page_are_unique_and_every_reference_finds_one(page: str) -> None:
    parsed = Links(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    wanted = {link[1:] for link in parsed.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted and wanted <= set(parsed.ids)


def test_every_arm_of_the_front_has_a_row_and_a_picture_of_its_own(run: Path, page: str) -> None:
    arms = [arm["arm"] for arm in json.loads((run / "front.json").read_text())["studies"][0]["arms"]]
    assert sorted(Links(page).arms) == sorted(arms)
    labels_shown = [arm.label for arm in study_of(run).arms]
    assert all(f'alt="{label}: a red star"' in page for label in labels_shown)


def test_the_main_figures_are_written_as_pictures_that_are_not_blank(run: Path) -> None:
    names = {path.stem for path in (run / "report").glob("*.png")}
    assert names == {"tradeoff", "planes", "curves", "reward_vs_kl", "hypervolume", "images"}
    for path in (run / "report").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"), float)
        assert min(pixels.shape) > 200 and pixels.std() > 10, path.name


def test_the_words_say_where_aig_wins_where_it_does_not_and_where_it_loses(page: str) -> None:
    text = Links(page).text
    for said in (
        "On proxy × diversity AIG on KL 0 (1 training) beats LoRA scaling (1 training) for this adapter: +0.080 "
        "[+0.055, +0.101] in hypervolume, 4 arms against 3, compared at 3 each, adjusted p 0.0003.",
        "AIG on KL 0 (1 training) does not clearly beat early stopping (1 training) for this adapter: +0.010 [+0.001, "
        "+0.031] in hypervolume, 4 arms each, adjusted p 0.2, so neither is ahead.",
        "AIG on KL 0 (1 training) does not beat KL (4 trainings) but loses to it for this adapter: −0.040 [−0.066, "
        "−0.012] in hypervolume, 4 arms against",
        "On proxy × diversity AIG on every KL weight (3 trainings) beats KL (4 trainings) for this adapter: +0.020 "
        "[+0.008, +0.034] in hypervolume, 6 arms against 3",
        "On held-out reward × diversity AIG on KL 0 (1 training) does not beat KL",
        "On gold × diversity AIG on KL 0 (1 training) does not beat KL",
        "Proxy reward rises (tuned − base): +5.02 [+4.61, +5.44], for this adapter.",
        "Gold does not clearly fall under its peak along training (tuned − peak): −0.12 [−0.41, 0.00], for this "
        "adapter, the interval reaches zero.",
        "AIG on KL 0 (1 training) beats LoRA scaling, does not clearly beat early stopping and loses to KL for this "
        "adapter; AIG on every KL weight (3 trainings) beats KL for this adapter.",
        "With held-out reward in the proxy's place, AIG on KL 0 (1 training) beats LoRA scaling",
        "one weight at every step is DeRaDiff's fixed mix, a family of its own",
        "AIG on every KL weight has the schedules on the adapter of each KL weight, 0 included",
        "Highest mean of gold, selected among 19 arms and so too high on average: ",
        "holds together with all 12 comparisons of this report at 95 %",
    ):
        assert said in text, said


def test_n_seeds_level_and_reference_stand_beside_the_results(page: str) -> None:
    text = Links(page).text
    assert "n = 12 images an arm (4 prompts × 3 seeds), training seed 0, 95 % intervals" in text
    assert re.search(r"from reference \(12\.\d+, 2\.\d+\), in units of \(1, 2\)", text)
    assert "there is one training seed (0), so another training run may differ by more" in text
    assert "143; separate loops 190, published script 224" in text
    assert (
        "143 predictions a (prompt, seed); a loop for each arm that makes weights 0 and 1 by one prediction makes 190 "
        "(25 % fewer), the published script, with both at every step, 224 (36 % fewer)."
    ) in text
    assert "python -m pipelines demo" in text and "steps: 160" in text and "torch 2.0" in text


@pytest.mark.parametrize(
    ("claim", "low", "high", "kind", "said"),
    [
        ("proxy rises (tuned - base)", 0.5, 1.5, "yes", "Proxy rises (tuned − base): +1.00 [+0.50, +1.50]."),
        ("proxy rises", -0.5, 2.5, "open", "Proxy does not clearly rise: +1.0 [−0.5, +2.5], the interval covers zero."),
        ("proxy rises", -1.5, -0.5, "no", "Proxy does not rise: −1.00 [−1.50, −0.50], the opposite."),
        ("gold falls", -1.5, -0.5, "yes", "Gold falls: −1.00 [−1.50, −0.50]."),
        ("gold falls", 0.5, 1.5, "no", "Gold does not fall: +1.00 [+0.50, +1.50], the opposite."),
        ("a is above b", -0.5, 2.5, "open", "It does not clearly hold that a is above b: +1.0 [−0.5, +2.5], the"),
        ("gold falls", math.nan, math.nan, "open", "Gold falls: not measured."),
    ],
)
def test_a_claim_is_denied_unless_its_interval_supports_it(
    claim: str, low: float, high: float, kind: str, said: str
) -> None:
    sentence = words.claim_sentence(Claim(claim, Estimate((low + high) / 2, low, high), None))
    assert sentence.kind == kind and sentence.text.startswith(said)


def test_a_difference_is_told_from_aigs_side_whichever_way_it_was_taken(run: Path) -> None:
    ahead = Difference("kl", "aig", Estimate(-0.5, -0.9, -0.1), "behind", 0.01, (3, 5), 3, {"0": -0.4, "1": -0.6})
    plane = Plane("fragile", {}, {}, (ahead,), (0.0, 0.0), (1.0, 1.0))
    study = replace(study_of(run), planes={"fragile": plane})
    assert [sentence.text for sentence in words.verdict(study, "fragile")] == [
        "On proxy × diversity AIG on KL 0 (1 training) beats KL (4 trainings) for this adapter: +0.50 [+0.10, +0.90] "
        "(+0.40, +0.60 in training seeds 0 and 1) in hypervolume, 5 arms against 3, compared at 3 each, adjusted p "
        "0.01."
    ]
    assert words.headline(study) == "AIG on KL 0 (1 training) beats KL for this adapter"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [((), " for this adapter"), ((4,), " for this adapter"), ((0, 1), " for these two adapters"), ((0, 1, 2), "")],
)
def test_fewer_than_three_training_seeds_speak_of_their_own_adapters_alone(
    run: Path, seeds: tuple[int, ...], said: str
) -> None:
    study = replace(study_of(run), train_seeds=seeds)
    assert words.headline(study).split("; ")[0].endswith(f"loses to KL{said}")
    assert words.tuning_headline(study).endswith(f"under its peak along training{said}")
    told = words.study_sentences(study)[0].text
    assert told.endswith(f"[+4.61, +5.44],{said}." if said else "[+4.61, +5.44].")


def test_where_there_is_no_verdict_values_stand_without_one(run: Path) -> None:
    few = Difference("aig", "kl", Estimate(0.5), None, math.nan, (5, 3), 3, {"0": 0.5})
    study = replace(study_of(run), planes={"fragile": Plane("fragile", {}, {}, (few,), (0.0, 0.0), (1.0, 1.0))})
    assert [sentence.tag for sentence in words.verdict(study, "fragile")] == ["no verdict"]
    assert words.headline(study) == "AIG on KL 0 (1 training) has +0.500 against KL in hypervolume, without a verdict"
    sentence = words.claim_sentence(Claim("proxy rises", Estimate(0.5), 1))
    assert (sentence.text, sentence.tag) == ("Proxy rises: +0.500, without an interval.", "no interval")
    said = words.caveats(replace(read_run(run), no_interval="2 prompts: no interval below 4"))
    assert said[0] == "2 prompts: no interval below 4, and no verdict."


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(12.3456, 12.11, 12.61), "12.35 [12.11, 12.61]"),
        (Estimate(0.00123, 0.00101, 0.00149), "0.00123 [0.00101, 0.00149]"),
        (Estimate(1234.5, 1100.0, 1400.0), "1234 [1100, 1400]"),
        (Estimate(-0.001, -0.1, 0.1), "0.00 [−0.10, 0.10]"),
        (Estimate(0.97), "0.970"),
        (Estimate(math.nan), "–"),
    ],
)
def test_numbers_are_rounded_to_what_their_interval_supports(estimate: Estimate, shown: str) -> None:
    assert estimates.interval(estimate) == shown


def test_a_staircase_bounds_what_its_points_attain() -> None:
    assert planes.staircase([(2, 1), (0, 3), (1, 2)]) == [(0, 3), (0, 2), (1, 2), (1, 1), (2, 1)]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=14), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_names_never_cover_each_other_or_a_point_or_leave_the_frame(
    points: list[tuple[float, float]], crowding: int
) -> None:
    points = [(x / 4**crowding, y / 4**crowding) for x, y in points] + [(1.0, 1.0)]
    with style.style():
        figure, ax = style.canvas(5, 4)
        ax.plot(*zip(*points, strict=True), "o", markersize=4)
        named = [labels.Label(x, y, f"arm number {i}", "black") for i, (x, y) in enumerate(points)]
        left_out = labels.place(ax, named)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) + len(left_out) == len(points)
    frame = ax.get_window_extent()
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*ax.transData.transform(point)) for point in points)


def test_names_that_stand_free_are_all_placed() -> None:
    _, ax = style.canvas(6, 5)
    ax.plot(range(10), range(10), "o")
    assert labels.place(ax, [labels.Label(i, i, f"arm {i}", "black") for i in range(10)]) == []
    assert len(ax.texts) == 10


def test_the_grid_shows_the_datasets_own_pixels(run: Path) -> None:
    study = study_of(run)
    grid = read_grid(run / "images", study, prompts=2, seeds=2)
    assert grid is not None and grid.prompts == ("a red star", "a green star") and grid.missing == 0
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(grid.strip(study.arms[3], 1).split(",")[1]))))
    table = pq.read_table(run / "images" / "part-2.parquet").to_pylist()
    wanted = {r["seed_index"]: r["image"] for r in table if r["arm"] == study.arms[3].name}
    for seed in (0, 1):
        pixels = np.asarray(Image.open(io.BytesIO(wanted[seed])))
        np.testing.assert_array_equal(strip[:, seed * 17 : seed * 17 + 16, :3], pixels)


def test_arms_for_a_picture_are_thinned_inside_families_and_keep_base_and_tuned(run: Path) -> None:
    arms = study_of(run).arms
    chosen = select(arms, 9)
    assert len(chosen) == 9 and {arm.family for arm in chosen} == {arm.family for arm in arms}
    assert select(arms, 100) == sorted(arms, key=lambda arm: list(style.MARK).index(arm.family))


def test_a_run_of_two_prompts_is_drawn_without_intervals_and_says_why_once(copy: Path) -> None:
    told = "2 prompts: no interval below 4"

    def strip(value: Any) -> None:
        """Intervals go from every estimate: an object's, or [value, low, high]."""
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            if key in ("low", "high", "x_low", "x_high", "y_low", "y_high", "p_adjusted", "verdict"):
                value[key] = None
            elif isinstance(own, list) and len(own) == 3 and all(isinstance(x, float) for x in own):
                value[key] = [own[0], None, None]
            elif isinstance(own, dict | list):
                strip(own)

    def few(front: dict[str, Any]) -> None:
        strip(front)
        front |= {"no_interval": told, "multiplicity": {"method": "holm", "level": 0.95, "comparisons": 0}}

    edit(copy / "front.json", few)
    rows = pq.read_table(copy / "metrics.parquet").to_pylist()
    nothing = {"low": math.nan, "high": math.nan}
    pq.write_table(pa.Table.from_pylist([row | nothing for row in rows]), copy / "metrics.parquet")
    text = Links(write_report(copy).read_text()).text
    assert text.count("no interval below 4") == 1 and f"{told}, and no verdict." in text
    assert not re.search(r"\d \[[+−]?\d", text)
    assert (
        "AIG on KL 0 (1 training) has +0.0800 against LoRA scaling" in text
        and "beats" not in text.split("How to read this")[0]
    )


def test_a_training_that_a_guard_has_stopped_is_named_with_the_reason(copy: Path) -> None:
    told = "stopped at step 40, where diversity was 1.21, under 1.5; its adapter is that of step 20"

    def stop(listing: dict[str, Any]) -> None:
        for arm in listing["arms"]:
            if arm["adapter"] and arm["kl_weight"] == 0:
                arm["stopped"] = told

    edit(copy / "arms.json", stop)
    page = write_report(copy).read_text()
    assert f"fragile-k1-kl0-s0: the training was {told}." in Links(page).text
    assert page.count("KL weight 0 (stopped)") == 1


def test_what_is_missing_is_said_and_an_earlier_report_is_replaced_whole(copy: Path) -> None:
    shutil.rmtree(copy / "curves")
    shutil.rmtree(copy / "images")
    (copy / "report" / "stale.txt").write_text("from an earlier run")

    def strip(front: dict[str, Any]) -> None:
        front["studies"][0] |= {"held_out": None, "reward_vs_kl": [], "claims": [], "differences": [], "planes": {}}

    edit(copy / "front.json", strip)
    edit(copy / "arms.json", lambda listing: [listing.pop(key) for key in ("check", "command", "versions", "cost")])
    text = Links(write_report(copy).read_text()).text
    for said in (
        "No training curves",
        "No image grid",
        "No figure of reward against KL",
        "Not measured in this run: held-out reward",
        "AIG was not compared with another family",
        "No differences between families",
        "The command is not on record",
        "The cost of sampling is not on record",
        "was not checked for missing and duplicate images",
        "of the environment that wrote this report",
    ):
        assert said in text, said
    assert sorted(path.name for path in (copy / "report").iterdir()) == [
        "hypervolume.png",
        "index.html",
        "planes.png",
        "tradeoff.png",
    ]
    assert not list(copy.glob(".report*"))


def break_arm(front: dict[str, Any]) -> None:
    """Mark the arm that is best by the proxy, as `front` does: on no front of front.json."""
    study = front["studies"][0]
    arm = study["arms"][1]
    arm |= {"broken": "24 of 24 images are one flat colour", "on_front": False, "front_probability": 0.0}
    for plane in (study, *study["planes"].values()):
        plane["fronts"] = {f: [name for name in names if name != arm["arm"]] for f, names in plane["fronts"].items()}


def test_a_broken_arm_is_shown_with_its_reason_and_is_on_no_front(copy: Path) -> None:
    edit(copy / "front.json", break_arm)
    study = study_of(copy)
    arm = study.arms[1]
    assert arm.label == "tuned (broken)" and study.size("tuned") == 0
    unplanned = replace(study, planes={study.reward: study.plane})  # its fronts on other planes are found here
    assert all(arm.name not in planes.optimal_names(unplanned, metric) for metric in ("fragile", "robust", "gold"))
    assert "tuned (broken)" not in str(words.best_arms(study, "robust"))
    page = write_report(copy).read_text()
    text = Links(page).text
    reason = "tuned (broken): 24 of 24 images are one flat colour. It is shown, on no front and in no hypervolume."
    assert reason in text and "Crossed out, since their images are unsound: tuned (broken)." in text
    row = page.split(f'data-arm="{arm.name}"')[1].split("</tr>")[0]
    assert ">broken</td>" in row and "tuned (broken)" in row


def test_an_arm_of_little_precision_has_the_warning_beside_it_and_takes_part(copy: Path) -> None:
    told, before = "precision 0.008 is under 0.05", study_of(copy)
    edit(copy / "front.json", lambda front: front["studies"][0]["arms"][1].update(warning=told))
    study = study_of(copy)
    arm = study.arms[1]
    assert arm.label == "tuned (!)" and not arm.broken and study.size("all") == before.size("all")
    assert planes.optimal_names(study, "gold") == planes.optimal_names(before, "gold")
    page = write_report(copy).read_text()
    text = Links(page).text
    assert f"tuned (!): {told}. Another style has little precision too: look at its images. It takes part." in text
    assert "Marked (!), since few of their images lie among the base's: tuned (!)." in text
    assert f", {told}</title>" in page and "Crossed out" not in text


def test_path_lengths_of_some_prompts_say_so(copy: Path) -> None:
    said = "Distances to the base are means over the first 2 prompts."
    assert said not in write_report(copy).read_text()
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "evaluate": {"path_prompts": 2}}))
    assert said in write_report(copy).read_text()


def test_reward_is_set_against_a_kl_in_nats_only_where_there_is_one(copy: Path) -> None:
    text = Links(write_report(copy).read_text()).text
    assert "Reward against path length" in text and "This path length is no KL" in text
    assert "Reward against KL" not in text

    def stochastic(front: dict[str, Any]) -> None:
        study = front["studies"][0]
        nats = {arm["arm"]: arm["metrics"]["kl_to_base"] for arm in study["arms"]}
        for row in study["reward_vs_kl"]:
            row |= {"metric": "kl_to_base", "unit": UNITS["kl_to_base"], "distance": nats[row["arm"]]}

    edit(copy / "front.json", stochastic)
    text = Links(write_report(copy).read_text()).text
    assert "Reward against KL" in text and "This path length is no KL" not in text
    assert {point.unit for point in study_of(copy).reward_vs_kl} == {"nats per image"}


def test_several_training_seeds_are_shown_as_their_mean_first_and_text_from_files_is_escaped(tmp_path: Path) -> None:
    root = build_run(tmp_path / "seeds", train_seeds=2, prompts=2, seeds=2)

    def disturb(listing: dict[str, Any]) -> None:
        listing["arms"][1]["label"] = "<script>alert(1)</script> $x"
        listing["check"]["missing"] = 3

    def rename(front: dict[str, Any]) -> None:
        front["studies"] = front["studies"][:2]
        front["studies"][0]["arms"][1]["label"] = "<script>alert(1)</script> $x"

    edit(root / "arms.json", disturb)
    edit(root / "front.json", rename)
    stages: list[str] = []
    page = write_report(root, stages.append).read_text()
    text = Links(page).text
    assert "<script>alert(1)" not in page and "<script>alert(1)</script> $x" in text
    assert (
        "n = 8 images an arm (2 prompts × 2 seeds × 2 training seeds; the base 4), mean of training seeds 0, 1" in text
    )
    assert text.index("mean of training seeds 0, 1") < text.index("fragile reward, K = 1, training seed 0")
    assert (
        "loses to it for these two adapters: −0.040 [−0.066, −0.012] (−0.030, −0.050 in training seeds 0 and 1)" in text
    )
    assert "−0.040 [−0.066, −0.012] against KL in hypervolume, without a verdict" in text
    assert "KL weight 100, seed 0" in text and "KL weight 100, seed 1" in text
    assert "The images dataset is not complete" in text
    assert any("training seed 0" in stage for stage in stages)
    names = {path.stem for path in (root / "report").glob("*.png")}
    assert {"tradeoff-fragile-k1", "tradeoff-fragile-k1-s0", "images-fragile-k1", "overview"} <= names


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_png(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"image": b"not a picture"} for row in rows]), path)


def drop_column(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns([pq.read_schema(path).names[2]]), path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.yaml", Path.unlink, r"^config\.yaml is missing in copy/: give the directory of a run"),
        ("config.yaml", lambda p: p.write_text("a: [1"), r"^config\.yaml is not YAML .*: give"),
        ("arms.json", Path.unlink, r"^arms\.json is missing .*: run `python -m pipelines measure RUN` again"),
        ("arms.json", truncate, r"^arms\.json is not JSON \(line 1: .*: run"),
        (
            "arms.json",
            lambda p: edit(p, lambda c: c["arms"][2].pop("family")),
            r"arms\.json .*arms\[2\] has no 'family'",
        ),
        (
            "arms.json",
            lambda p: edit(p, lambda c: c["arms"].pop()),
            r"^front\.json is out of date: it names arm 'fragile",
        ),
        (
            "metrics.parquet",
            Path.unlink,
            r"^metrics\.parquet is missing .*: run `python -m pipelines measure RUN` again",
        ),
        ("metrics.parquet", truncate, r"^metrics\.parquet is not a parquet file .*: run"),
        ("metrics.parquet", drop_column, r"^metrics\.parquet has no column value: run"),
        ("front.json", lambda p: p.write_text("[]"), r"^front\.json is wrong: it is not an object: run"),
        ("front.json", lambda p: edit(p, lambda c: c.pop("level")), r"^front\.json is wrong: it has no 'level'"),
        ("front.json", lambda p: edit(p, lambda c: c.update(studies=[])), r"^front\.json has no studies: run"),
        (
            "front.json",
            lambda p: edit(p, lambda c: c["studies"][0]["arms"][0].update(x="high")),
            r"^front\.json is wrong: 'x' of arms\[0\] is 'high', not a number: run",
        ),
        ("curves/fragile-k1-kl0-s0.jsonl", truncate, r"^curves/fragile-k1-kl0-s0\.jsonl is not JSON in line \d"),
        ("images/part-1.parquet", truncate, r"^images/part-1\.parquet is not a parquet file .*: delete it and run"),
        ("images/part-1.parquet", drop_column, r"^images/part-1\.parquet has no column prompt: delete it and run"),
        (
            "images/part-1.parquet",
            spoil_png,
            r"^images/ has an image that is not a PNG \(arm 'base', prompt 1, seed 0\)",
        ),
    ],
)
def test_an_error_names_the_file_and_the_fix_and_leaves_the_earlier_report(
    copy: Path, file: str, damage: Any, message: str
) -> None:
    before = (copy / "report" / "index.html").read_bytes()
    damage(copy / file)
    with pytest.raises(ValueError, match=message):
        write_report(copy)
    assert (copy / "report" / "index.html").read_bytes() == before
    assert not list(copy.glob(".report*"))


def test_a_directory_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="nowhere is not a directory: give the directory of a run"):
        write_report(Path("nowhere"))
