"""Which configuration keys a command reads, and the help that shows them.

A command lists patterns, as `train.*` and `sweep.ks`. What only compares a configuration with the one that the run
keeps is not counted: that looks at all of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from fnmatch import fnmatchcase

from pipelines import config as configuration
from pipelines.config import SECTIONS


def of(section: str, names: str) -> tuple[str, ...]:
    """Several keys of a section."""
    return tuple(f"{section}.{name}" for name in names.split())


ALL = ("*",)
RUN = ("run.name", "run.storage")
# What says which trainings a run has, and which arms.
TRAININGS = (
    *of("train", "reward kl_weight kl_steps k seed steps lr method rank alpha snapshot_every label stop_*"),
    *of("sweep", "rewards ks kl_weights early_kl_weights train_seeds lrs ranks search trials"),
)
ARMS = (
    *TRAININGS,
    *of("evaluate", "schedules kl_schedules spaces lora_scales kl_lora_scales early_stops adapters"),
    *of("evaluate", "best_of guidance autoguidance soups"),
    "model.steps",
)
# What else makes an adapter: a saved one has to agree.
ADAPTERS = of(
    "train",
    "kl lv batch weight_decay clip targets optimizer autocast vae_tiling compile on_nan explosion ema "
    "reward_smoothing smoothing_draws",
)
# The prompts that train and those that judge, and what scores their images.
PROMPTS = ("model.name", "train.prompts", "train.validate_prompts", "evaluate.prompts")
SCORES = ("rewards.define", *of("evaluate", "rewards gold features"))


def matching(patterns: Iterable[str], keys: Iterable[str]) -> list[str]:
    """The keys that one of the patterns names, in their order."""
    patterns = tuple(patterns)
    return [key for key in keys if any(fnmatchcase(key, pattern) for pattern in patterns)]


def text(patterns: Iterable[str], preset: str | None = None) -> str:
    """The keys with their values and meanings, by section."""
    config, of = configuration.load(preset), f"as the preset {preset} sets them" if preset else "with their defaults"
    described, lines = configuration.describe(config), [f"keys, {of}:"]
    for section in SECTIONS:
        keys = matching(patterns, [key for key in described if key.startswith(f"{section}.")])
        lines += [f"\n{section}: {SECTIONS[section].__doc__}"] if keys else []
        for key in keys:
            value, meaning = described[key]
            wrapped = textwrap.wrap(
                meaning, 106, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False
            )
            lines += [f"  {key}={value}", *wrapped]
    return "\n".join(lines)


INDENT = " " * 6
