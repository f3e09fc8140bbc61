"""A diffusers scheduler as the sampler steps it: its own formula, with a memory that belongs to the trajectory."""

# diffusers annotates its tensors too narrowly.
# pyright: reportArgumentType=false
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from aig import schedules
from aig.models.protocol import Model, Sampling
from aig.schedules import Curve

CLASSES = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "sde-dpm": DPMSolverMultistepScheduler,
    "flow": FlowMatchEulerDiscreteScheduler,
}
FLOW = ("dpm", "sde-dpm", "flow")  # the kinds that can follow a velocity


@dataclass(frozen=True)
class State:
    """A trajectory's latents (B, C, H, W), and a multistep scheduler's memory of its steps, the latest last."""

    x: Tensor
    memory: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> State:
        return State(self.x[rows], tuple(tensor[rows] for tensor in self.memory))


class Grid:
    """A scheduler set to T steps: its times in sampling order, one step of its update, the scale of a prediction.

    Raises ValueError for a scheduler that is not in `CLASSES`, and for noise that it cannot make.
    """

    def __init__(self, model: Model, sampling: Sampling) -> None:
        self.scheduler = scheduler_for(model, sampling)
        model.set_timesteps(self.scheduler, sampling.steps)
        self.times: Tensor = self.scheduler.timesteps  # (T,)
        self._times = self.times.cpu()  # a scheduler looks values up by time: avoids waiting for the device
        self.t_max: int = self.scheduler.config.num_train_timesteps
        self.eta = sampling.eta
        self.name = type(self.scheduler).__name__
        self._ddim = isinstance(self.scheduler, DDIMScheduler)
        self._multistep = isinstance(self.scheduler, DPMSolverMultistepScheduler)
        self.order: int = self.scheduler.config.solver_order if self._multistep else 1
        """Predictions that a step reads: its own and, if multistep, those of order - 1 steps before it."""
        self._deviations: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        """Whether a step adds noise."""
        return (
            self.eta > 0 if self._ddim else self._multistep and self.scheduler.config.algorithm_type.startswith("sde")
        )

    def start(self, noise: Tensor, model: Model) -> Tensor:
        """x_T from standard normal noise, in the model's device and dtype."""
        return (noise * getattr(self.scheduler, "init_noise_sigma", 1.0)).to(model.device, model.dtype)

    def scaled(self, i: int, x_t: Tensor) -> Tensor:
        """x_t as the denoiser takes it at step i."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x_t
        self._at(i)
        return self.scheduler.scale_model_input(x_t, self._times[i])

    def move(self, i: int, prediction: Tensor, state: State, noise: Tensor | None = None) -> State:
        """The trajectory's next state by the scheduler's own formula (DDIM: Song et al. 2020, equation 12)."""
        self._at(i)
        options: dict[str, Any] = {}
        if self._ddim:
            options = {"eta": self.eta, "variance_noise": noise}
        if self._multistep:
            options = {"variance_noise": noise}
            self.scheduler.model_outputs = [None] * (self.order - len(state.memory)) + list(state.memory)
            self.scheduler.lower_order_nums = len(state.memory)
        x = self.scheduler.step(prediction, self._times[i], state.x, **options, return_dict=False)[0]
        memory = self.scheduler.model_outputs if self._multistep else []
        return State(x, tuple(tensor for tensor in memory if tensor is not None))

    def step(self, i: int, prediction: Tensor, x_t: Tensor, noise: Tensor | None = None) -> Tensor:
        """The next latents of a trajectory without memory."""
        return self.move(i, prediction, State(x_t), noise).x

    def add_noise(self, i: int, x_0: Tensor, noise: Tensor) -> Tensor:
        """x_0 noised to the time of step i."""
        self._at(i)
        times = self.times[i].expand(len(x_0))
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            return self.scheduler.scale_noise(x_0, times, noise)
        return self.scheduler.add_noise(x_0, noise, times)

    def weights(self, schedule: Curve) -> list[float]:
        """The weight of the tuned model at each step: u = i/T, or 1 - t/t_max in the time domain."""
        curve, times = schedules.as_schedule(schedule), self._times.tolist()
        if curve.domain == "time" and not all(0 <= t <= self.t_max for t in times):
            raise ValueError(
                f"schedule {schedules.format_name(curve)!r} needs times in [0, {self.t_max}], which {self.name} with "
                f"timestep_type = {self.scheduler.config.get('timestep_type')!r} does not use: leave '@time' out"
            )
        return schedules.weights(curve, times, self.t_max)

    def eps_scale(self, i: int) -> float:
        """The factor from a squared difference of predictions to one of eps: alpha_bar for v-prediction, 1 for eps.

        Also 1 for a velocity, which is itself mixed and penalized.
        """
        kind = self.scheduler.config.get("prediction_type", "flow_prediction")
        if kind in ("epsilon", "flow_prediction"):
            return 1.0
        if self._ddim:
            alpha_bar = float(self.scheduler.alphas_cumprod[int(self._times[i])])
        else:
            alpha_bar = float(1 / (1 + self.scheduler.sigmas[i] ** 2))
        return alpha_bar if kind == "v_prediction" else alpha_bar / (1 - alpha_bar)

    def deviation(self, i: int) -> float:
        """Standard deviation of the noise that step i adds to each latent value; 0 if it adds none.

        A step is affine in its noise, so two steps of the scheduler, with noise 0 and 1, measure it.
        """
        if not self.stochastic:
            return 0.0
        if i not in self._deviations:
            zero = torch.zeros(1, 1, dtype=torch.float64, device=self.times.device)
            state = State(zero, (zero,) * (min(i, self.order) if self._multistep else 0))
            moved = self.move(i, zero, state, zero + 1).x - self.move(i, zero, state, zero).x
            self._deviations[i] = float(moved)
        return self._deviations[i]

    @property
    def has_path_kl(self) -> bool:
        """Whether any step adds noise, so that two models' trajectories have densities to compare."""
        return any(self.deviation(i) > 0 for i in range(len(self)))

    def _at(self, i: int) -> None:
        # Schedulers count their own steps, but arms and probes share this one: set its count to i.
        if not self._ddim:
            self.scheduler.set_begin_index(i)
            self.scheduler._step_index = i


