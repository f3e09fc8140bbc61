"""The configuration of a run: frozen, typed objects made of a preset, a YAML file and overrides."""

from pipelines.config.errors import ConfigError, RunError, given
from pipelines.config.fields import bounds
from pipelines.config.loading import CONFIG_FILE, describe, from_dict, load, presets, to_dict, to_yaml
from pipelines.config.schema import (
    LIMITED,
    ONCE_L2,
    RESERVED,
    SEARCH_SEEDS,
    SECTIONS,
    VALIDATION_SEEDS,
    Config,
    Evaluate,
    Front,
    Measure,
    Model,
    Ray,
    Rewards,
    Run,
    Search,
    Sweep,
    Train,
)

__all__ = [
    "CONFIG_FILE", "LIMITED", "ONCE_L2", "RESERVED", "SEARCH_SEEDS", "SECTIONS", "VALIDATION_SEEDS",
    "Config", "ConfigError", "Evaluate", "Front", "Measure", "Model", "Ray", "Rewards", "Run", "RunError", "Search",
    "Sweep", "Train",
    "bounds", "describe", "from_dict", "given", "load", "presets", "to_dict", "to_yaml",
]  # fmt: skip
