"""Puts the report together and writes it whole: read, draw, say, render, move into place."""

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

from pipelines.front import front
from pipelines.front.results import FAMILIES, Arm, Difference, Run, Study, family_name, metric_name, sample, spread
from pipelines.report import drawing, figures, images, planes, style, words
from pipelines.report.reading import read_run
from pipelines.runs.directory import RunDir
from pipelines.show import estimates
from pipelines.show.estimates import UNKNOWN, Estimate

_PACKAGES = ("aig", "torch", "diffusers", "transformers", "peft", "accelerate", "ray", "numpy", "matplotlib")


def write_report(run: RunDir | str | Path, progress: Callable[[str], None] | None = None) -> Path:
    """Writes RUN/report/ from a run's config.yaml, arms.json, metrics.parquet, front.json, curves/ and images/.

    The report is index.html, which loads nothing from outside itself, and the main figures as PNGs: tradeoff, planes,
    curves, reward_vs_kl, hypervolume and images, with "-STUDY" in their names where there are several studies, and
    then an overview. An earlier report is replaced once the new one is complete.

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
            overview = figures.overview(data) if len(data.studies) > 1 else None
            summary = overview.svg("overview", "AIG against other families in every study") if overview else None
            if overview:
                overview.png(folder / "overview.png")
        say("writing the page")
        (folder / "index.html").write_text(_render(data, sections, summary), encoding="utf-8")
    say("done")
    return root / "report" / "index.html"


def _section(run: Run, study: Study, grid: images.Grid | None, folder: Path) -> dict[str, Any]:
    """Draws a study's figures into the folder and returns what the template shows of it."""
    suffix = f"-{study.slug}" if len(run.studies) > 1 else ""
    name = f"s{run.studies.index(study)}"

    def png(stem: str) -> Path:
        return folder / f"{stem}{suffix}.png"

    tradeoff = planes.tradeoff(run, study)
    tradeoff.png(png("tradeoff"))
    panels = planes.panels(run, study)
    planes.row(run, study).png(png("planes"))
    figures.hypervolumes(run, study).png(png("hypervolume"))
    lines = figures.curve_lines(run, study)
    if lines:
        figures.curves(study, lines).png(png("curves"))
    against_kl = figures.reward_vs_kl(run, study)
    if against_kl:
        against_kl[0].png(png("reward_vs_kl"))
    if grid:
        images.write_png(grid, png("images"), f"{study.title}: same prompts, same noise")
    return {
        "id": name,
        "study": study,
        "sentences": words.study_sentences(study),
        "headline": words.headline(study),
        "elsewhere": words.headline_elsewhere(study),
        "tuning": words.tuning_headline(study),
        "mean": run.mean_of(study),
        "sample": sample(study.arms),
        "undrawn": [a.label for a in study.arms if not math.isfinite(a.x.value) or not math.isfinite(a.y.value)],
        "broken": [arm.label for arm in study.arms if arm.broken],
        "warned": [arm.label for arm in study.arms if arm.warning],
        "tradeoff": _svg(tradeoff, f"{name}-plane", f"Reward–diversity plane: {study.title}"),
        "left_out": tradeoff.left_out,
        "panels": [
            _svg(panel, f"{name}-plane-{i}", f"{metric_name(metric)} against diversity: {study.title}")
            for i, (metric, panel) in enumerate(panels.items())
        ],
        "no_panel": [
            what
            for what, metric in (("held-out reward", study.held_out), ("gold", "gold"))
            if metric not in panels and metric != study.reward
        ],
        "hypervolume": [
            _svg(panel, f"{name}-hv-{i}", f"Hypervolumes and their differences: {study.title}")
            for i, panel in enumerate(figures.hypervolume_panels(study))
        ],
        "planes": [study.role_of(metric) for metric in study.planes],
        "volumes": _volumes(study),
        "differences": _differences(study),
        "reference": figures.reference(study),
        "lines": lines,
        "curves": [
            _svg(panel, f"{name}-curve-{key}", f"{figures.CURVES[key]} during training: {study.title}")
            for key, panel in (figures.curve_panels(study, lines) if lines else {}).items()
        ],
        "reward_vs_kl": [
            _svg(panel, f"{name}-kl-{i}", f"Reward against {figures.distance_name(study)}: {study.title}")
            for i, panel in enumerate(against_kl[1] if against_kl else ())
        ],
        "kl_left_out": sorted({label for panel in (against_kl[1] if against_kl else ()) for label in panel.left_out}),
        "grid": grid,
        "strips": [[grid.strip(arm, p) for p in range(len(grid.prompts))] for arm in grid.arms] if grid else [],
        "strip_width": grid.strip_width if grid else 0,
    }


def _volumes(study: Study) -> list[tuple[str, int, Any, list[Estimate]]]:
    """Each family in words, how many arms count to it, how many trainings it pays for, its hypervolume by plane."""
    rows = []
    for family in study.plane.hypervolume:
        volumes = [plane.hypervolume.get(family, UNKNOWN) for plane in study.planes.values()]
        rows.append((study.family(family), study.size(family), study.trainings.get(family, "–"), volumes))
    return rows


