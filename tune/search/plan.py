"""The plan of a search for schedules, resolved and checked before any Ray process starts."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aig import adapters
from aig.grid import Grid
from aig.models import Model, Sampling
from pipelines.config import SEARCH_SEEDS, Config, ConfigError, given
from pipelines.config.values import slug
from pipelines.rewards import names as reward_names
from pipelines.rewards.scores import GOLD
from pipelines.runs.directory import RECORD_FORMAT, RunDir
from pipelines.show.program import command_line
from pipelines.study import models
from pipelines.study import trainings as planned
from pipelines.study.prompts import EVALUATE, check_prompts, resolve_prompts, shared
from pipelines.train import records

SEARCH, HELD_OUT = "search", "held_out"
FORMAT = 2  # of a search's settings; 1 had no such key, and no digests of rewards' weights
# Schedules that need no search: the ends, and the paper's.
ENDS = ("base", "tuned")
PUBLISHED = ("linear", "power:2", "power:4", "step:0.6")
REFERENCES = (*ENDS, *PUBLISHED)


@dataclass(frozen=True)
class Plan:
    """A search, resolved."""

    config: Config
    name: str
    adapter: str
    reward: str
    """The reward that the adapter was trained on."""
    prompts: dict[str, tuple[str, ...]]
    """Prompts of the search set and of the held-out set."""
    seeds: dict[str, int]
    objectives: tuple[str, ...]
    """Names of measured metrics."""
    trained_on: int
    """Number of held-out prompts that the adapter was trained on."""
    evaluated: int
    """Number of evaluate.prompts in the search set: they judge the schedules that they chose."""
    sampling: Sampling
    grid: Grid
    digest: str
    """Digest of the adapter's weights."""

    @property
    def run(self) -> RunDir:
        """The run's directory."""
        return RunDir.of(self.config)

    @property
    def folder(self) -> Path:
        return self.run.searches / self.name

    def curve(self, schedule: str) -> str:
        """A name of the schedule's weights on this sampler's grid: texts of one curve draw the same images."""
        return hashlib.blake2b(repr(self.grid.weights(schedule)).encode(), digest_size=8).hexdigest()

    def identity(self) -> dict[str, Any]:
        """All settings that the measurements and proposals depend on, as JSON; more trials continue the search."""
        search, config = self.config.search, self.config
        model = {key: value for key, value in asdict(config.model).items() if key != "device"}
        model["fingerprint"] = models.fingerprint(config.model.name, config.model.revision, config.model.variant)
        names = scored(config, self.reward)
        columns = reward_names.columns(config, names)
        defined = bool(columns.sums or config.rewards.define)  # else the names suffice
        return {
            "format": FORMAT,
            "adapter": self.adapter, "weights": self.digest, "reward": self.reward, "run_seed": config.run.seed,
            "objectives": list(self.objectives), "families": list(search.families),
            "places": list(search.places) if search.places else None, "sampler": search.sampler,
            "generation": search.generation, "seed": search.seed,
            # The number of trials sets the grid's spacing.
            "trials": search.trials if search.sampler == "grid" else None,
            "prompts": {name: list(prompts) for name, prompts in self.prompts.items()}, "seeds": self.seeds,
            "noise": SEARCH_SEEDS, "prompts_at_once": search.prompts_at_once, "model": model, "steps": len(self.grid),
            "block": config.evaluate.block, "rewards": names, "gold": config.evaluate.gold,
            "features": config.evaluate.features, "columns": columns.to_json() if defined else None,
            "digests": reward_names.scoring_digests(config, columns),
        }  # fmt: skip


