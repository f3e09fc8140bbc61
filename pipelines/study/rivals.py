"""Rivals of annealing as arms, each with its source: guidance, autoguidance, averaged adapters and best-of-n.

An adapter that averages others is named by what it is made of, ADAPTER=WEIGHT|ADAPTER=WEIGHT; no saved one has such a
name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from aig import schedules
from aig.sampler import Arm, Sampling
from pipelines.config import Config, ConfigError
from pipelines.config.rivals import autoguidance, guidance, soup
from pipelines.config.values import slug
from pipelines.study import trainings
from pipelines.study.trainings import adapter_key, seedless_key
from pipelines.study.trials import Trials

Rival = tuple[Arm, str, str]
"""An arm, its family and its label."""


def guided(config: Config, adapter: str | None) -> Iterator[Rival]:
    """The base or an adapter at other guidance scales, or with guidance in an interval (arXiv 2404.07724)."""
    name, who = adapter or "base", "tuned" if adapter else "base"
    for text in config.evaluate.guidance:
        scale, interval = guidance(text)
        shown = f"guidance {scale:g}" + (f"@{interval[0]:g}-{interval[1]:g}" if interval != (0, 1) else "")
        arm = Arm(
            f"{name}{'+' if adapter else ' '}{shown}", adapter, schedule="tuned" if adapter else "base",
            guidance=scale, interval=interval,
        )  # fmt: skip
        yield arm, "guidance", f"{shown} ({who})"


def autoguided(config: Config, adapter: str, last: int) -> Iterator[Rival]:
    """An adapter against snapshots of its own training, at weights above 1: autoguidance (arXiv 2406.02507).

    Without snapshots later than `last`, the step of a stopped training. ConfigError for one that no training keeps.
    """
    kept = trainings.snapshot_steps(config)
    for text in config.evaluate.autoguidance:
        step, weight = autoguidance(text)
        if step not in kept:
            raise ConfigError(f"evaluate.autoguidance: there is no snapshot of step {step}: choose among {kept}")
        if step < last:
            schedule = schedules.format_name(schedules.parse(f"constant:{weight}"))
            arm = Arm(f"{adapter}+autoguidance {text}", adapter, schedule=schedule, against=f"{adapter}@{step}")
            yield arm, "autoguidance", f"autoguidance {weight:g} against {step}"


def best_of(config: Config, reward: str) -> Iterator[tuple[Rival, tuple[Arm, ...]]]:
    """Best-of-n by a reward, and what it chooses among: the base, then later draws of it.

    Kept image s of a prompt is the best of seed indices s, S + s, ..., (n - 1) S + s; S is evaluate.seeds.
    """
    for n in config.evaluate.best_of:
        draws = [Arm(f"base draw {i + 1}", schedule="base", seed_offset=i * config.evaluate.seeds) for i in range(1, n)]
        arm = Arm(f"best of {n} by {slug(reward)}", schedule="base")
        yield (arm, "best", f"best of {n} (base)"), (Arm("base", schedule="base"), *draws)


def soups(trials: Trials, first: str, seed: int | None) -> Iterator[Rival]:
    """Averaged adapters, rewarded soups (arXiv 2306.04488), whose first adapter this is, by its key without a seed.

    The other trained ones are of the same training seed. A soup is left out if one of its trainings failed or was
    stopped by a scheduler.
    """
    record = trials.record
    own = {seedless_key(train): adapter_key(train) for train in trials.trainings if train.seed == seed}
    for text in trials.config.evaluate.soups:
        weights = soup(text)
        if next(iter(weights)) != first:
            continue
        resolved = {own.get(name, name): weight for name, weight in weights.items()}
        if not {*record.errored, *record.stopped} & resolved.keys():
            adapter = "|".join(f"{name}={weight}" for name, weight in resolved.items())
            label = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
            yield Arm(f"{next(iter(resolved))}+soup {text}", adapter), "soup", f"soup {label}"


def check_soups(trials: Trials) -> None:
    """ConfigError for a soup of an adapter that the run does not have, and for one of full copies."""
    config, elsewhere = trials.config, trainings.external(trials.config)
    known = list(dict.fromkeys(seedless_key(train) for train in trials.trainings))
    for text in config.evaluate.soups:
        names = list(soup(text))
        if names[0] in elsewhere and any(name in known for name in names):
            raise ConfigError(
                f"evaluate.soups: {text!r} begins with an adapter from elsewhere, and has trained ones: put one of "
                "those first, whose study and training seed it takes"
            )
        for name in names:
            if name in known and config.train.method != "lora":
                raise ConfigError(
                    f"evaluate.soups: {name!r} is a full copy (train.method={config.train.method}), and soups add up "
                    "LoRAs: take train.method=lora, or no soups"
                )
            if name not in known and name not in elsewhere:
                near = difflib.get_close_matches(name, [*known, *elsewhere], 1)
                fix = f"did you mean {near[0]!r}?" if near else f"there are {', '.join([*known, *elsewhere])}"
                raise ConfigError(f"evaluate.soups: {text!r}: no adapter of the run is called {name!r}: {fix}")


def check_guidance(config: Config, sampling: Sampling) -> None:
    """ConfigError for a guidance scale at which every image is sampled anyway."""
    for text in config.evaluate.guidance:
        if guidance(text) == (sampling.guidance, (0, 1)):
            raise ConfigError(
                f"evaluate.guidance: {text!r} is the model's own scale, that of the base and the tuned model: leave it "
                "out"
            )


def averaged(adapter: str) -> Mapping[str, float]:
    """The saved adapters that one is made of, with their weights: itself, or those of a soup."""
    return soup(adapter) if is_soup(adapter) else {adapter: 1.0}


def is_soup(adapter: str) -> bool:
    """Whether an adapter averages saved ones."""
    return "=" in adapter


def saved(arm: Arm) -> list[str]:
    """The saved adapters that an arm is drawn with."""
    return [name for adapter in (arm.adapter, arm.against) if adapter is not None for name in averaged(adapter)]
