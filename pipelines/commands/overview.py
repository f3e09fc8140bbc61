"""What a run has and lacks, read from its folder alone, without loading Ray or torch and without writing anything.

A remote run is read from its mirror, which is brought up to date first.
"""

from __future__ import annotations

import difflib
import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipelines import config as configuration
from pipelines.config import Config, ConfigError, uris
from pipelines.runs import identity, locks
from pipelines.runs.directory import IMAGES_FORMAT, RECORD, RECORD_FORMAT, RunDir, other_format, other_front
from pipelines.show import progress, tables
from pipelines.show.program import command_line
from pipelines.study import limits, prompts, trainings, trials
from pipelines.study.trials import Trials

EARLIER = "earlier"
QUIET = 120.0  # a running training that reports nothing for these seconds, and for ten steps, is called silent


@dataclass(frozen=True)
class Training:
    """A training of the sweep; `state` is done, running, interrupted, waiting, errored, stopped or earlier (an earlier
    version made its adapter)."""

    train: configuration.Train
    state: str
    step: int
    told: str = ""

    @property
    def key(self) -> str:
        return trainings.adapter_key(self.train)

    @property
    def ended(self) -> bool:
        """Whether the sweep leaves it alone."""
        return self.state in ("done", "errored", "stopped")


def find(run: str) -> RunDir:
    """The directory of a run, by path, URI or name in the default storage; ConfigError names the nearest run."""
    if uris.is_uri(run):
        found = identity.find_run(run)
        if not (found.root / configuration.CONFIG_FILE).is_file():
            raise ConfigError(f"there is no run {run!r}: give the URI of one, with a {configuration.CONFIG_FILE}")
        found.refresh()
        return found
    storage = Path(configuration.Run().storage).expanduser()
    for folder in (Path(run).expanduser(), storage / run):
        if (folder / configuration.CONFIG_FILE).is_file():
            return RunDir.at(folder)
    beside = [Path(run).expanduser().absolute().parent, storage]
    there = sorted({path.parent.name for folder in beside for path in folder.glob(f"*/{configuration.CONFIG_FILE}")})
    close = difflib.get_close_matches(Path(run).name, there, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"there is no run {run!r}{hint}: give a run's folder, which holds a {configuration.CONFIG_FILE}, or the name "
        f"of one in {storage}"
    )


def report(place: RunDir | str | Path) -> str:
    """Describe the trainings, images, results and searches of a run, and the next command."""
    files = RunDir.at(place)
    made, name = _config(files.root), files.root.name
    # The run may have been moved since its configuration was written.
    config = replace(made, run=replace(made.run, name=name, storage=files.storage))
    resolved = Trials.of(config)
    record = resolved.record
    working = files.is_locked or (files.mirror is not None and _tells(files))
    states = [_training(config, record, train, working) for train in resolved.trainings]
    done, wanted = _units(files, states), expected_units(config)
    lines = [f"{files.shown()}{', a process is working in it' if working else ''}", ""]
    lines += [*_training_lines(config, record, states), "", *_arm_lines(resolved, states)]
    arms = arm_count(resolved)
    lines += [f"images     {done} of {wanted} units ({arms} arms, {_images(config) * arms} images)"]
    lines += _failures(files)
    lines += [f"{name:<11}{_there(files, path)}" for name, path in _results(files).items()]
    lines += _searches(files)
    lines += _more_adapters(config, files, states)
    return "\n".join([*lines, "", f"next: {_next(made, files, states, trials.draws(config, record), (done, wanted))}"])


def _config(folder: Path) -> Config:
    path = folder / configuration.CONFIG_FILE
    try:
        return configuration.from_dict(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())})") from error


def _tells(files: RunDir) -> bool:
    """Whether a training, wherever it runs, has reported lately."""
    return any(time.time() - path.stat().st_mtime < QUIET for path in files.progress.glob("*.json"))


def _training(config: Config, record: trials.Record, train: configuration.Train, working: bool) -> Training:
    files, key, single = RunDir.of(config), trainings.adapter_key(train), replace(config, train=train)
    folders, found = trainings.adapter_folders(single), trainings.stopped(single)
    if any(_is_earlier(files.adapters / name) for name, _ in folders):
        return Training(train, EARLIER, trainings.last_step(single))
    if (files.curves / f"{key}.jsonl").exists() and all(_saved(files.adapters / name, step) for name, step in folders):
        stop = "" if found is None else limits.describe_stop(found)
        return Training(train, "done", trainings.last_step(single), stop)
    path = files.progress / f"{key}.json"
    status = _read_json(path)
    step = status["step"] if status else 0
    for state, reasons in (("errored", record.errored), ("stopped", record.stopped)):
        if key in reasons:
            return Training(train, state, step, reasons[key])
    if status is None:
        return Training(train, "waiting", 0)
    told = progress.training_line(key, status).removeprefix(key).strip().partition("  ")[2]
    if not working:
        return Training(train, "interrupted", step, told)
    return Training(train, "running", step, "  ".join(filter(None, (_silence(path, status), told))))


