"""The model of a configuration: loaded, sized and sampled as it says."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from aig import adapters, models
from aig.models import LatentModel
from aig.sampler import Sampling
from pipelines.config import Config, ConfigError, given
from pipelines.runs.directory import RunDir

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: Config) -> LatentModel:
    """The model of `config.model`, for its image size, where it says."""
    wanted = config.model
    model = models.load(wanted.name, device(config), DTYPES[wanted.dtype], wanted.revision, wanted.variant)
    return sized(model, config)


def sized(model: LatentModel, config: Config) -> LatentModel:
    """The model for the image size that `config.model` asks for, or for its own."""
    wanted = config.model
    if wanted.height is None and wanted.width is None:
        return model
    height, width = model.image_size
    return model.sized(wanted.height or height, wanted.width or width)


def device(config: Config) -> torch.device:
    """The device that `config.model` asks for; ConfigError where there is none."""
    wanted = config.model.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is 'cuda', and torch finds no GPU here: take model.device=auto or cpu")
    return torch.device(wanted)


def resolve_sampling(config: Config, defaults: Sampling) -> Sampling:
    """The model's own sampling with what the configuration sets."""
    keys = ("steps", "guidance", "eta", "scheduler", "negative", "distilled")
    asked = {key: getattr(config.model, key) for key in keys} | {"block": config.evaluate.block}
    return replace(defaults, **{key: value for key, value in asked.items() if value not in (None, "")})


def evaluation_sampling(config: Config, defaults: Sampling) -> Sampling:
    """How an evaluation's images are drawn."""
    sampling = resolve_sampling(config, defaults)
    return replace(sampling, max_rows=config.evaluate.max_rows or sampling.max_rows)


def adapter_digest(config: Config, name: str) -> str:
    """`aig.adapters.digest` of an adapter of the run; ConfigError if it is not trained."""
    folder = RunDir.of(config).adapters / name
    try:
        adapters.weights_file(folder)
    except ValueError:
        raise ConfigError(
            f"adapter {name!r} is not trained: run `python -m pipelines sweep` with the same configuration first"
        ) from None
    with given():
        return adapters.digest(folder)


@lru_cache
def fingerprint(model: str, revision: str | None = None, variant: str | None = None) -> str:
    """`aig.models.fingerprint`, settled once in a process: of the files that are loaded."""
    with given("model.name"):
        return models.fingerprint(model, revision, variant)
