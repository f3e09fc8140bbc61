"""What a run compares, settled once by a command and passed on, to Ray's actors too: nobody reads the records again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from aig.models import Sampling
from pipelines.config import Config, ConfigError
from pipelines.rewards import names
from pipelines.rewards.names import Columns, Statistics
from pipelines.runs.directory import RunDir
from pipelines.show.program import command_line
from pipelines.study import arms, models, rivals, statistics
from pipelines.study.arms import Study, StudyArm
from pipelines.study.prompts import EVALUATE, resolve_prompts
from pipelines.study.trials import Trials


@dataclass(frozen=True)
class Resolved:
    """The studies of a run and the prompts that judge them, as its sweep left them."""

    config: Config
    singles: tuple[Study, ...]
    """One per training setting and seed, then those of adapters from elsewhere."""
    means: tuple[Study, ...]
    """One per training setting of several seeds."""
    prompts: tuple[str, ...]
    """Those that judge; a prompt's number in the images is its place here."""
    notes: tuple[str, ...]
    """What is left out and what a guard stopped, one line each."""

    @property
    def directory(self) -> RunDir:
        """The run's directory on the machine that asks: actors have mirrors of their own."""
        return RunDir.of(self.config)

    @property
    def studies(self) -> tuple[Study, ...]:
        """All of them, means over training seeds first."""
        return (*self.means, *self.singles)

    @cached_property
    def arms(self) -> tuple[StudyArm, ...]:
        """The arms that have images, the base once, and what best-of-n chooses among."""
        return tuple(arms.drawn_arms(self.singles))

    @cached_property
    def judged(self) -> tuple[StudyArm, ...]:
        """The arms that are measured from images: those of the studies, each once."""
        chosen = {arm.arm.name: arm for study in self.singles for arm in study.arms if arm.candidates}
        return (*(arm for arm in self.arms if arm.family != arms.CANDIDATE), *chosen.values())

    @cached_property
    def mean_arms(self) -> tuple[StudyArm, ...]:
        """The arms that are means over training seeds."""
        return tuple(arm for study in self.means for arm in study.arms if arm.members)


@dataclass(frozen=True)
class Drawable(Resolved):
    """With all that its images and scores come from: the adapters have to be there, and the statistics of sums."""

    sampling: Sampling
    columns: Columns
    """What scores the images."""
    statistics: Statistics | None
    """By which weighted sums are z-scored; None if there is no sum."""
    origins: Mapping[str, str]
    """By arm a hash of what its images come from beside their prompt and seed index: the content of the model and of
    the adapter, dtype, size, sampling, run seed, and what the arm does."""


def resolve(config: Config) -> Resolved:
    """What a run compares, after its sweep has ended; ConfigError if its records or prompts cannot be read."""
    trials = Trials.of(config)
    singles = arms.studies(trials)
    prompts = resolve_prompts(config, EVALUATE)
    return Resolved(config, tuple(singles), tuple(arms.mean_studies(singles)), tuple(prompts), tuple(trials.notes()))


def resolve_images(config: Config, defaults: Sampling) -> Drawable:
    """The same, with how its images are drawn and scored by a model of these `defaults`.

    ConfigError if an adapter is not trained or its path length is needed and not measured, or if the statistics of a
    weighted sum are missing.
    """
    study, sampling = resolve(config), models.evaluation_sampling(config, defaults)
    drawable = Drawable(
        config, study.singles, study.means, study.prompts, study.notes,
        sampling=sampling,
        columns=names.columns(config, names.scored(config)),
        statistics=statistics.sum_statistics(config),
        origins=_origins(study, sampling),
    )  # fmt: skip
    for arm in study.arms:
        if arm.arm.curve.fit is not None:
            raise ConfigError(
                f"{arm.arm.name} has no weight yet, since the path length of {arm.arm.adapter} is not measured: run "
                f"`{command_line('evaluate')}` with the same configuration first"
            )
    return drawable


def _origins(study: Resolved, sampling: Sampling) -> dict[str, str]:
    config, drawn = study.config, drawing(study.config, sampling)
    names = dict.fromkeys(name for arm in study.arms for name in rivals.saved(arm.arm))
    digests = {name: models.adapter_digest(config, name) for name in names}
    origins = {}
    for arm in study.arms:
        own = [digests[name] for name in rivals.saved(arm.arm)]
        adapter = own[0] if len(own) == 1 else own or None
        origins[arm.arm.name] = hashed({**drawn, "arm": arm.id, "adapter": adapter})
    return origins


def drawing(config: Config, sampling: Sampling) -> dict[str, Any]:
    """What every image comes from, beside its arm, prompt and seed index."""
    return {
        "model": models.fingerprint(config.model.name, config.model.revision, config.model.variant),
        "dtype": config.model.dtype,
        "size": [config.model.height, config.model.width],
        "sampling": asdict(replace(sampling, max_rows=1)),
        "run_seed": config.run.seed,
    }


def hashed(content: Any) -> str:
    """16 hex digits that stand for a content."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
