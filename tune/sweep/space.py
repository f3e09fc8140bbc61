"""The space of a search and its samplers.

A trial's settings are rounded to two significant digits, so that its adapter's name is short and says all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from pipelines.config import Config
from pipelines.study import trainings

DIGITS = 2


def space(config: Config) -> dict[str, BaseDistribution]:
    """A distribution for each setting that has a range or several values in `config.sweep`."""
    sweep, (lrs, ranks) = config.sweep, trainings.learning(config)
    ranges = {"lr": sweep.lr_range, "kl_weight": sweep.kl_range}
    distributions: dict[str, BaseDistribution] = {
        name: FloatDistribution(*ends, log=True) for name, ends in ranges.items() if ends is not None
    }
    choices = {"reward": sweep.rewards, "k": sweep.ks, "kl_weight": sweep.kl_weights, "lr": lrs, "rank": ranks}
    for name, values in choices.items():
        if name not in distributions and len(values) > 1:
            distributions[name] = CategoricalDistribution(values)
    return distributions


def settings(config: Config, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a trial: the drawn ones, rounded within their ranges, and those that `config.sweep` fixes."""
    sweep, (lrs, ranks) = config.sweep, trainings.learning(config)
    fixed = {
        "reward": sweep.rewards[0], "k": sweep.ks[0], "kl_weight": sweep.kl_weights[0], "lr": lrs[0],
        "rank": ranks[0], "seed": sweep.train_seeds[0],
    }  # fmt: skip
    rounded = dict(drawn)
    for name, ends in (("lr", sweep.lr_range), ("kl_weight", sweep.kl_range)):
        if ends is not None:
            rounded[name] = min(max(float(f"{drawn[name]:.{DIGITS}g}"), ends[0]), ends[1])
    return {**fixed, **rounded}


def sampler(config: Config, generation: int) -> optuna.samplers.BaseSampler:
    """The sampler of one generation; its draws depend on the seed, the generation and the earlier trials alone."""
    seed = config.sweep.seed + 100_003 * generation
    if config.sweep.search == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # Optuna's default of 10 random trials before it models anything exceeds many sweeps.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.sweep.generation)
