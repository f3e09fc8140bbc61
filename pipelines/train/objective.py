"""What a training tunes and the objective that it optimizes."""

from __future__ import annotations

from torch import nn

from aig import adapters
from aig.models import Model
from aig.objective import DraftConfig, check_precision, grid_of
from pipelines.config import Config, Train
from pipelines.study import models

ADAPTER = "tuned"  # the adapter's name in the denoiser


def attach(settings: Train, denoiser: nn.Module) -> None:
    """Add what is trained to the denoiser: a LoRA, or a second set of all weights."""
    if settings.method == "full":
        adapters.full(denoiser, ADAPTER, settings.offload)
    else:
        adapters.attach(denoiser, ADAPTER, settings.rank, settings.alpha, settings.targets, settings.seed)


def draft_config(config: Config, model: Model) -> DraftConfig:
    """The objective of `config.train` on this model; ValueError if the two do not go together."""
    settings = config.train
    check_precision(model)
    sampling = models.rollout_sampling(config, model.defaults)
    micro_batch = min(settings.micro_batch, settings.batch)
    objective = DraftConfig(
        sampling, settings.k, settings.lv, settings.kl_weight, settings.kl, micro_batch, settings.autocast,
        settings.on_nan, settings.kl_steps, settings.reward_smoothing, settings.smoothing_draws,
    )  # fmt: skip
    grid_of(model, objective)
    return objective