def _silence(path: Path, status: dict[str, Any]) -> str:
    """A warning if a running training may have lost its worker; empty otherwise."""
    pid, quiet = status.get("pid"), time.time() - path.stat().st_mtime
    if pid and status.get("host") == socket.gethostname() and not locks.is_alive(pid):
        return f"its worker (process {pid}) is gone, and will be replaced"
    if quiet > max(QUIET, 10 * (status.get("rate") or 0.0)):
        return f"no word for {progress.duration(quiet)}"
    return ""


def _saved(folder: Path, step: int) -> bool:
    record = _read_json(folder / RECORD)
    return record is not None and record.get("step") == step


def _is_earlier(folder: Path) -> bool:
    """Whether an earlier version made the adapter in a folder."""
    record = _read_json(folder / RECORD)
    return record is not None and record.get("format", 1) < RECORD_FORMAT


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _training_lines(config: Config, record: trials.Record, states: Sequence[Training]) -> Iterator[str]:
    counts = {name: sum(state.state == name for state in states) for name in dict.fromkeys(s.state for s in states)}
    yield f"trainings  {', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}"
    if config.sweep.search != "grid":
        drawn = len(record.settings)
        more = ", and there are no others" if record.exhausted else ""
        yield f"drawn      {config.sweep.search}: {drawn} of {config.sweep.trials} trials drawn{more}"
    if not states:
        return
    varied = [name for name in trainings.SWEPT if _varies(states, name)]
    rows = [["", "trial", "state", "step", *(name.replace("_", " ") for name in varied), ""]]
    for state in states:
        settings = [f"{v:g}" if isinstance(v := getattr(state.train, name), float) else str(v) for name in varied]
        rows.append(["", state.key, state.state, f"{state.step}/{state.train.steps}", *settings, state.told])
    yield tables.aligned(rows, left=range(len(rows[0])))


def _varies(states: Sequence[Training], name: str) -> bool:
    return len({getattr(state.train, name) for state in states}) > 1


def _arm_lines(resolved: Trials, states: Sequence[Training]) -> Iterator[str]:
    """How many arms each study has, and how many of them have their adapters."""
    done = {state.key for state in states if state.state == "done"}
    evaluate = resolved.config.evaluate
    base = 1 + len(evaluate.guidance) + len(evaluate.best_of)
    for group in resolved.groups():
        counts = {trainings.adapter_key(train): count for train, count in _adapter_arms(resolved.config, group)}
        ready = base + sum(count for key, count in counts.items() if key in done)
        lacking = ", ".join(key for key in counts if key not in done)
        of = f", {ready} with their adapter; missing: {lacking}" if lacking else ", all with their adapter"
        yield f"arms       {group.name}: {base + sum(counts.values())}{of}"


def _adapter_arms(config: Config, group: trials.Group) -> Iterator[tuple[configuration.Train, int]]:
    """How many arms need each adapter of a study."""
    evaluate = config.evaluate
    stops = trainings.snapshot_steps(config) if evaluate.early_stops is None else evaluate.early_stops
    last = trainings.last_step(replace(config, train=group.tuned))
    kept = sum(step <= last for step in stops)
    rivals = len(evaluate.guidance) + sum(int(text.partition("=")[0]) < last for text in evaluate.autoguidance)
    tuned = _guided(config, "schedules") + len(evaluate.lora_scales) + kept + rivals
    other = _guided(config, "kl_schedules") + len(evaluate.kl_lora_scales)
    for train in (group.tuned, *group.others):
        soups = sum(text.startswith(f"{trainings.seedless_key(train)}=") for text in evaluate.soups)
        yield train, 1 + soups + (tuned if train == group.tuned else other)


def _guided(config: Config, key: str) -> int:
    """How many arms the schedules of evaluate.KEY make."""
    if config.evaluate.spaces == ("prediction",):
        return len(getattr(config.evaluate, key))
    from pipelines.study import arms  # with torch, which decides which schedules vary

    return sum(1 for _ in arms.guided(config, "", key))


