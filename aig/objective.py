"""What a DRaFT training optimizes: its settings, and the sampling grid that they need."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from aig.models.protocol import Model, Sampling
from aig.sampler import Grid

KL_STEPS = ("last", "early", "all")
KL_FORMS = ("eps_mse", "path")
ON_NAN = ("stop", "skip")


@dataclass(frozen=True)
class DraftConfig:
    """The objective of a DRaFT training. Raises ValueError that names a field out of range and what is allowed.

    Examples:
        >>> aig.DraftConfig(aig.Sampling(steps=10, guidance=3.0), k=2, kl_weight=0.1).by_path
        False
    """

    sampling: Sampling
    """How training images are sampled."""
    k: int = 1
    """Denoising steps that carry gradient, 1 to sampling.steps."""
    lv: int = 1
    """Draws of the last step's noise; above 1 is DRaFT-LV and needs k = 1."""
    kl_weight: float = 0.0
    """Weight of the KL term, at least 0, in the reward's units."""
    kl: str = "eps_mse"
    """eps_mse: mean over the last K steps of ||eps - eps_base||^2 / numel (flow matching: of the velocities); path:
    nats of the last K transitions, each of which must add noise (`grid_of` refuses others)."""
    micro_batch: int = 8
    """Images that carry gradient at once."""
    autocast: str | None = None
    """bfloat16: denoiser and decoder under autocast, with float32 weights; None: in their own precision. The reward
    computes in its own precision either way, on images in float32."""
    on_nan: str = "stop"
    """For an image whose pixels, score or KL term are not finite: stop raises and names it; skip leaves it out."""
    kl_steps: str = "last"
    """The steps of the KL term. last: the last K, as published. early, those before them, and all: one such step drawn
    per image, weighted so that the term's mean over draws is the mean over these steps (path: the sum); see
    `DrawnStates`. It costs a prediction with gradient and one without."""
    reward_smoothing: float = 0.0
    """Standard deviation, in pixels of [0, 1], of Gaussian noise on the images that the loss scores; 0 for none. The
    noisy images are clamped to [0, 1], and the noise is of the image's own seed. RSA-FT (arXiv 2603.21175) flattens a
    reward by perturbing its images; that the perturbation is Gaussian and averaged over is ours. The smoothed reward is
    the one in `train_step`'s sums."""
    smoothing_draws: int = 1
    """Noisy copies of each image, over which the smoothed reward is a mean. Each is in memory."""

    def __post_init__(self) -> None:
        steps = self.sampling.steps
        checks = {
            "k": (1 <= self.k <= steps, f"in 1..{steps} (sampling.steps)"),
            "lv": (self.lv >= 1 and (self.lv == 1 or self.k == 1), "at least 1, and 1 unless k = 1"),
            "kl_weight": (self.kl_weight >= 0, "at least 0"),
            "kl": (self.kl in KL_FORMS, f"one of {', '.join(KL_FORMS)}"),
            "kl_steps": (
                self.kl_steps in KL_STEPS and not (self.drawn and self.kl_steps == "early" and self.k == steps),
                f"one of {', '.join(KL_STEPS)}, and not early if k is sampling.steps, which leaves no earlier step",
            ),
            "reward_smoothing": (0 <= self.reward_smoothing < math.inf, "finite and at least 0"),
            "smoothing_draws": (self.smoothing_draws >= 1, "at least 1"),
            "micro_batch": (self.micro_batch >= 1, "at least 1"),
            "autocast": (self.autocast in (None, "bfloat16"), "bfloat16 or None"),
            "on_nan": (self.on_nan in ON_NAN, f"one of {', '.join(ON_NAN)}"),
        }
        for name, (ok, allowed) in checks.items():
            if not ok:
                raise ValueError(f"draft.{name} = {getattr(self, name)!r} must be {allowed}")

    @property
    def by_path(self) -> bool:
        """Whether the loss contains the path KL."""
        return self.kl == "path" and self.kl_weight > 0

    @property
    def drawn(self) -> bool:
        """Whether the loss contains a KL at drawn steps."""
        return self.kl_steps != "last" and self.kl_weight > 0


def steps_of(config: DraftConfig, total: int) -> range:
    """The steps, of `total`, that the KL counts: the last K, those before them, or all."""
    last = total - config.k
    return {"last": range(last, total), "early": range(last), "all": range(total)}[config.kl_steps]


def grid_of(model: Model, config: DraftConfig) -> Grid:
    """The grid of an objective's sampling; ValueError for the path KL if one of its steps has none.

    A step without noise has none: its two transitions are points without a density, so its gradient would be missing.
    At drawn steps, a step that reads earlier predictions has none, since only the state is kept.
    """
    grid = Grid(model, config.sampling)
    lacking = _lacking(grid, config) if config.by_path else None
    if lacking is not None:
        fixes = [
            keys for keys, change in NOISY.items()
            if _has_path_kl(model, replace(config, sampling=replace(config.sampling, **change)))
        ]  # fmt: skip
        fix = ", or ".join([*fixes, "kl = 'eps_mse'"])
        sampler = f"{config.sampling.scheduler or 'its own scheduler'} ({grid.name}, eta = {config.sampling.eta:g})"
        needs, lacks = lacking
        raise ValueError(f"draft.kl = 'path' needs {needs}, and {model.name} with {sampler} {lacks}: take {fix}")
    return grid


# Settings that may add noise in every step. Whether they do depends on the configuration of the model's own scheduler,
# which sets the noise level at which the last step ends.
NOISY: dict[str, dict[str, Any]] = {
    "sampling.scheduler = 'ddim' with sampling.eta > 0": {"scheduler": "ddim", "eta": 1.0},
    "sampling.scheduler = 'sde-dpm'": {"scheduler": "sde-dpm", "eta": 0.0},
}


def _lacking(grid: Grid, config: DraftConfig) -> tuple[str, str] | None:
    """What the path KL needs, and how the grid lacks it, if it does."""
    steps, total = steps_of(config, len(grid)), len(grid)
    bare = [i for i in steps if not grid.deviation(i) > 0]
    if bare:
        counted = {"last": f"the last {config.k} of {total}", "early": f"the first {len(steps)} of {total}"}
        without = f"step{'s' * (len(bare) > 1)} {', '.join(str(i + 1) for i in bare)}"
        return f"noise in each of {counted.get(config.kl_steps, f'all {total}')} steps", f"adds none in {without}"
    if config.drawn and grid.order > 1:
        return f"steps that read one prediction for kl_steps = {config.kl_steps!r}", f"reads {grid.order}"
    return None


def _has_path_kl(model: Model, config: DraftConfig) -> bool:
    try:
        return _lacking(Grid(model, config.sampling), config) is None
    except ValueError:  # the scheduler does not fit the model
        return False


def check_precision(model: Model) -> None:
    """Raise ValueError for a model in float16, whose gradients would need a loss scaler."""
    if model.dtype == torch.float16:
        raise ValueError(
            f"{model.name} is in float16, where small gradients vanish without a loss scaler, and there is none: train "
            "it in bfloat16 or float32 (model.dtype)"
        )
