"""What made an adapter, and whether one that is there is the one that is wanted."""

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
from pipelines.study.trainings import (
    adapter_folders,
    adapter_key,
    best_folder,
)


def training_record(config: Config, train: Train, step: int) -> dict[str, Any]:
    """What made an adapter, as JSON holds it: it decides whether one that is there is the one that is wanted."""
    settings: dict[str, Any] = {key: getattr(train, key) for key in RECORDED}
    settings["prompts"] = resolve_prompts(replace(config, train=train), TRAIN)
    if train.method != "lora":  # nor has a LoRA's record a method
        settings = {key: value for key, value in settings.items() if key not in OF_LORA} | {"method": train.method}
    # Only where they say more than the name does: records are compared, and older ones have no such keys.
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


# The settings of a training that make its adapter; the others decide how it is carried out and watched.
RECORDED = (
    "reward", "kl_weight", "k", "seed", "kl", "lv", "batch", "lr", "weight_decay", "clip", "rank", "alpha", "targets",
    "optimizer", "autocast", "vae_tiling", "compile", "on_nan", "explosion", "ema",
)  # fmt: skip


OF_LORA = ("rank", "alpha", "targets")


def adapter_record(folder: Path) -> dict[str, Any]:
    """What made a saved adapter; ConfigError where its record cannot be read."""
    with given():
        return adapters.read_record(folder)


def is_saved(config: Config, folder: Path, step: int) -> bool:
    """Whether an adapter is there that `config.train` made by this step."""
    if not (folder / adapters.RECORD).exists():
        return False
    return same_record(adapter_record(folder), training_record(config, config.train, step))


def is_finished(config: Config) -> bool:
    """Whether the training `config.train` has left its adapter, every snapshot and its curve."""
    files = RunDir.of(config)
    return (
        (files.curves / f"{adapter_key(config.train)}.jsonl").exists()
        and all(is_saved(config, files.adapters / name, step) for name, step in adapter_folders(config))
        and (not config.train.keep_best or has_best(config))
    )


def has_best(config: Config) -> bool:
    """Whether the best adapter by held-out reward is there, of whatever step of this training."""
    folder = RunDir.of(config).adapters / best_folder(config.train)
    return (folder / adapters.RECORD).exists() and is_saved(config, folder, adapter_record(folder)["step"])


def same_record(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a saved adapter's record is the wanted one; what it holds beside, as versions, does not count."""
    return all(found.get(key) == value for key, value in wanted.items())


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What made an adapter in another way than the wanted one, as it follows "was made": the first key that differs."""
    if (made := found.get("format", 1)) != RECORD_FORMAT:
        older = f"by an earlier version, whose records (format {made}, now {RECORD_FORMAT}) say less of the model's and"
        newer = f"by a later version (its record has format {made}, this one reads {RECORD_FORMAT})"
        return f"{older} the reward's weights" if made < RECORD_FORMAT else newer
    key, was, now = next(_differing_keys(found, wanted))
    if key == "model.fingerprint":
        return f"for other weights than those of model.name={wanted['model']['name']} ({key} = {was!r}, not {now!r})"
    if key.startswith("train.reward_digests."):
        return f"by other weights, or other code, of the reward {key.rpartition('.')[2]} ({was!r}, not {now!r})"
    return f"by another configuration ({key} = {was!r}, not {now!r})"


def _differing_keys(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ: those wanted and, inside a section, those found beside them."""
    for key in dict.fromkeys([*wanted, *(found if prefix else ())]):
        if isinstance(wanted.get(key), dict):
            yield from _differing_keys(found.get(key) or {}, wanted[key], f"{prefix}{key}.")
        elif found.get(key) != wanted.get(key) or (key in found) != (key in wanted):
            yield f"{prefix}{key}", found.get(key), wanted.get(key)