def arm_count(resolved: Trials) -> int:
    """How many arms have images: those of all studies, counting those of the base once."""
    config, evaluate = resolved.config, resolved.config.evaluate
    each = 1 + _guided(config, "schedules") + len(evaluate.lora_scales) + len(evaluate.guidance)
    names = trainings.external(config)
    external = each * len(names) + sum(text.partition("=")[0] in names for text in evaluate.soups)
    base = len(evaluate.guidance) + max(evaluate.best_of, default=1)
    return base + external + sum(count for group in resolved.groups() for _, count in _adapter_arms(config, group))


def expected_units(config: Config) -> int:
    """How many files the images dataset will have."""
    return _prompts(config) * -(-config.evaluate.seeds // config.evaluate.group)


def _images(config: Config) -> int:
    return _prompts(config) * config.evaluate.seeds


def _prompts(config: Config) -> int:
    wanted = config.evaluate.prompts
    if isinstance(wanted, str):
        return len(prompts.read(wanted, "evaluate.prompts"))
    return wanted if isinstance(wanted, int) else len(wanted)


def _units(files: RunDir, states: list[Training]) -> int:
    """How many files of images are whole and of this version; while trainings are missing, they are other adapters'."""
    if not all(state.ended for state in states):
        return 0
    if files.mirror is not None:  # where no file is there in part
        return sum(fnmatch(name, "part-*.parquet") for name in files.names(files.images))
    return sum(1 for path in files.images.glob("part-*.parquet") if _is_whole(path))


def _failures(files: RunDir) -> Iterator[str]:
    """How many units failed, and why the first did."""
    failed = []
    if files.failures.exists():
        failed = files.read_parquet(files.failures, "delete it", ["prompt", "error"]).to_pylist()
    if failed:
        yield f"failures   {len(failed)} units, as of {failed[0]['prompt']!r}: {failed[0]['error']}"


def _is_whole(path: Path) -> bool:
    try:
        found = pq.read_metadata(path)
        return found.num_rows > 0 and (found.metadata or {}).get(b"format", b"") == str(IMAGES_FORMAT).encode()
    except (OSError, ValueError):  # pyarrow's own errors are among them
        return False


def _there(files: RunDir, path: Path) -> str:
    if not path.exists():
        return "missing"
    other = other_format(files) or (path == files.front and other_front(files))
    return "there, made by another version" if other else "there"


def _results(files: RunDir) -> dict[str, Path]:
    return {"metrics": files.metrics, "front": files.front, "report": files.root / "report" / "index.html"}


def _searches(files: RunDir) -> Iterator[str]:
    for path in sorted(files.searches.glob("*/settings.json")):
        result = _read_json(path.with_name("search.json"))
        measured = path.with_name("evaluations.jsonl")
        lines = measured.read_bytes().count(b"\n") if measured.exists() else 0
        told = f"done: {result['statement']}" if result else f"under way or interrupted, {lines} units drawn"
        yield f"search     {path.parent.name}: {told}"


def _more_adapters(config: Config, files: RunDir, states: list[Training]) -> Iterator[str]:
    """The adapters that `train` made beside the sweep's."""
    ours = {state.key for state in states} | set(trainings.external(config))
    others = [name for name in trainings.saved_adapters(files) if name.partition("@")[0] not in ours]
    if others:
        yield f"adapters   besides: {', '.join(others)}"


def _next(config: Config, files: RunDir, states: Sequence[Training], draws: bool, units: tuple[int, int]) -> str:
    """What to type next. `config` is as the run keeps it; `draws` says that a search has trials left to draw."""
    folder = files.root
    if folder.name != config.run.name:
        return f"name the folder {config.run.name!r} again: by that name its configuration knows it"
    given = ["--config", str(folder / configuration.CONFIG_FILE)]
    if config.directory != folder:
        given.append(f"run.storage={files.storage}")
    (done, wanted), retry = units, ""
    if any(state.state == EARLIER for state in states):
        return (
            "an earlier version made this run's adapters, whose records do not say enough to go on: choose another "
            "run.name and keep them (--adapter NAME=FOLDER evaluates one there), or delete them to train them again"
        )
    if any(state.state == "errored" for state in states):
        retry = f"; trainings that failed: {command_line('sweep', '--retry-errored', *given)}"
    if not all(state.ended for state in states) or draws:
        command = "sweep"
    elif done < wanted or not files.metrics.exists() or other_format(files) is not None:
        command = "evaluate"
    elif not files.front.exists() or other_front(files) is not None:
        command = "front"
    elif not _results(files)["report"].exists():
        command = "report"
    else:
        return f"nothing is missing; open {_results(files)['report']}{retry}"
    return command_line(command, *given) + retry
