"""From images to numbers: every metric of every arm, prompt by prompt if possible, with intervals.

Scores are first averaged over the seeds of a prompt. Means over prompts get bootstrap intervals, measures of whole
sets intervals by subsets of the prompts, since a bootstrap would repeat images. A mean over training seeds is an arm
like any other: prompt by prompt the mean of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from aig.pareto import LEAST_PROMPTS, Subsample, bootstrap, no_interval
from pipelines.cluster.connect import Cluster
from pipelines.config import Front
from pipelines.config.values import slug
from pipelines.evaluate import failures
from pipelines.evaluate import images as dataset
from pipelines.evaluate.pixels import PIXEL_STD
from pipelines.measure import best_of
from pipelines.measure.feature_file import gathered
from pipelines.measure.per_arm import BY_PROMPT, Measured, measure_arms
from pipelines.measure.sets import SetMeasures
from pipelines.measure.table import PER_PROMPT, PER_SUBSET, SCHEMA, Table, again, notes, read_rows, read_written
from pipelines.rewards import names as reward_names
from pipelines.rewards.scores import ACCURACIES, GOLD
from pipelines.runs.directory import IMAGES_FORMAT
from pipelines.show import tables
from pipelines.show.estimates import Estimate
from pipelines.study.resolved import Resolved

# Columns of the images that measuring does not load: features are read an arm at a time.
UNNEEDED = ("id", "arm_id", "prompt", "image", "height", "width", "features", "error")


def measure(study: Resolved, images: dataset.Images, command: str, connect: Callable[[], Cluster]) -> Table:
    """Write `metrics.parquet`, the table prompt by prompt beside it, and `arms.json` with the command.

    `connect` connects to Ray, and is called only for sets too large for one process. ConfigError if images are missing,
    or if the base's features can be no reference.
    """
    images.require_complete()
    config, kept = study.config, _kept(study, images)
    # For small matrices threads that wait for one another on busy cores take thirty times as long.
    torch.set_num_threads(config.measure.threads)
    judged = study.judged
    place = {name: i for i, name in enumerate(dict.fromkeys(arm.arm.name for arm in (*judged, *study.arms)))}
    files, shape = study.directory, (len(place), len(kept), config.evaluate.seeds)
    row = np.full(len(study.prompts), np.iinfo(np.int32).max)  # left-out prompts get an index that fails
    row[kept] = np.arange(len(kept))
    scores = _scores(images.table, shape, place, row)
    with gathered(files.root / ".features.npy", images.paths, shape, place, row) as features:
        best_of.choose(judged, place, scores, features)
        scores = {name: values[: len(judged)] for name, values in scores.items()}
        measured, floor = measure_arms(config, judged, scores, features, connect)

    table = _per_prompt(study, [study.prompts[i] for i in kept], scores, measured)
    whole = _set_measures(study, measured)
    _write_rows(study, [*_mean_rows(config.front, table), *_set_rows(whole), floor], table)
    files.write_parquet(files.root / PER_SUBSET, _subsets_to_long(whole))
    files.write_parquet(files.root / PER_PROMPT, _to_long(table, kept))
    listed = [
        {**arm.to_dict(), "broken": table.broken.get(arm.arm.name), "warning": table.warned.get(arm.arm.name)}
        for arm in [*judged, *study.mean_arms]
    ]
    check: dict[str, Any] = images.check()
    if images.left_out:
        check["prompts_left_out"] = [study.prompts[i] for i in images.left_out]
    versions = {package: version(package) for package in ("torch", "diffusers", "peft", "ray")}
    content = {"format": IMAGES_FORMAT, "arms": listed, "cost": images.cost, "check": check}
    files.write_json(files.arms, {**content, "command": command, "versions": versions})
    return table


def _kept(study: Resolved, images: dataset.Images) -> list[int]:
    """The numbers of the prompts that are measured; EvaluationError if too few are left for a mean over prompts."""
    kept = [i for i in range(len(study.prompts)) if i not in images.left_out]
    if len(kept) < 2:
        reason = failures.of_run(study.directory)[0]["error"]
        raise failures.EvaluationError(
            f"{len(images.left_out)} of {len(study.prompts)} prompts failed, and two have to be left: {reason}; see "
            f"{study.directory.failures}"
        )
    return kept


def summary(study: Resolved, everything: bool = True) -> str:
    """Every arm and its metrics with intervals, as text: all metrics, or without `everything` the main ones."""
    rows, level = read_rows(study.directory), study.config.front.level
    cells: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        cells.setdefault(row["arm"], {})[row["metric"]] = Estimate(row["value"], row["low"], row["high"])
    n = max(row["n"] for row in rows)
    methods = dict.fromkeys(row["interval"] for row in rows if row["interval"] != "none")
    about = no_interval(max(row["prompts"] for row in rows))
    about = about or f"{100 * level:g} % intervals by {' and by '.join(methods)}"
    about = f"n = {n} images an arm at most; {about}"
    broken, warned = notes(rows, "broken"), notes(rows, "warning")
    shown = list(dict.fromkeys(row["metric"] for row in rows))
    if not everything:
        scored = map(slug, reward_names.scored(study.config))
        shown = [name for name in shown if name in {*FIRST_LOOK, *scored}]
        about += f"; all measures: {again(study.directory)}"
    shown.sort(key=lambda name: name == PIXEL_STD)  # last: it only tells of broken images
    return f"{about}\n{tables.estimates(cells, shown, broken, warned)}"


# The main metrics beside the rewards.
FIRST_LOOK = (GOLD, "accuracy", "vendi", "pairwise", "recall")


def _scores(
    images: pa.Table, shape: tuple[int, int, int], place: dict[str, int], row: np.ndarray
) -> dict[str, np.ndarray]:
    """Every float column (arms, prompts, seeds)."""
    names = [field.name for field in images.schema if pa.types.is_floating(field.type)]
    arms = images["arm"].combine_chunks().dictionary_encode()
    at = (
        np.array([place[name] for name in arms.dictionary.to_pylist()])[arms.indices.to_numpy()],
        row[images["prompt_id"].to_numpy()],
        images["seed_index"].to_numpy(),
    )
    scores = {name: np.full(shape, np.nan) for name in names}
    for name, values in scores.items():
        values[at] = images[name].to_numpy()
    return scores


def _per_prompt(study: Resolved, prompts: list[str], scores: dict[str, np.ndarray], measured: list[Measured]) -> Table:
    values = {name: column.mean(axis=2) for name, column in scores.items()}
    if ACCURACIES[0] in values:
        values["accuracy"] = (values[ACCURACIES[0]] + values[ACCURACIES[1]]) / 2
    values |= {name: np.stack([arm.by_prompt[name] for arm in measured]) for name in BY_PROMPT}
    arms = [arm.arm.name for arm in study.judged]
    for mean in study.mean_arms:
        members = [arms.index(name) for name in mean.members]
        values = {name: np.vstack([column, column[members].mean(axis=0)]) for name, column in values.items()}
    arms += [mean.arm.name for mean in study.mean_arms]
    broken = _by_arm(study, ["; ".join(arm.broken) for arm in measured])
    warned = _by_arm(study, [arm.warning for arm in measured])
    warned = {name: text for name, text in warned.items() if name not in broken}
    return Table(arms, prompts, study.config.evaluate.seeds, values, broken, warned)


def _by_arm(study: Resolved, texts: Sequence[str | None]) -> dict[str, str]:
    """The notes on arms, by name; a mean over training seeds has that of its first member with one."""
    notes = {arm.arm.name: text for arm, text in zip(study.judged, texts, strict=True) if text}
    for mean in study.mean_arms:
        members = [name for name in mean.members if name in notes]
        if members:
            notes[mean.arm.name] = f"{len(members)} of {len(mean.members)} training seeds: {notes[members[0]]}"
    return notes


def _mean_rows(front: Front, table: Table) -> Iterator[dict[str, Any]]:
    """Means, with bootstrap intervals, over the prompts on which a metric was measured for any arm.

    Fewer than LEAST_PROMPTS have no interval.
    """
    groups: dict[bytes, dict[str, np.ndarray]] = {}
    for metric, values in table.values.items():
        known = np.isfinite(values).any(axis=0)
        if known.sum() > 1:
            groups.setdefault(known.tobytes(), {})[metric] = values[:, known]
    for group in groups.values():
        result = bootstrap(group, **front.resampling)
        for metric in group:
            for a, arm in enumerate(table.arms):
                low, high = result.interval[metric][a]
                row = {"arm": arm, "metric": metric, "value": result.mean[metric][a], "low": low, "high": high}
                how = {"interval": f"{result.method} bootstrap of prompts"} if result.prompts >= LEAST_PROMPTS else {}
                yield {**row, "prompts": result.prompts, **how}


def _set_measures(study: Resolved, measured: list[Measured]) -> dict[str, SetMeasures | None]:
    """Measures of sets of images against the base's of the same prompts and seeds, by arm, means of seeds included."""
    values = {arm.arm.name: one.sets for arm, one in zip(study.judged, measured, strict=True)}
    for mean in study.mean_arms:
        sound = [member for name in mean.members if (member := values[name]) is not None]
        values[mean.arm.name] = None
        if len(sound) == len(mean.members):
            averaged = Subsample.mean([member.found for member in sound])
            values[mean.arm.name] = replace(sound[0], found=averaged)
    return values


