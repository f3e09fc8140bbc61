"""What a run has and lacks, read from its folder alone: neither Ray nor torch is loaded, and nothing is written."""

from __future__ import annotations

import difflib
import fcntl
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipelines import config as configuration
from pipelines import guards, layout, progress
from pipelines.config import Config, ConfigError
from pipelines.layout import RECORD, RunFiles

TUNE_ERROR = "error.txt"  # what Ray Tune leaves of a trial that failed


@dataclass(frozen=True)
class Training:
    """One training of the sweep: `state` is done, under way, interrupted, failed or missing."""

    key: str
    state: str
    told: str = ""


def find(run: str) -> Path:
    """A run's folder, by its path or by its name under the default storage; ConfigError names what is near."""
    storage = Path(configuration.Run().storage).expanduser()
    for folder in (Path(run).expanduser(), storage / run):
        if (folder / configuration.CONFIG_FILE).is_file():
            return folder.absolute()
    beside = [Path(run).expanduser().absolute().parent, storage]
    there = sorted({path.parent.name for folder in beside for path in folder.glob(f"*/{configuration.CONFIG_FILE}")})
    close = difflib.get_close_matches(Path(run).name, there, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"there is no run {run!r}{hint}: give a run's folder, which holds a {configuration.CONFIG_FILE}, or the name "
        f"of one in {storage}"
    )


def report(folder: Path) -> str:
    """Trainings, images, results and searches of the run in a folder, and the next command, as text."""
    made = _config(folder)
    # Where it lies now; its own configuration may know it elsewhere.
    config = replace(made, run=replace(made.run, name=folder.name, storage=str(folder.parent)))
    files, working = RunFiles(folder), _is_locked(folder)
    states = [_training(config, files, train, working) for train in layout.trainings(config)]
    done, wanted = _units(files, states), expected_units(config)
    lines = [f"{folder}{', a process is working in it' if working else ''}", "", *_training_lines(states), ""]
    arms = arm_count(config)
    lines += [f"images     {done} of {wanted} units ({arms} arms, {_images(config) * arms} images)"]
    lines += [f"{name:<11}{'there' if path.exists() else 'missing'}" for name, path in _results(files).items()]
    lines += _searches(files)
    lines += _more_adapters(config, files, states)
    return "\n".join([*lines, "", f"next: {_next(made, folder, states, done, wanted)}"])


def _config(folder: Path) -> Config:
    path = folder / configuration.CONFIG_FILE
    try:
        return configuration.from_dict(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())})") from error


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the run, on this machine."""
    path = folder / configuration.LOCK_FILE
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _training(config: Config, files: RunFiles, train: configuration.Train, working: bool) -> Training:
    key = layout.adapter_key(train)
    single = replace(config, train=train)
    folders, found = layout.adapter_folders(single), layout.stopped(single)
    if (files.curves / f"{key}.jsonl").exists() and all(_saved(files.adapters / name, step) for name, step in folders):
        return Training(key, "done", f"{train.steps} steps" if found is None else guards.told(found))
    status = _read_json(files.progress / f"{key}.json")
    told = progress.training_line(key, status).removeprefix(key).strip() if status else ""
    error = files.ray / "tune" / key / TUNE_ERROR
    if working and status:
        return Training(key, "under way", told)
    if error.exists():
        return Training(key, "failed", progress.root_cause(RuntimeError(error.read_text(errors="replace"))))
    return Training(key, "interrupted", told) if status else Training(key, "missing")


def _saved(folder: Path, step: int) -> bool:
    record = _read_json(folder / RECORD)
    return record is not None and record.get("step") == step


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _training_lines(states: list[Training]) -> Iterator[str]:
    width = max(len(state.key) for state in states)
    counts = {name: sum(state.state == name for state in states) for name in dict.fromkeys(s.state for s in states)}
    yield f"trainings  {', '.join(f'{count} {name}' for name, count in counts.items())}"
    for state in states:
        yield f"  {state.key:<{width}}  {state.state:<11}  {state.told}".rstrip()


def arm_count(config: Config) -> int:
    """Arms that have images: those of all studies, the base once."""
    evaluate = config.evaluate
    stops = layout.snapshot_steps(config) if evaluate.early_stops is None else evaluate.early_stops
    count = 1
    for train in layout.trainings(config):
        if train.kl_weight > 0:
            count += 1 + len(evaluate.kl_schedules)
            continue
        last = layout.last_step(replace(config, train=train))
        count += 1 + len(evaluate.schedules) + len(evaluate.lora_scales) + sum(step <= last for step in stops)
    return count


def expected_units(config: Config) -> int:
    """Files of the images dataset."""
    return _prompts(config) * -(-config.evaluate.seeds // config.evaluate.group)


def _images(config: Config) -> int:
    return _prompts(config) * config.evaluate.seeds


def _prompts(config: Config) -> int:
    wanted = config.evaluate.prompts
    if isinstance(wanted, str):
        return len(layout.read_prompts(wanted, "evaluate.prompts"))
    return wanted if isinstance(wanted, int) else len(wanted)


def _units(files: RunFiles, states: list[Training]) -> int:
    """Whole files of images; while trainings are missing, what is there belongs to other adapters."""
    if any(state.state != "done" for state in states):
        return 0
    return sum(1 for path in files.images.glob("part-*.parquet") if _is_whole(path))


def _is_whole(path: Path) -> bool:
    try:
        return pq.read_metadata(path).num_rows > 0
    except (OSError, ValueError):  # pyarrow's own errors are among them
        return False


def _results(files: RunFiles) -> dict[str, Path]:
    return {"metrics": files.metrics, "front": files.front, "report": files.root / "report" / "index.html"}


def _searches(files: RunFiles) -> Iterator[str]:
    for path in sorted(files.searches.glob("*/settings.json")):
        result = _read_json(path.with_name("search.json"))
        measured = path.with_name("evaluations.jsonl")
        lines = measured.read_bytes().count(b"\n") if measured.exists() else 0
        told = f"done: {result['statement']}" if result else f"under way or interrupted, {lines} units drawn"
        yield f"search     {path.parent.name}: {told}"


def _more_adapters(config: Config, files: RunFiles, states: list[Training]) -> Iterator[str]:
    """Adapters that `train` made beside the sweep's."""
    ours = {state.key for state in states}
    others = [p.parent.name for p in files.adapters.glob(f"*/{RECORD}") if p.parent.name.partition("@")[0] not in ours]
    if others:
        yield f"adapters   besides: {', '.join(sorted(others))}"


def _next(config: Config, folder: Path, states: list[Training], done: int, wanted: int) -> str:
    """What to type to go on."""
    if folder.name != config.run.name:
        return f"name the folder {config.run.name!r} again: by that name its configuration knows it"
    given = ["--config", str(folder / configuration.CONFIG_FILE)]
    if config.directory != folder:
        given.append(f"run.storage={folder.parent}")
    files = RunFiles(folder)
    if any(state.state != "done" for state in states):
        command = "sweep"
    elif done < wanted or not files.metrics.exists():
        command = "evaluate"
    elif not files.front.exists():
        command = "front"
    elif not _results(files)["report"].exists():
        command = "report"
    else:
        return f"nothing is missing; open {_results(files)['report']}"
    return shlex.join(["python", "-m", "pipelines", command, *given])
