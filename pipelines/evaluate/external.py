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
    """Load each into the denoiser, where it stays; ConfigError for one that does not fit or has another's name.

    Warnings of its loading are printed. An adapter of another base is refused, since a plane with the wrong base says
    nothing about it.
    """
    trained = {
        name
        for train in trainings.trainings(config)
        for name, _ in trainings.adapter_folders(replace(config, train=train))
    }
    for name, source in trainings.external(config).items():
        if name in trained:
            raise ConfigError(f"{KEY}: the sweep trains an adapter {name!r} itself: give this one another name")
        with given(f"{KEY}: {name}"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", adapters.OtherBase)
            try:
                adapters.load(denoiser, _copy_or_source(config, name, source), name)
            except adapters.OtherBase as error:
                raise ConfigError(
                    f"{KEY}: {name}: {str(error).partition(';')[0]}: set model.name to the model that it was made on, "
                    f"or give its weights without the {adapters.RECORD} beside them"
                ) from error
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                print(f"warning: {warning.message}", file=sys.stderr)


def import_adapters(config: Config) -> None:
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


def _copy_or_source(config: Config, name: str, source: Path) -> Path:
    """The run's copy of an adapter, or its source before there is one."""
    copy = RunDir.of(config).adapters / name
    if not copy.exists():
        if not source.exists():
            raise ConfigError(f"{KEY}: {name}: {source} does not exist: give the path of a LoRA file or of its folder")
        return source
    if source.exists() and adapters.digest(copy) != adapters.digest(source):
        raise ConfigError(
            f"{KEY}: {copy} holds another adapter than {source}: give this one another name, or choose another run.name"
        )
    return copy