def _set_rows(values: dict[str, SetMeasures | None]) -> Iterator[dict[str, Any]]:
    names = next(one.names for one in values.values() if one is not None)
    for arm, one in values.items():
        for place, metric in enumerate(names):
            row: dict[str, Any] = {"arm": arm, "metric": metric}
            if one is not None:
                known = len(one.found.replicates) and one.found.prompts >= LEAST_PROMPTS
                low, high = one.interval(metric) if known else (np.nan, np.nan)
                row |= {"value": one.found.estimate[place], "low": low, "high": high}
                row |= {"interval": f"subsets of {one.found.size} prompts"} if known else {}
            yield row


def _subsets_to_long(values: dict[str, SetMeasures | None]) -> pa.Table:
    """A row per arm, measure and subset, subset −1 for all prompts; prompts, size and images in the metadata."""
    known = {arm: one for arm, one in values.items() if one is not None}
    first = next(iter(known.values()))
    grids = [np.vstack([one.found.estimate, one.found.replicates]).T for one in known.values()]  # (metrics, 1 + n)
    metrics, columns = grids[0].shape
    about = {"prompts": first.found.prompts, "size": first.found.size, "images": first.images}
    return pa.table({
        "arm": np.repeat(list(known), metrics * columns),
        "metric": np.tile(np.repeat(first.names, columns), len(known)),
        "subset": np.tile(np.arange(-1, columns - 1, dtype=np.int32), len(known) * metrics),
        "value": np.concatenate([grid.ravel() for grid in grids]),
    }).replace_schema_metadata({name: str(value) for name, value in about.items()})  # fmt: skip


