"""Reads a run directory into typed objects, and says which file is wrong, how, and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.config import ConfigError
from pipelines.front.results import FAMILIES, Arm, Claim, Difference, KLPoint, Plane, Run, Study
from pipelines.runs.directory import IMAGES_FORMAT
from pipelines.show.estimates import Estimate
from pipelines.study.prompts import describe

_METRIC_COLUMNS = ("arm", "metric", "value", "low", "high", "n", "prompts", "seeds")
_MADE_BY = {
    "config.yaml": "give the directory of a run that `python -m pipelines evaluate` made",
    "arms.json": "run `python -m pipelines measure RUN` again",
    "metrics.parquet": "run `python -m pipelines measure RUN` again",
    "front.json": "run `python -m pipelines front` again",
    "curves": "run `python -m pipelines train` again for this adapter",
}


def read_run(directory: Path) -> Run:
    """Reads and checks a run directory; raises ConfigError naming the file, what is wrong with it and the fix."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory: {_MADE_BY['config.yaml']}")
    config_text = _text(directory / "config.yaml")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise _wrong("config.yaml", f"is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict):
        raise _wrong("config.yaml", "is not a mapping")

    listing = _Checked("arms.json", _json(directory / "arms.json"))
    if (made := listing.value.get("format", 2)) != IMAGES_FORMAT:
        raise ConfigError(
            f"arms.json was written by another version (format {made}, not {IMAGES_FORMAT}): run `python -m pipelines "
            "evaluate` again, or use that version"
        )
    front = _Checked("front.json", _json(directory / "front.json"))
    arms = _arms(listing, _metrics(directory / "metrics.parquet"))
    studies = tuple(_study(study, front, arms) for study in front.items("studies"))
    if not studies:
        raise _wrong("front.json", "has no studies")
    names = [study.slug for study in studies]
    if len(set(names)) < len(names):
        raise _wrong("front.json", f"names a study twice: {', '.join(names)}")
    check = listing.value.get("check")
    curves = sorted((directory / "curves").glob("*.jsonl"))
    return Run(
        directory=directory,
        config_text=config_text,
        config=config,
        arms=tuple(arms.values()),
        cost=listing.value.get("cost") or {},
        check=check if isinstance(check, dict) else None,
        command=listing.value.get("command") or config.get("command"),
        versions=listing.value.get("versions"),
        level=front.number("level"),
        n_bootstrap=int(front.number("n_bootstrap")),
        seed=int(front.number("seed")),
        prompts=int(front.number("prompts")),
        prompts_told=_prompts_told(front),
        seeds=int(front.number("seeds")),
        studies=studies,
        curves={path.stem: _curve(path) for path in curves},
        comparisons=int(front.object("multiplicity").number("comparisons")),
        no_interval=front.get("no_interval"),
    )


def _prompts_told(front: _Checked) -> str | None:
    lists = front.value.get("prompt_lists")
    try:
        return None if lists is None else describe(lists)
    except (KeyError, TypeError):
        raise front.wrong("prompt_lists", "counts of prompts") from None


def _wrong(file: str, reason: str) -> ConfigError:
    return ConfigError(f"{file} {reason}: {_MADE_BY[file.split('/')[0]]}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _wrong(path.name, f"is missing in {path.parent.name}/") from error
    except UnicodeDecodeError as error:
        raise _wrong(path.name, "is not text") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise _wrong(path.name, f"is not JSON (line {error.lineno}: {error.msg})") from error


class _Checked:
    """A JSON object whose fields are checked as they are read; errors name the file and the field."""

    def __init__(self, file: str, value: Any, where: str = "it"):
        if not isinstance(value, dict):
            raise _wrong(file, f"is wrong: {where} is not an object")
        self.file, self.value, self.where = file, value, where

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise _wrong(self.file, f"is wrong: {self.where} has no {key!r}")
        return self.value[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text")
        return value

    def number(self, key: str) -> float:
        return self._float(key, self.get(key))

    def estimate(self, key: str | None = None) -> Estimate:
        """Of [value, low, high] under a key, or of the three as fields of this object."""
        if key is None:
            return Estimate(*(self.number(name) for name in ("value", "low", "high")))
        value = self.get(key)
        if not isinstance(value, list) or len(value) != 3:
            raise self.wrong(key, "[value, low, high]")
        return Estimate(*(self._float(key, number) for number in value))

    def by_seed(self) -> dict[str, float]:
        """A value for each training seed."""
        seeds = self.object("by_seed")
        return {seed: seeds.number(seed) for seed in seeds.value}

    def pair(self, key: str) -> tuple[float, float]:
        value = self.get(key)
        if not isinstance(value, list) or len(value) != 2:
            raise self.wrong(key, "two numbers")
        return self._float(key, value[0]), self._float(key, value[1])

    def items(self, key: str, required: bool = True) -> Iterator[_Checked]:
        value = self.get(key) if required else self.value.get(key) or []
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        for i, item in enumerate(value):
            yield _Checked(self.file, item, f"{key}[{i}]")

    def object(self, key: str, required: bool = True) -> _Checked:
        return _Checked(self.file, self.get(key) if required else self.value.get(key) or {}, key)

    def wrong(self, key: str, expected: str) -> ConfigError:
        return _wrong(self.file, f"is wrong: {key!r} of {self.where} is {self.value[key]!r}, not {expected}")

    def _float(self, key: str, value: Any) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        return float(value)


def _metrics(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """arm -> metric -> row of the table."""
    if not path.is_file():
        raise _wrong(path.name, f"is missing in {path.parent.name}/")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _wrong(path.name, f"is not a parquet file ({str(error).splitlines()[0]})") from error
    missing = [name for name in _METRIC_COLUMNS if name not in table.column_names]
    if missing:
        raise _wrong(path.name, f"has no column {', '.join(missing)}")
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table.select(_METRIC_COLUMNS).to_pylist():
        rows.setdefault(row["arm"], {})[row["metric"]] = row
    return rows


def _arms(listing: _Checked, measured: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Arm]:
    arms = {}
    for entry in listing.items("arms"):
        name, family = entry.text("name"), entry.text("family")
        if family not in FAMILIES:
            raise entry.wrong("family", f"one of {', '.join(FAMILIES)}")
        rows = measured.get(name, {})
        n, prompts, seeds = (
            max((int(row[key] or 0) for row in rows.values()), default=0) for key in ("n", "prompts", "seeds")
        )
        arms[name] = Arm(
            name=name,
            label=str(entry.value.get("label") or name),
            family=family,
            settings=entry.value,
            metrics={
                metric: Estimate(*(math.nan if row[key] is None else row[key] for key in ("value", "low", "high")))
                for metric, row in rows.items()
            },
            n=n,
            prompts=prompts,
            seeds=seeds,
        )
    return arms


def _study(study: _Checked, front: _Checked, arms: Mapping[str, Arm]) -> Study:
    name, reward = study.text("study"), study.text("reward")
    study.where = f"study {name!r}"
    members = tuple(_study_arm(entry, arms) for entry in study.items("arms"))
    if not members:
        raise _wrong("front.json", f"is wrong: study {name!r} has no arms")
    known = {arm.name for arm in members}
    planes = {reward: _plane(reward, study, study, front, known)}
    for metric, plane in study.object("planes", required=False).value.items():
        checked = _Checked("front.json", plane, f"planes[{metric!r}] of study {name!r}")
        planes.setdefault(metric, _plane(metric, checked, study, front, known))
    trainings = study.object("trainings", required=False)
    return Study(
        name=name,
        reward=reward,
        held_out=study.value.get("held_out"),
        diversity=front.text("diversity"),
        k=None if study.get("k") is None else int(study.number("k")),
        train_seeds=tuple(study.get("train_seeds")),
        arms=members,
        planes=planes,
        reward_vs_kl=tuple(
            KLPoint(
                _known(row, "arm", known),
                None if row.get("kl_weight") is None else row.number("kl_weight"),
                row.text("metric"),
                row.text("unit"),
                row.estimate("distance"),
                row.estimate("reward"),
            )
            for row in study.items("reward_vs_kl", required=False)
        ),
        claims=tuple(
            Claim(row.text("claim"), row.estimate(), row.value.get("expected"), row.by_seed())
            for row in study.items("claims", required=False)
        ),
        trained_with=study.value.get("trained_with") or "",
        trainings={family: int(trainings.number(family)) for family in trainings.value},
        leading=bool(study.get("leading")),
    )


def _study_arm(entry: _Checked, arms: Mapping[str, Arm]) -> Arm:
    name = _known(entry, "arm", arms, "arms.json does not have")
    arm = arms[name]
    if not arm.n:
        raise _wrong("metrics.parquet", f"has no row for arm {name!r}")
    shown = entry.object("metrics", required=False)
    broken, warning = (entry.text(key) if entry.value.get(key) is not None else None for key in ("broken", "warning"))
    return Arm(
        name=name,
        label=str(entry.value.get("label") or arm.label) + " (broken)" * bool(broken) + " (!)" * bool(warning),
        family=arm.family,
        settings=arm.settings,
        metrics={**{metric: shown.estimate(metric) for metric in shown.value}, **arm.metrics},
        n=arm.n,
        prompts=arm.prompts,
        seeds=arm.seeds,
        x=Estimate(*(entry.number(key) for key in ("x", "x_low", "x_high"))),
        y=Estimate(*(entry.number(key) for key in ("y", "y_low", "y_high"))),
        on_front=bool(entry.get("on_front")),
        front_probability=entry.number("front_probability"),
        broken=broken,
        warning=warning,
    )


def _known(entry: _Checked, key: str, names: Any, problem: str = "its study does not have") -> str:
    name = entry.text(key)
    if name not in names:
        raise _wrong(entry.file, f"is out of date: it names arm {name!r}, which {problem}")
    return name


def _plane(metric: str, entry: _Checked, study: _Checked, front: _Checked, known: set[str]) -> Plane:
    fronts = entry.object("fronts")
    for family, names in fronts.value.items():
        unknown = [name for name in names if name not in known]
        if unknown:
            raise _wrong(
                "front.json", f"is out of date: its front {family!r} names {unknown[0]!r}, no arm of its study"
            )
    volumes = entry.object("hypervolume")
    # A study has its own reference where rewards differ in scale; one for all stands at the top.
    scaled = next((place for place in (entry, study) if "reference" in place.value), front)
    return Plane(
        x=metric,
        fronts={family: tuple(names) for family, names in fronts.value.items()},
        hypervolume={family: volumes.estimate(family) for family in volumes.value},
        differences=tuple(_difference(row) for row in entry.items("differences", required=False)),
        reference=scaled.pair("reference"),
        normalization=scaled.pair("normalization"),
    )


def _difference(row: _Checked) -> Difference:
    arms = tuple(int(size) for size in row.pair("arms"))
    about = (row.get("verdict"), row.number("p_adjusted"), (arms[0], arms[1]), int(row.number("size")), row.by_seed())
    return Difference(row.text("a"), row.text("b"), row.estimate(), *about)


def _curve(path: Path) -> list[dict[str, float]]:
    file = f"curves/{path.name}"
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _wrong(file, f"is not JSON in line {i} ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int | float):
            raise _wrong(file, f"has no number 'step' in line {i}")
        rows.append({k: float(v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)})
    return sorted(rows, key=lambda row: row["step"])