def scheduler_for(model: Model, sampling: Sampling) -> Any:
    """The scheduler that samples a model; ValueError if the two do not fit."""
    scheduler = make_scheduler(model.scheduler, sampling.scheduler)
    if sampling.eta > 0 and not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"sampling.eta = {sampling.eta} needs DDIM, not {type(scheduler).__name__}: set eta to 0, or "
            "sampling.scheduler to 'ddim'"
        )
    return scheduler


def make_scheduler(own: Any, name: str | None) -> Any:
    """A copy of a model's own scheduler, or one of another kind with the same noise schedule.

    Raises ValueError that names the scheduler and the known kinds.
    """
    known = ", ".join(CLASSES)
    if name is None:
        if not isinstance(own, tuple(CLASSES.values())):
            raise ValueError(
                f"the model's scheduler is {type(own).__name__}, which the sampler does not know: set "
                f"sampling.scheduler to one of {known}"
            )
        if own.config.get("stochastic_sampling"):
            raise ValueError(
                f"{type(own).__name__} with stochastic_sampling draws noise that arms cannot share: set it to false in "
                "the scheduler's configuration"
            )
        return copy.deepcopy(own)
    flow = isinstance(own, FlowMatchEulerDiscreteScheduler) or own.config.get("prediction_type") == "flow_prediction"
    if flow != (name == "flow") and not (flow and name in FLOW):
        predicts, fits = ("a velocity", FLOW) if flow else ("noise", [kind for kind in CLASSES if kind != "flow"])
        raise ValueError(
            f"sampling.scheduler = {name!r} does not fit a model that predicts {predicts}: use one of {', '.join(fits)}"
        )
    return CLASSES[name].from_config(own.config, **_changes(own.config, name, flow))


def _changes(config: Any, name: str, flow: bool) -> dict[str, Any]:
    """Settings that a kind's own defaults would get wrong."""
    if name == "ddim":
        # DDIM's default clips x_0 to [-1, 1], which is right for pixels and wrong for latents.
        return {} if "clip_sample" in config else {"clip_sample": False}
    if name == "flow":
        return {"shift": config.get("shift", config.get("flow_shift", 1.0)), "stochastic_sampling": False}
    if name in ("dpm", "sde-dpm"):
        changes: dict[str, Any] = {"algorithm_type": "dpmsolver++" if name == "dpm" else "sde-dpmsolver++"}
        if flow:
            shift = config.get("flow_shift", config.get("shift", 1.0))
            changes |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        return changes
    return {}
