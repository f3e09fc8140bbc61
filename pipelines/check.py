"""Everything that can be wrong with a configuration beyond its ranges, found before any Ray process starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open

from aig import adapters, rewards, schedules
from aig.metrics import features
from aig.models import Model
from pipelines import layout, normalization, rewarding, study
from pipelines.config import Config, ConfigError
from pipelines.generate import adapter_digest
from pipelines.layout import RunFiles
from pipelines.training import draft_config


def check_training(config: Config, *, sweep: bool) -> Model:
    """Load and try out what `config.train`, or every training of the sweep, needs; returns the model.

    ValueError names what is wrong and the fix.
    """
    model = _model(config)
    wanted = layout.trainings(config) if sweep else [config.train]
    for train in wanted:
        key = "sweep.rewards" if sweep else "train.reward"
        with _named(key):
            rewarding.check(config, train.reward, trained=True)
        with _named("train"):
            draft_config(replace(config, train=train), model)
    if config.train.method == "full" and config.model.dtype != "float32":
        raise ConfigError(
            f"train.method is full and model.dtype {config.model.dtype}, in which Adam's small steps are lost: take "
            "model.dtype=float32, and train.autocast=bfloat16 for speed"
        )
    if config.train.num_workers > config.train.batch:
        raise ConfigError(
            f"train.num_workers is {config.train.num_workers} and train.batch {config.train.batch}: "
            "give each worker an image"
        )
    prompts = study.resolve_prompts(config.train.prompts, "train.prompts")
    with _named("train.prompts"):
        model.encode(prompts)
    _check_scores(config)
    _check_adapters(config, wanted)
    return model


def check_evaluation(config: Config, model: Model | None = None, *, trained: bool) -> Model:
    """Load and try out what the evaluation needs, with `trained` the adapters too; returns the model.

    ValueError names what is wrong and the fix.
    """
    evaluate = config.evaluate
    for key in ("schedules", "kl_schedules"):
        for text in getattr(evaluate, key):
            with _named(f"evaluate.{key}"):
                schedules.parse(text)
    names = [arm.arm.name for arm in study.all_arms(config)]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ConfigError(f"two arms are called {double!r}: give each LoRA scale and schedule once")
    model = model or _model(config)
    with _named("evaluate.prompts"):
        model.encode(study.resolve_prompts(evaluate.prompts, "evaluate.prompts"))
    _check_scores(config)
    if trained:
        for name in dict.fromkeys(arm.arm.adapter for arm in study.all_arms(config)):
            adapter_digest(config, name)
            if name is not None:
                _check_readable(adapters.weights_file(RunFiles(config.directory).adapters / name))
        _check_adapters(config, layout.trainings(config))
    return model


def check_weights(config: Config, model: Model) -> Iterator[str]:
    """Load each reward of the run, downloading what is not here, and score an image of the model's size; a line each.

    One is in memory at a time. ValueError where weights are not to be had or do not fit, or where a score is not
    finite.
    """
    columns = normalization.wanted(config)
    gold = rewarding.gold(config)
    for name, spec in {**columns.parts, **({} if gold is None else {gold.column: gold})}.items():
        reward = rewards.load(spec)
        height, width = model.image_size
        image = torch.linspace(0, 255, width).to(torch.uint8).expand(1, 3, height, width)
        score = float(rewards.report(reward, image, ["a red star"])[0])
        if not math.isfinite(score):
            raise ConfigError(
                f"reward {name!r} loads, and scores an image {score}: its weights are damaged; get others"
            )
        yield f"Reward {name!r} loads, and scores a grey ramp {score:.4g}."


def _model(config: Config) -> Model:
    # Their bars and notes on loading would stand between ours.
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    with _named("model.name"):
        try:
            model = study.load_model(config)
        except (
            OSError,
            RuntimeError,
        ) as error:  # what diffusers and torch raise for files that are cut off or do not fit
            raise ConfigError(
                f"model.name: {config.model.name} cannot be loaded ({error}): its weights are corrupt or do not fit; "
                "save the pipeline again, or give another model"
            ) from error
    with _named("model"):
        study.resolve_sampling(config, model.defaults)
    return model


def _check_scores(config: Config) -> None:
    evaluate = config.evaluate
    with _named("evaluate.rewards"):
        for name in study.scored_rewards(config):
            rewarding.check(config, name)
        rewarding.columns(config, study.scored_rewards(config))
    if evaluate.gold is not None:
        with _named("evaluate.gold"):
            rewarding.check(config, evaluate.gold)
            rewarding.gold(config)
    with _named("evaluate.features"):
        features.load(evaluate.features)


def _check_adapters(config: Config, trainings: list) -> None:
    """Adapters that are there have to be this configuration's own."""
    files = RunFiles(config.directory)
    for train in trainings:
        single = replace(config, train=train)
        for name, step in layout.adapter_folders(single):
            folder = files.adapters / name
            if not (folder / adapters.RECORD).exists():
                continue
            found, wanted = adapters.read_record(folder), study.training_record(single, train, step)
            if not study.same_record(found, wanted):
                raise ConfigError(
                    f"{folder}: this adapter was made by another configuration or for other model weights "
                    f"({_difference(found, wanted)}): delete the folder to train it again, or choose another run.name"
                )


def _check_readable(path: Path) -> None:
    try:
        with safe_open(path, "pt"):
            return
    except SafetensorError as error:
        raise ConfigError(
            f"{path}: the adapter's weights are corrupt ({error}): delete the folder and train it again"
        ) from error


def _difference(found: dict, wanted: dict, prefix: str = "") -> str:
    """The first key that differs."""
    for key, value in wanted.items():
        if isinstance(value, dict):
            inner = _difference(found.get(key) or {}, value, f"{prefix}{key}.")
            if inner:
                return inner
        elif found.get(key) != value:
            return f"{prefix}{key} = {found.get(key)!r}, not {value!r}"
    return ""


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put the configuration's key before what a library says about its value."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
