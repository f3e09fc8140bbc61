"""Records of adapters: what made one, and whether a saved one is what a configuration would make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aig import adapters
from pipelines.config import Config, Train, given
from pipelines.rewards import names
from pipelines.runs.directory import RECORD_FORMAT, RunDir
from pipelines.study.models import fingerprint
from pipelines.study.prompts import TRAIN, resolve_prompts
from pipelines.study.trainings import adapter_folders, adapter_key, best_folder


def training_record(config: Config, train: Train, step: int) -> dict[str, Any]:
    """The settings, model and weights that make an adapter, as JSON; adapters with equal records are the same."""
    settings: dict[str, Any] = {key: getattr(train, key) for key in RECORDED}
    settings["prompts"] = resolve_prompts(replace(config, train=train), TRAIN)
    if train.method != "lora":  # a LoRA's record has no method
        settings = {key: value for key, value in settings.items() if key not in OF_LORA} | {"method": train.method}
    # Only if they differ from the default: records are compared, and older ones lack these keys.
    if train.drawn_kl:
        settings["kl_steps"] = train.drawn_kl
    if train.reward_smoothing:
        settings |= {"reward_smoothing": train.reward_smoothing, "smoothing_draws": train.smoothing_draws}
    if train.limits:
        settings |= {f"stop_{name}": limit for name, limit in train.limits.items()}
        settings["stop_patience"] = train.stop_patience
    if config.rewards.define:
        settings["terms"] = [asdict(term) for term in names.terms(config, train.reward)]
    if config.rewards.dtype != "float32":
        settings["reward_dtype"] = config.rewards.dtype
    if config.rewards.rounding:
        settings["reward_rounding"] = True
    settings["reward_digests"] = names.digests(names.terms(config, train.reward))
    model = {key: value for key, value in asdict(config.model).items() if key != "device"}
    model["fingerprint"] = fingerprint(config.model.name, config.model.revision, config.model.variant)
    return json.loads(json.dumps({"format": RECORD_FORMAT, "step": step, "train": settings, "model": model}))


# The settings that determine an adapter; the others say how its training is carried out and watched.
RECORDED = (
    "reward", "kl_weight", "k", "seed", "kl", "lv", "batch", "lr", "weight_decay", "clip", "rank", "alpha", "targets",
    "optimizer", "autocast", "vae_tiling", "compile", "on_nan", "explosion", "ema",
)  # fmt: skip
OF_LORA = ("rank", "alpha", "targets")


def adapter_record(folder: Path) -> dict[str, Any]:
    """The record of a saved adapter; ConfigError if it cannot be read."""
    with given():
        return adapters.read_record(folder)


def is_saved(config: Config, folder: Path, step: int) -> bool:
    """Whether this folder has the adapter of `config.train` at this step."""
    if not (folder / adapters.RECORD).exists():
        return False
    return same_record(adapter_record(folder), training_record(config, config.train, step))


def is_finished(config: Config) -> bool:
    """Whether the training `config.train` has written its adapter, every snapshot and its curve."""
    files = RunDir.of(config)
    return (
        (files.curves / f"{adapter_key(config.train)}.jsonl").exists()
        and all(is_saved(config, files.adapters / name, step) for name, step in adapter_folders(config))
        and (not config.train.keep_best or has_best(config))
    )


def has_best(config: Config) -> bool:
    """Whether this training's best adapter by held-out reward is saved, of whatever step."""
    folder = RunDir.of(config).adapters / best_folder(config.train)
    return (folder / adapters.RECORD).exists() and is_saved(config, folder, adapter_record(folder)["step"])


def same_record(saved: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether a saved record has all that is expected; its other keys, as versions, do not count."""
    return all(saved.get(key) == value for key, value in expected.items())


def difference(saved: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first difference between two records, in words that follow "was made"."""
    if (made := saved.get("format", 1)) != RECORD_FORMAT:
        older = f"by an earlier version, whose records (format {made}, now {RECORD_FORMAT}) say less of the model's and"
        newer = f"by a later version (its record has format {made}, this one reads {RECORD_FORMAT})"
        return f"{older} the reward's weights" if made < RECORD_FORMAT else newer
    key, was, now = next(_differing_keys(saved, expected))
    if key == "model.fingerprint":
        return f"for other weights than those of model.name={expected['model']['name']} ({key} = {was!r}, not {now!r})"
    if key.startswith("train.reward_digests."):
        return f"by other weights, or other code, of the reward {key.rpartition('.')[2]} ({was!r}, not {now!r})"
    return f"by another configuration ({key} = {was!r}, not {now!r})"


def _differing_keys(
    saved: dict[str, Any], expected: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ, with both values: the expected ones and, inside a section, additional saved ones."""
    for key in dict.fromkeys([*expected, *(saved if prefix else ())]):
        if isinstance(expected.get(key), dict):
            yield from _differing_keys(saved.get(key) or {}, expected[key], f"{prefix}{key}.")
        elif saved.get(key) != expected.get(key) or (key in saved) != (key in expected):
            yield f"{prefix}{key}", saved.get(key), expected.get(key)
