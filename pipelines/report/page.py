"""Makes the report: read, draw, put into words, render, move into place."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.front.families import FAMILIES
from pipelines.front.names import GOLD, cost_words, metric_name
from pipelines.front.results import Arm, Difference, StudyResult
from pipelines.report import drawing, figures, images, planes, style, words
from pipelines.report.reading import Run, read_run
from pipelines.runs.directory import RunDir
from pipelines.show import estimates
from pipelines.show.estimates import UNKNOWN, Estimate

_PACKAGES = ("aig", "torch", "diffusers", "transformers", "peft", "accelerate", "ray", "numpy", "matplotlib")


def write_report(run: RunDir | str | Path, progress: Callable[[str], None] | None = None) -> Path:
    """Writes RUN/report/ from a run's config.yaml, arms.json, front.json, curves/ and images/.

    The report is index.html, which loads nothing from outside itself, and the main figures as PNGs: tradeoff, planes,
    curves, reward_vs_kl, hypervolume and images, with "-STUDY" in their names and an overview if there are several
    studies. An earlier report is replaced once the new one is complete.

    run: the run's directory, its path or its URI. progress: called with a few words at each stage.
    Returns the path of index.html. Raises ConfigError naming the file, the reason and the fix if an input is missing or
    corrupt, and OSError if the directory cannot be written. Curves and images may be missing: the page then says so.
    """
    place = RunDir.at(run)
    root = place.root
    say = progress or (lambda _: None)
    say("reading")
    data = read_run(root)
    grids = [images.read_grid(root / "images", study) for study in data.studies]
    with place.whole_folder(root / "report") as folder:
        with style.style():
            sections = []
            for study, grid in zip(data.studies, grids, strict=True):
                say(f"drawing {study.title}")
                sections.append(_section(data, study, grid, folder))
            overview = figures.overview(data.front) if len(data.studies) > 1 else None
            summary = overview.svg("overview", "Annealing against other families in every study") if overview else None
            if overview:
                overview.png(folder / "overview.png")
        say("writing the page")
        (folder / "index.html").write_text(_render(data, sections, summary), encoding="utf-8")
    say("done")
    return root / "report" / "index.html"


def _section(run: Run, study: StudyResult, grid: images.Grid | None, folder: Path) -> dict[str, Any]:
    """Draws a study's figures into the folder and returns what the template shows of it."""
    return {
        "id": f"s{run.studies.index(study)}",
        "study": study,
        "sentences": words.study_sentences(study),
        "undecided": words.undecided(study),
        "undecided_title": words.undecided_title(study),
        "headline": words.headline(study),
        "elsewhere": words.headline_elsewhere(study),
        "tuning": words.tuning_headline(study),
        "mean": run.front.mean_of(study),
        "sample": words.sample(run.front, study),
        "undrawn": [a.title for a in study.arms if not all(math.isfinite(e.value) for e in study.plane.points[a.name])],
        "broken": [arm.title for arm in study.arms if arm.broken],
        "warned": [arm.title for arm in study.arms if arm.warning],
        "no_panel": [
            role
            for role, metric in (("held-out reward", study.held_out), ("gold", GOLD))
            if metric not in study.planes and metric != study.reward
        ],
        "planes": [study.role_of(metric) for metric in study.planes],
        "volumes": _volumes(study),
        "differences": _differences(study),
        "reference": figures.reference(study),
        "grid": grid,
        "strips": [[grid.strip(arm, p) for p in range(len(grid.prompts))] for arm in grid.arms] if grid else [],
        "strip_width": grid.strip_width if grid else 0,
        **_figures(run, study, grid, folder),
    }