def read_sets(study: Resolved) -> dict[str, SetMeasures]:
    """The measures of sets that `measure` wrote, by arm; none if an earlier version measured."""
    path = study.directory.root / PER_SUBSET
    if not path.exists():
        return {}
    long = read_written(study.directory, path)
    prompts, size, images = (int((long.schema.metadata or {})[name]) for name in (b"prompts", b"size", b"images"))
    arms, metrics = (list(dict.fromkeys(long[name].to_pylist())) for name in ("arm", "metric"))
    grid = long["value"].to_numpy().reshape(len(arms), len(metrics), -1)
    level = study.config.front.level
    return {
        arm: SetMeasures(metrics, Subsample(own[:, 0], own[:, 1:].T, prompts, size, level), images)
        for arm, own in zip(arms, grid, strict=True)
    }


def _write_rows(study: Resolved, rows: list[dict[str, Any]], table: Table) -> None:
    members = {mean.arm.name: len(mean.members) for mean in study.mean_arms}
    unknown = {"value": np.nan, "low": np.nan, "high": np.nan, "interval": "none"}
    shared = {"prompts": len(table.prompts), "seeds": table.seeds}
    whole = [{**unknown, **shared, **row} for row in rows]
    for row in whole:
        row |= {"broken": table.broken.get(row["arm"]), "warning": table.warned.get(row["arm"])}
        row["n"] = row["prompts"] * row["seeds"] * members.get(row["arm"], 1)
    study.directory.write_parquet(study.directory.metrics, pa.Table.from_pylist(whole, SCHEMA))


def _to_long(table: Table, places: list[int]) -> pa.Table:
    metrics, arms, prompts = len(table.values), len(table.arms), len(table.prompts)
    return pa.table({
        "metric": np.repeat(list(table.values), arms * prompts),
        "arm": np.tile(np.repeat(table.arms, prompts), metrics),
        "prompt_id": np.tile(np.array(places, np.int32), metrics * arms),
        "value": np.concatenate([values.ravel() for values in table.values.values()]),
    })  # fmt: skip