def make(config: Config, model: Model) -> Plan:
    """The search of `config.search`; ConfigError if it cannot be made."""
    search, files = config.search, RunDir.of(config)
    trainings = planned.trainings(config)
    if not search.adapter and not trainings:
        raise ConfigError("sweep.rewards is [], so no adapter is the first: name one by search.adapter")
    adapter = search.adapter or planned.adapter_key(trainings[0])
    digest = _digest(files, adapter)
    record = _record(files.adapters / adapter)
    _check_model(config, record, files.adapters / adapter)
    reward = str(record.get("train", {}).get("reward", config.train.reward))
    prompts = {SEARCH: resolve_prompts(config, "search.prompts")}
    prompts[HELD_OUT] = resolve_prompts(config, "search.held_out")
    _check_disjoint(prompts)
    for key, name in (("search.prompts", SEARCH), ("search.held_out", HELD_OUT)):
        with given(key):
            model.encode(prompts[name])
    sampling = models.evaluation_sampling(config, model.defaults)
    return Plan(
        config=config,
        name=search.name or adapter,
        adapter=adapter,
        reward=reward,
        prompts={name: tuple(texts) for name, texts in prompts.items()},
        seeds={SEARCH: search.seeds, HELD_OUT: search.held_out_seeds},
        objectives=_objectives(config, reward),
        trained_on=len(shared(prompts[HELD_OUT], record.get("train", {}).get("prompts", ()))),
        evaluated=len(shared(resolve_prompts(config, EVALUATE), prompts[SEARCH])),
        sampling=sampling,
        grid=Grid(model, sampling),
        digest=digest,
    )


def check_given(config: Config) -> None:
    """ConfigError, before a model is loaded, if the search's prompts are missing or cannot be read."""
    check_prompts(config, "search.prompts", "search.held_out")


def scored(config: Config, reward: str) -> list[str]:
    """The rewards that score the images: the adapter's own and the evaluation's."""
    return list(dict.fromkeys([reward, *reward_names.scored(config)]))


def _digest(files: RunDir, adapter: str) -> str:
    folder = files.adapters / adapter
    try:
        adapters.weights_file(folder)
    except ValueError:
        raise _unknown(files, adapter) from None
    with given("search.adapter"):
        return adapters.digest(folder)


def _unknown(files: RunDir, adapter: str) -> ConfigError:
    saved = planned.saved_adapters(files)
    if not saved:
        return ConfigError(
            f"search.adapter: {files.root} has no adapters: run `{command_line('sweep')}` (or train) with the same "
            "configuration first"
        )
    close = difflib.get_close_matches(adapter, saved, n=1, cutoff=0.0)[0]
    return ConfigError(
        f"search.adapter: there is no adapter {adapter!r} in {files.adapters}; did you mean {close!r}? "
        f"(there are {', '.join(saved)})"
    )


def _record(folder: Path) -> dict[str, Any]:
    """The adapter's record; empty for an adapter from elsewhere."""
    return records.adapter_record(folder) if (folder / adapters.RECORD).exists() else {}


def _check_model(config: Config, record: dict[str, Any], folder: Path) -> None:
    if "fingerprint" not in record.get("model", {}):
        return
    own = models.fingerprint(config.model.name, config.model.revision, config.model.variant)
    expected = {"format": RECORD_FORMAT, "model": {"name": config.model.name, "fingerprint": own}}
    if record.get("format", 1) != RECORD_FORMAT or record["model"]["fingerprint"] != own:
        raise ConfigError(
            f"search.adapter: {folder} was made {records.difference(record, expected)}: give the model that it was "
            f"trained with, or, of another version, the adapter without the {adapters.RECORD} beside it"
        )


def _check_disjoint(prompts: dict[str, list[str]]) -> None:
    if both := shared(prompts[HELD_OUT], prompts[SEARCH]):
        raise ConfigError(
            f"search.prompts and search.held_out share {len(both)} prompts ({both[0]!r}, ...): what the search has "
            "seen cannot validate it; give other prompts"
        )


def _objectives(config: Config, reward: str) -> tuple[str, ...]:
    other = reward_names.held_out(config, reward)
    metrics = {
        "reward": slug(reward),
        "held_out": slug(other) if other else None,
        "gold": GOLD if config.evaluate.gold else None,
        "diversity": config.front.diversity,
    }
    names = [metrics[name] for name in config.search.objectives]
    if None in names:
        missing = config.search.objectives[names.index(None)]
        key = "evaluate.gold" if missing == "gold" else "evaluate.rewards"
        raise ConfigError(f"search.objectives has {missing!r}, and {key} names none: set it, or leave {missing!r} out")
    return tuple(name for name in names if name)
