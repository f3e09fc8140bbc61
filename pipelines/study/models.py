"""The model of a configuration, how it is sampled, and hashes of what it and its adapters hold."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from aig import adapters, models
from aig.models import LatentModel
from aig.sampler import Sampling
from pipelines.config import Config, ConfigError, given
from pipelines.runs.directory import RunDir
from pipelines.show.program import command_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: Config) -> LatentModel:
    """Load the model, for the image size that `config.model` asks for or for its own."""
    asked = config.model
    model = models.load(asked.name, device(config), DTYPES[asked.dtype], asked.revision, asked.variant)
    return sized(model, config)


def sized(model: LatentModel, config: Config) -> LatentModel:
    """The model for the image size that `config.model` asks for, or for its own."""
    asked = config.model
    if asked.height is None and asked.width is None:
        return model
    height, width = model.image_size
    return model.sized(asked.height or height, asked.width or width)


def device(config: Config) -> torch.device:
    """The device of `config.model`; ConfigError if this machine lacks it."""
    asked = config.model
    if asked.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is 'cuda', and torch finds no GPU here: take model.device=auto or cpu")
    return torch.device(asked.device)


def resolve_sampling(config: Config, defaults: Sampling) -> Sampling:
    """The model's own sampling with what the configuration sets."""
    keys = ("steps", "guidance", "eta", "scheduler", "negative", "distilled")
    asked = {key: getattr(config.model, key) for key in keys} | {"block": config.evaluate.block}
    return replace(defaults, **{key: value for key, value in asked.items() if value not in (None, "")})


def rollout_sampling(config: Config, defaults: Sampling) -> Sampling:
    """How a training draws images without gradient."""
    sampling = resolve_sampling(config, defaults)
    return replace(sampling, max_rows=config.train.rollout_batch or sampling.max_rows)


def evaluation_sampling(config: Config, defaults: Sampling) -> Sampling:
    """How an evaluation's images are drawn."""
    sampling = resolve_sampling(config, defaults)
    return replace(sampling, max_rows=config.evaluate.max_rows or sampling.max_rows)


@lru_cache
def fingerprint(model: str, revision: str | None = None, variant: str | None = None) -> str:
    """`aig.models.fingerprint`, computed once per process, of the files that are loaded."""
    with given("model.name"):
        return models.fingerprint(model, revision, variant)


def adapter_digest(config: Config, name: str) -> str:
    """`aig.adapters.digest` of an adapter of the run; ConfigError if it is not trained."""
    folder = RunDir.of(config).adapters / name
    try:
        adapters.weights_file(folder)
    except ValueError:
        raise ConfigError(
            f"adapter {name!r} is not trained: run `{command_line('sweep')}` with the same configuration first"
        ) from None
    with given():
        return adapters.digest(folder)