def _figures(run: Run, study: StudyResult, grid: images.Grid | None, folder: Path) -> dict[str, Any]:
    """Writes a study's figures as PNG into the folder, and returns them as SVG, with the names left out of them."""
    name, suffix = f"s{run.studies.index(study)}", f"-{study.slug}" if len(run.studies) > 1 else ""

    def svg(panel: drawing.Drawing, key: str, title: str) -> Markup:
        return Markup(panel.svg(f"{name}-{key}", f"{title}: {study.title}"))

    tradeoff, lines = planes.tradeoff(run.front, study), figures.curve_lines(run, study)
    whole, against = figures.reward_vs_kl(run, study) or (None, [])
    pngs = {
        "tradeoff": tradeoff,
        "planes": planes.row(run.front, study),
        "hypervolume": figures.hypervolumes(run.front, study),
        "curves": figures.curves(study, lines) if lines else None,
        "reward_vs_kl": whole,
    }
    for stem, figure in pngs.items():
        if figure is not None:
            figure.png(folder / f"{stem}{suffix}.png")
    if grid:
        images.write_png(grid, folder / f"images{suffix}.png", f"{study.title}: same prompts, same noise")
    distance, curves = figures.distance_name(study), figures.curve_panels(study, lines) if lines else {}
    return {
        "tradeoff": svg(tradeoff, "plane", "Reward–diversity plane"),
        "left_out": tradeoff.left_out,
        "panels": [
            svg(panel, f"plane-{i}", f"{metric_name(metric)} against diversity")
            for i, (metric, panel) in enumerate(planes.panels(study).items())
        ],
        "hypervolume": [
            svg(panel, f"hv-{i}", "Hypervolumes and their differences")
            for i, panel in enumerate(figures.hypervolume_panels(study))
        ],
        "lines": lines,
        "curves": [
            svg(panel, f"curve-{key}", f"{figures.CURVES[key]} during training") for key, panel in curves.items()
        ],
        "reward_vs_kl": [svg(panel, f"kl-{i}", f"Reward against {distance}") for i, panel in enumerate(against)],
        "sunken": [arm.title for arm in figures.sunken(study)],
        "kl_left_out": sorted({label for panel in against for label in panel.left_out}),
    }


def _volumes(study: StudyResult) -> list[tuple[str, str, int, Any, list[Estimate]]]:
    """Each family in words and in few, its numbers of arms and of trainings, its hypervolume by plane."""
    rows = []
    for family in study.plane.hypervolume:
        volumes = [plane.hypervolume.get(family, UNKNOWN) for plane in study.planes.values()]
        trainings = study.trainings.get(family, "–")
        rows.append((study.family(family), study.short(family), study.size(family), trainings, volumes))
    return rows


def _differences(study: StudyResult) -> list[tuple[str, list[Difference]]]:
    """The families of each difference in few words, and the difference on each plane."""
    ordered = [figures.ordered_differences(plane.differences) for plane in study.planes.values()]
    by_pair = [{(d.a, d.b): d for d in differences} for differences in ordered]
    pairs = dict.fromkeys(pair for plane in by_pair for pair in plane)
    return [
        (
            f"{study.short(a)} − {study.short(b)}",
            [plane.get((a, b), Difference(a, b, UNKNOWN)) for plane in by_pair],
        )
        for a, b in pairs
    ]


