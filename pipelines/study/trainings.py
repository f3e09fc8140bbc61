"""The trainings of a run and the adapters that they make, read off the configuration without loading torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pipelines.config import Config, ConfigError, Train
from pipelines.config.values import slug
from pipelines.runs.directory import RECORD, RunDir


def adapter_key(train: Train) -> str:
    """The name of the adapter that a training makes, as in fragile-k1-kl10-s0 or fragile-k1-kl10-lr0.0003-s0."""
    label = f"-{train.label}" if train.label else ""
    return f"{slug(train.reward)}-k{train.k}-kl{train.kl_weight:g}{label}-s{train.seed}"


def training(config: Config, *, reward: str, k: int, kl_weight: float, lr: float, rank: int, seed: int) -> Train:
    """The training of `config.train` with these settings; its label names those that a key does not hold otherwise."""
    train = config.train
    varied = [train.label] * bool(train.label)
    varied += [f"lr{lr:g}"] * (lr != train.lr) + [f"r{rank}"] * (rank != train.rank)
    alpha = train.alpha if rank == train.rank else train.alpha * rank / train.rank  # the adapter's scale is kept
    return replace(
        train, reward=reward, k=k, kl_weight=kl_weight, lr=lr, rank=rank, alpha=alpha, seed=seed,
        label="-".join(varied),
    )  # fmt: skip


def trainings(config: Config, drawn: Sequence[dict[str, Any]] | None = None) -> list[Train]:
    """Every training of the sweep; the unregularized ones first, since the most arms hang on them.

    Those of a grid, or of a search its references and what it has drawn so far: `drawn`, or what the run's record says.
    """
    sweep = config.sweep
    if sweep.search != "grid":
        drawn = read_drawn(config) if drawn is None else drawn
        return [*references(config), *(training(config, **settings) for settings in drawn)]
    varied = (sweep.kl_weights, sweep.rewards, sweep.ks, *learning(config), sweep.train_seeds)
    return [
        training(config, reward=r, k=k, kl_weight=w, lr=lr, rank=rank, seed=s)
        for w, r, k, lr, rank, s in sorted(product(*varied), key=lambda point: point[0])
    ]


def saved_adapters(files: RunDir) -> list[str]:
    """The names of the adapters that are there whole, in their order; the folders of killed writers are hidden."""
    found = (path.parent.name for path in files.adapters.glob(f"*/{RECORD}"))
    return sorted(name for name in found if not name.startswith("."))


def external(config: Config) -> dict[str, Path]:
    """Adapters that were made elsewhere: their names, and where they came from; the run has copies."""
    return {name: Path(path) for name, _, path in (text.partition("=") for text in config.evaluate.adapters)}


def references(config: Config) -> list[Train]:
    """What a search compares its trials with: train.* with KL weight 0, for every reward and K."""
    train, sweep = config.train, config.sweep
    return [
        training(config, reward=r, k=k, kl_weight=0.0, lr=train.lr, rank=train.rank, seed=sweep.train_seeds[0])
        for r, k in product(sweep.rewards, sweep.ks)
    ]


def learning(config: Config) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The sweep's learning rates and ranks."""
    return config.sweep.lrs or (config.train.lr,), config.sweep.ranks or (config.train.rank,)


def read_drawn(config: Config) -> list[dict[str, Any]]:
    """The settings of the trials that a search has drawn, in their order; none where it has not begun."""
    return [settings for generation in read_sweep(config).get("drawn", []) for settings in generation]


def read_sweep(config: Config) -> dict[str, Any]:
    """The content of `sweep.json`, nothing where no sweep has begun; ConfigError where it cannot be read."""
    path = RunDir.of(config).sweep
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore it, or choose another run.name") from error


def snapshot_steps(config: Config) -> list[int]:
    """The steps whose snapshots are kept, the last step excepted: that is the adapter itself."""
    return list(range(config.train.snapshot_every, config.train.steps, config.train.snapshot_every))


def adapter_folders(config: Config) -> list[tuple[str, int]]:
    """Names and steps of the folders that the training `config.train` leaves: snapshots, then the adapter itself.

    Where a guard has stopped it, no snapshot is of a later step than the adapter.
    """
    key, last = adapter_key(config.train), last_step(config)
    return [*((f"{key}@{step}", step) for step in snapshot_steps(config) if step <= last), (key, last)]


def last_step(config: Config) -> int:
    """The step of the adapter of `config.train`: train.steps, or what was kept where a guard has stopped it."""
    found = stopped(config)
    return config.train.steps if found is None else found["step"]


def stopped(config: Config) -> dict[str, Any] | None:
    """The record of the adapter of `config.train`, where a guard has stopped its training: see its key `stopped`."""
    if not config.train.limits:
        return None
    try:
        record = json.loads((RunDir.of(config).adapters / adapter_key(config.train) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    found = record.get("stopped")
    return record if found and found["step"] <= config.train.steps else None


def curve(config: Config) -> list[dict[str, Any]]:
    """The validations of `config.train`, from step 0 on; none where it has not begun."""
    path = RunDir.of(config).curves / f"{adapter_key(config.train)}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def validated(rows: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last of some validations that was made by a step; empty where none was."""
    return next((row for row in reversed(rows) if row["step"] <= step), {})


def standings(config: Config) -> list[dict[str, Any]]:
    """What the adapter of `config.train` was worth at each validation, the last being what the training came to: its
    curve, but after the step of what a guard kept the values of that."""
    rows, last = curve(config), last_step(config)
    kept = validated(rows, last)
    return [row if row["step"] <= last else {**kept, "step": row["step"]} for row in rows]


def best_folder(train: Train) -> str:
    """The name of the adapter of the validation with the best held-out reward, where train.keep_best asks for it."""
    return f"{adapter_key(train)}@best"
