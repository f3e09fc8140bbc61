"""Adapters that somebody else made: tried on the model before anything is written, then copied into the run."""

from __future__ import annotations

import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from torch import nn

from aig import adapters
from pipelines.config import Config, ConfigError, given
from pipelines.runs.directory import RunDir
from pipelines.study import trainings

KEY = "evaluate.adapters"


def check(config: Config, denoiser: nn.Module) -> None:
    """Load each into the denoiser, where it stays; ConfigError names one that does not fit, or that is another's name.

    What its loading warns of is printed. An adapter whose record tells of another base is refused: a plane that has
    the wrong base for its one end says nothing about the adapter.
    """
    trained = {
        name
        for train in trainings.trainings(config)
        for name, _ in trainings.adapter_folders(replace(config, train=train))
    }
    for name, source in trainings.external(config).items():
        if name in trained:
            raise ConfigError(f"{KEY}: the sweep trains an adapter {name!r} itself: give this one another name")
        with given(f"{KEY}: {name}"):
            path = _where(config, name, source)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", adapters.OtherBase)
            try:
                with given(f"{KEY}: {name}"):
                    adapters.load(denoiser, path, name)
            except adapters.OtherBase as error:
                raise ConfigError(
                    f"{KEY}: {name}: {str(error).partition(';')[0]}: set model.name to the model that it was made on, "
                    f"or give its weights without the {adapters.RECORD} beside them"
                ) from error
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                print(f"warning: {warning.message}", file=sys.stderr)


def bring(config: Config) -> None:
    """Copy what the run does not have yet; each copy appears whole or not at all."""
    run = RunDir.of(config)
    for name, source in trainings.external(config).items():
        target = run.adapters / name
        if target.exists():
            continue
        weights = adapters.weights_file(source)
        known = weights.name if weights.name == adapters.FULL_WEIGHTS else adapters.WEIGHTS
        with run.whole_folder(target) as part:
            shutil.copyfile(weights, part / known)
            record = weights.parent / adapters.RECORD
            if record.exists():
                shutil.copyfile(record, part / adapters.RECORD)
        print(f"Copied {weights} to {target}: the run has all that it needs.")


def _where(config: Config, name: str, source: Path) -> Path:
    """The run's copy, where it has one, else the source."""
    copy = RunDir.of(config).adapters / name
    if not copy.exists():
        if not source.exists():
            raise ConfigError(f"{KEY}: {name}: {source} does not exist: give the path of a LoRA file or of its folder")
        return source
    with given(f"{KEY}: {name}"):
        differs = source.exists() and adapters.digest(copy) != adapters.digest(source)
    if differs:
        raise ConfigError(
            f"{KEY}: {copy} holds another adapter than {source}: give this one another name, or choose another run.name"
        )
    return copy