def _render(run: Run, sections: list[dict[str, Any]], overview: str | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = estimates.interval
    environment.filters["difference"] = lambda d: estimates.difference(d.estimate, d.by_seed)
    environment.filters["metric"] = metric_name
    columns, rows = _table(run)
    leading = [study for study in run.studies if not run.front.mean_of(study)]
    images = sorted({arm.images for study in run.studies for arm in study.arms})
    return environment.get_template("page.html.j2").render(
        run=run,
        front=run.front,
        name=run.directory.resolve().name,
        sections=sections,
        overview=Markup(overview) if overview else None,
        caveats=words.caveats(run),
        path_note=words.path_note(run),
        summary=words.summary(leading),
        elsewhere=words.summaries_elsewhere(leading),
        images=" to ".join(map(str, dict.fromkeys((images[0], images[-1])))),
        train_seeds=sorted({seed for study in run.studies for seed in study.train_seeds}),
        columns=columns,
        rows=rows,
        cost=_cost(run.front.cost),
        check=_check(run.listing.check),
        versions=run.listing.versions or _versions(),
        versions_recorded=bool(run.listing.versions),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        marks={family: Markup(style.mark(family)) for family in FAMILIES},
        coloured=style.COLOURED,
        light=style.variables("light"),
        dark=style.variables("dark"),
    )


_SETTINGS = {
    "reward": "trained on",
    "kl_weight": "KL weight",
    "lora_scale": "LoRA scale",
    "schedule": "schedule",
    "space": "space",
    "draws": "draws per kept image",
    "k": "K",
    "lr": "learning rate",
    "rank": "rank",
    "train_seed": "training seed",
    "step": "training step",
}


def _table(run: Run) -> tuple[list[tuple[str, bool]], list[dict[str, Any]]]:
    """Columns (name, whether numeric) and rows of the table: every arm of every study."""
    several, metrics = len(run.studies) > 1, _metric_order(run)
    columns = [("arm", False), *([("study", False)] if several else []), ("family", False)]
    columns += [(metric_name(metric), True) for metric in metrics]
    columns += [("optimal", False), ("P(optimal)", True), ("optimal by held-out reward", False), ("n", True)]
    columns += [(text, key not in ("reward", "schedule", "space")) for key, text in _SETTINGS.items()]
    rows = []
    for study, arm in [(one, arm) for one in run.studies for arm in one.arms]:
        cells = [_cell(arm.title), *([_cell(study.name)] if several else [])]
        cells.append(_cell(study.family(arm.family), list(FAMILIES).index(arm.family)))
        cells += [_estimate(arm.metric(metric)) for metric in metrics]
        cells += [_cell(_optimal(study, arm, study.reward)), _estimate(Estimate(arm.front_probability))]
        cells += [_cell(_optimal(study, arm, study.held_out)), _cell(str(arm.images))]
        cells += [_setting(getattr(arm, key)) for key in _SETTINGS]
        rows.append({"family": arm.family, "name": arm.name, "cells": cells})
    return columns, rows


def _optimal(study: StudyResult, arm: Arm, metric: str | None) -> str:
    """Whether the arm is optimal on the plane of a metric; a dash if the study has no such plane."""
    if metric is None or metric not in study.planes:
        return "–"
    return "broken" if arm.broken else "yes" if arm.name in study.planes[metric].fronts["all"] else "no"


def _metric_order(run: Run) -> list[str]:
    """Rewards and diversity first, then the rest in the order of their names."""
    first = [metric for study in run.studies for metric in (study.reward, study.held_out)]
    first += [GOLD, run.front.diversity, "pairwise", "accuracy", "accuracy_a", "accuracy_b", "kl_to_base", "path"]
    arms = run.front.by_name.values()
    present = {metric for arm in arms for metric, estimate in arm.metrics.items() if math.isfinite(estimate.value)}
    return [m for m in dict.fromkeys(first) if m in present] + sorted(present.difference(first))


def _cell(text: str, key: Any = None) -> dict[str, Any]:
    return {"text": text, "key": text if key is None else key}


def _setting(value: Any) -> dict[str, Any]:
    if value is None:
        return _cell("–", "")
    return _cell(f"{value:g}" if isinstance(value, float) else str(value))


def _estimate(estimate: Estimate) -> dict[str, Any]:
    if not math.isfinite(estimate.value):
        return _cell("–", "")
    return _cell(estimates.interval(estimate), estimate.value)


def _cost(cost: Mapping[str, Any]) -> dict[str, Any] | None:
    """Predictions per (prompt, seed), ours and those of loops that share nothing, and what else stands beside them."""
    if not cost:
        return None
    sentence, known = cost_words(cost, " per (prompt, seed)"), ("predictions", "separate", "published")
    shown = {name: f"{cost[name]:g}" for name in known} if sentence else {}
    rest = {k: v for k, v in cost.items() if k not in shown}
    rest = {k.replace("_", " "): f"{v:,.4g}" if isinstance(v, float) else str(v) for k, v in rest.items()}
    return {"words": sentence, **shown, "rest": rest}


def _check(check: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Counts of the dataset's check, and whether it is complete."""
    if check is None:
        return None
    counts = {key: len(value) if isinstance(value, list | dict) else value for key, value in check.items()}
    wrong = counts.get("missing") or counts.get("duplicate") or counts.get("expected") != counts.get("found")
    return {"counts": {key.replace("_", " "): value for key, value in counts.items()}, "complete": not wrong}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
