"""The trainings of a run and the adapters that they make, read without torch."""

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
    """The name of a training's adapter, as fragile-k1-kl10-s0, fragile-k1-kl10-early-s0 or
    fragile-k1-kl10-lr0.0003-s0."""
    more = "".join(f"-{word}" for word in (train.drawn_kl, train.label) if word)
    return f"{slug(train.reward)}-k{train.k}-kl{train.kl_weight:g}{more}-s{train.seed}"


def seedless_key(train: Train) -> str:
    """The adapter's name without its training seed, as fragile-k1-kl10."""
    return adapter_key(train).removesuffix(f"-s{train.seed}")


SWEPT = ("reward", "k", "kl_weight", "kl_steps", "lr", "rank", "seed")
"""What a sweep varies: the arguments of `training`."""


def training(
    config: Config, *, reward: str, k: int, kl_weight: float, lr: float, rank: int, seed: int,
    kl_steps: str | None = None,
) -> Train:  # fmt: skip
    """`config.train` with these settings; its label names those that differ and have no place of their own in a key.

    `kl_steps` None keeps those of `config.train`.
    """
    train = config.train
    varied = [train.label] * bool(train.label)
    varied += [f"lr{lr:g}"] * (lr != train.lr) + [f"r{rank}"] * (rank != train.rank)
    alpha = train.alpha if rank == train.rank else train.alpha * rank / train.rank  # keeps the adapter's scale
    return replace(
        train, reward=reward, k=k, kl_weight=kl_weight, kl_steps=kl_steps or train.kl_steps, lr=lr, rank=rank,
        alpha=alpha, seed=seed, label="-".join(varied),
    )  # fmt: skip


def trainings(config: Config, drawn: Sequence[dict[str, Any]] | None = None) -> list[Train]:
    """Every training of a grid, or a search's references and what it has drawn so far (`drawn`, or the run's record).

    The unregularized ones come first, since most arms depend on them.
    """
    sweep = config.sweep
    if sweep.search != "grid":
        drawn = read_drawn(config) if drawn is None else drawn
        return [*references(config), *(training(config, **settings) for settings in drawn)]
    kls = [*((w, config.train.kl_steps) for w in sweep.kl_weights), *((w, "early") for w in sweep.early_kl_weights)]
    varied = (
        sorted(dict.fromkeys(kls), key=lambda kl: kl[0]),
        sweep.rewards,
        sweep.ks,
        *learning(config),
        sweep.train_seeds,
    )
    return [
        training(config, reward=r, k=k, kl_weight=w, kl_steps=steps, lr=lr, rank=rank, seed=s)
        for (w, steps), r, k, lr, rank, s in product(*varied)
    ]


def saved_adapters(files: RunDir) -> list[str]:
    """The names of the complete adapters, sorted; the folders of killed writers are hidden."""
    names = (path.parent.name for path in files.adapters.glob(f"*/{RECORD}"))
    return sorted(name for name in names if not name.startswith("."))


def external(config: Config) -> dict[str, Path]:
    """By name the sources of the adapters that were made elsewhere; the run has copies."""
    return {name: Path(path) for name, _, path in (text.partition("=") for text in config.evaluate.adapters)}


def references(config: Config) -> list[Train]:
    """train.* with KL weight 0 for every reward and K: what a search compares its trials with."""
    train, sweep = config.train, config.sweep
    return [
        training(config, reward=r, k=k, kl_weight=0.0, lr=train.lr, rank=train.rank, seed=sweep.train_seeds[0])
        for r, k in product(sweep.rewards, sweep.ks)
    ]


def learning(config: Config) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The sweep's learning rates and ranks."""
    return config.sweep.lrs or (config.train.lr,), config.sweep.ranks or (config.train.rank,)


def read_drawn(config: Config) -> list[dict[str, Any]]:
    """The settings of the trials that a search has drawn, in order; none before it has begun."""
    return [settings for generation in read_sweep(config).get("drawn", []) for settings in generation]


def read_sweep(config: Config) -> dict[str, Any]:
    """The content of `sweep.json`, empty before a sweep has begun; ConfigError if it cannot be read."""
    path = RunDir.of(config).sweep
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore it, or choose another run.name") from error


def snapshot_steps(config: Config) -> list[int]:
    """The steps of the snapshots; the last step's is the adapter itself."""
    return list(range(config.train.snapshot_every, config.train.steps, config.train.snapshot_every))


def adapter_folders(config: Config) -> list[tuple[str, int]]:
    """Names and steps of the folders that `config.train` leaves: snapshots, then the adapter itself.

    A training that a guard stopped has no snapshot later than its adapter.
    """
    key, last = adapter_key(config.train), last_step(config)
    return [*((f"{key}@{step}", step) for step in snapshot_steps(config) if step <= last), (key, last)]


def last_step(config: Config) -> int:
    """The step of the adapter of `config.train`: train.steps, or the one that a guard kept."""
    record = stopped(config)
    return config.train.steps if record is None else record["step"]


def stopped(config: Config) -> dict[str, Any] | None:
    """The record of the adapter of `config.train` if a guard stopped its training: see its key `stopped`."""
    if not config.train.limits:
        return None
    try:
        record = json.loads((RunDir.of(config).adapters / adapter_key(config.train) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    stop = record.get("stopped")
    return record if stop and stop["step"] <= config.train.steps else None


def curve(config: Config) -> list[dict[str, Any]]:
    """The validations of `config.train`, from step 0 on; none before it has begun."""
    path = RunDir.of(config).curves / f"{adapter_key(config.train)}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def validated(rows: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last of these validations up to a step; empty if there is none."""
    return next((row for row in reversed(rows) if row["step"] <= step), {})


def standings(config: Config) -> list[dict[str, Any]]:
    """What the adapter of `config.train` was worth at each validation: its curve, with the values of the adapter that a
    guard kept for all later steps."""
    rows, last = curve(config), last_step(config)
    kept = validated(rows, last)
    return [row if row["step"] <= last else {**kept, "step": row["step"]} for row in rows]


def best_folder(train: Train) -> str:
    """The name of the adapter with the best held-out reward, which train.keep_best keeps."""
    return f"{adapter_key(train)}@best"