def _differences(study: Study) -> list[tuple[str, list[Difference]]]:
    """The families of each difference in words, and the difference on each plane."""
    ordered = [figures.ordered_differences(plane.differences) for plane in study.planes.values()]
    found = [{(d.a, d.b): d for d in differences} for differences in ordered]
    pairs = dict.fromkeys(pair for plane in found for pair in plane)
    return [
        (
            f"{study.family(a)} − {study.family(b)}",
            [plane.get((a, b), Difference(a, b, UNKNOWN)) for plane in found],
        )
        for a, b in pairs
    ]


def _svg(figure: drawing.Drawing, name: str, title: str) -> Markup:
    return Markup(figure.svg(name, title))


def _render(run: Run, sections: list[dict[str, Any]], overview: str | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = estimates.interval
    environment.filters["with_seeds"] = words.difference
    environment.filters["compared"] = words.compared
    environment.filters["metric"] = metric_name
    columns, rows = _table(run)
    leading = [study for study in run.studies if not run.mean_of(study)]
    return environment.get_template("page.html.j2").render(
        run=run,
        name=run.directory.resolve().name,
        sections=sections,
        overview=Markup(overview) if overview else None,
        caveats=words.caveats(run),
        path_note=run.path_note,
        summary=words.summary(leading),
        elsewhere=words.summaries_elsewhere(leading),
        images=spread([arm.n for study in run.studies for arm in study.arms]),
        train_seeds=sorted({seed for study in run.studies for seed in study.train_seeds}),
        columns=columns,
        rows=rows,
        cost=_cost(run.cost),
        check=_check(run.check),
        versions=run.versions or _versions(),
        versions_recorded=bool(run.versions),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        marks={family: Markup(style.mark(family)) for family in FAMILIES},
        coloured=style.COLOURED,
        light=style.variables("light"),
        dark=style.variables("dark"),
    )


def _table(run: Run) -> tuple[list[tuple[str, bool]], list[dict[str, Any]]]:
    """Columns (name, whether numeric) and rows of the table: every arm of every study, then arms in none."""
    several = len(run.studies) > 1
    pairs: list[tuple[Study | None, Arm]] = [(study, arm) for study in run.studies for arm in study.arms]
    shown = {arm.name for _, arm in pairs}
    pairs += [(None, arm) for arm in run.arms if arm.name not in shown]
    metrics = _metric_order(run, [arm for _, arm in pairs])
    settings = {
        "reward": "trained on",
        "kl_weight": "KL weight",
        "lora_scale": "LoRA scale",
        "schedule": "schedule",
        "k": "K",
        "lr": "learning rate",
        "rank": "rank",
        "train_seed": "training seed",
        "step": "training step",
    }
    columns = [("arm", False), *([("study", False)] if several else []), ("family", False)]
    columns += [(metric_name(metric), True) for metric in metrics]
    columns += [("optimal", False), ("P(optimal)", True), ("optimal by held-out reward", False)]
    columns += [("n", True), ("prompts", True), ("seeds", True)]
    columns += [(text, key not in ("reward", "schedule")) for key, text in settings.items()]
    rows = []
    for study, arm in pairs:
        cells = [_cell(arm.label, arm.label), *([_cell(study.name if study else "–")] if several else [])]
        family = study.family(arm.family) if study else family_name(arm.family)
        cells.append(_cell(family, list(FAMILIES).index(arm.family)))
        cells += [_estimate(arm.metric(metric)) for metric in metrics]
        cells.append(_cell(_optimal(study, arm, study.reward if study else None)))
        cells.append(_estimate(Estimate(arm.front_probability)))
        cells.append(_cell(_optimal(study, arm, study.held_out if study else None)))
        cells += [_setting(value or None) for value in (arm.n, arm.prompts, arm.seeds)]
        cells += [_setting(arm.settings.get(key)) for key in settings]
        rows.append({"family": arm.family, "name": arm.name, "cells": cells})
    return columns, rows


def _optimal(study: Study | None, arm: Arm, metric: str | None) -> str:
    """Whether the arm is optimal on the plane of a metric; a dash where the study has no such plane."""
    if study is None or metric is None or metric not in study.planes:
        return "–"
    return "broken" if arm.broken else "yes" if arm.name in planes.optimal_names(study, metric) else "no"


def _metric_order(run: Run, arms: list[Arm]) -> list[str]:
    """Rewards and diversity first, then the rest in the order of their names."""
    first: list[str | None] = []
    for study in run.studies:
        first += [study.reward, study.held_out]
    first += [
        "gold",
        *(study.diversity for study in run.studies),
        "pairwise",
        "accuracy",
        "accuracy_a",
        "accuracy_b",
        "kl_to_base",
        "path",
    ]
    present = {metric for arm in arms for metric in arm.metrics if math.isfinite(arm.metric(metric).value)}
    return [m for m in dict.fromkeys(first) if m in present] + sorted(present - set(first))


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
    """Predictions a (prompt, seed), ours and those of loops that share nothing, and whatever else stands beside
    them."""
    if not cost:
        return None
    told, known = front.cost_words(cost, " a (prompt, seed)"), ("predictions", "separate", "published")
    shown = {name: f"{cost[name]:g}" for name in known} if told else {}
    rest = {k: v for k, v in cost.items() if k not in shown}
    rest = {k.replace("_", " "): f"{v:,.4g}" if isinstance(v, float) else str(v) for k, v in rest.items()}
    return {"told": told, **shown, "rest": rest}


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
