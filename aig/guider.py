"""Annealed importance guidance as a guider of diffusers' modular pipelines.

pipe.update_components(guider=AnnealedImportanceGuidance("power:2", guidance_scale=5.0, scheduler=pipe))
"""

# diffusers registers its components lazily, which pyright cannot follow.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from aig import schedules
from aig.clock import Clock, followed
from aig.denoiser import AnnealedDenoiser, Tuners, check_space, weighted, without

__all__ = ["AnnealedImportanceGuidance"]


class AnnealedImportanceGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance on predictions (1 - w) base + w tuned, w being the schedule's weight at the step.

    It makes four predictions, conditional and unconditional ones of base and tuned model; two if the weight is 0 or 1
    or the guidance scale is 1, and one if both hold. The base's are made with the active adapters, or the one named
    `adapter`, switched off. With `space` = "weight" the LoRA's contribution is scaled by w instead, as in
    `AnnealedDenoiser`, for half the predictions. `schedule` is a text that `aig.parse` reads; ValueError for any other,
    a coin, and one that is still to be fitted. `guidance_rescale` acts on the mix; the other parameters are those of
    `ClassifierFreeGuidance`.

    `scheduler` is the pipeline or its scheduler, which knows the step. It is not saved: call `guider.follow(pipe)` on a
    loaded guider. Without it, progress is the loop's own step over its number of steps: right for one denoiser call per
    step from pure noise, and refused for second-order schedulers and the `time` domain.

    Examples:
        >>> guider = aig.AnnealedImportanceGuidance("power:2", guidance_scale=5.0)
        >>> guider.set_state(step=5, num_inference_steps=10, timestep=None)
        >>> guider.num_conditions
        4
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_cond_base", "pred_uncond_base"]  # noqa: RUF012 - diffusers' own
    ignore_for_config = ["scheduler"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        schedule: str = "power:2",
        adapter: str | None = None,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        scheduler: Any = None,
        space: str = "prediction",
    ) -> None:
        super().__init__(
            guidance_scale=guidance_scale, guidance_rescale=guidance_rescale,
            use_original_formulation=use_original_formulation, start=start, stop=stop, enabled=enabled,
        )  # fmt: skip
        # diffusers takes positional arguments for defaults, which it leaves out of copies.
        self.register_to_config(_use_default_values=[])
        check_space(space)
        self.schedule = followed(schedule)
        self.adapter, self.space = adapter, space
        self.clock: Clock | None = None
        self._weight: float | None = None
        self._batches: list[str] = []
        self._off = ExitStack()
        self._tuners: Tuners | None = None
        if scheduler is not None:
            self.follow(scheduler)

    def follow(self, scheduler: Any) -> None:
        """Read the step from this pipeline's scheduler, or this scheduler."""
        self.clock = Clock(scheduler)

    def new(self, **kwargs: Any) -> Any:
        other: Any = super().new(**kwargs)
        if other.clock is None:
            other.clock = self.clock
        return other

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        super().set_state(step, num_inference_steps, timestep)
        self._off.close()  # a denoiser that failed left the adapters off
        self._weight = self._weight_at(step, num_inference_steps, timestep)
        cfg = ["", "un"] if super().num_conditions == 2 else [""]
        if self.space == "weight":
            kinds = ["_base" if self._weight == 0 else ""]
        else:
            kinds = ["_base"] * (self._weight != 1) + [""] * (self._weight != 0)
        self._batches = [f"pred_{half}cond{kind}" for kind in kinds for half in cfg]

    def _weight_at(self, step: int, num_inference_steps: int, timestep: Tensor) -> float:
        if self.clock is not None:
            return self.clock.weight(self.schedule, timestep)
        if self.schedule.domain == "time" or step >= num_inference_steps:
            raise ValueError(
                f"schedule {schedules.format_name(self.schedule)!r} at step {step} of {num_inference_steps} needs the "
                "scheduler; call guider.follow(pipe)"
            )
        return self.schedule(step / num_inference_steps, (num_inference_steps - 1) / num_inference_steps)

    @property
    def num_conditions(self) -> int:
        """The predictions of this step; before the first step 2 or 1, with or without unconditional inputs."""
        return len(self._batches) or super().num_conditions

    @property
    def is_conditional(self) -> bool:
        return 0 < self._count_prepared <= len(self._batches) and "un" not in self._batches[self._count_prepared - 1]

    def prepare_inputs(self, data: dict[str, tuple[Tensor, Tensor]]) -> list[Any]:
        return [self._prepare_batch(data, int("un" in name), name) for name in self._batches]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        return [
            self._prepare_batch_from_block_state(input_fields, data, int("un" in name), name) for name in self._batches
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        if type(denoiser) is AnnealedDenoiser:
            raise ValueError("the denoiser is annealed already; undo that with aig.annealed(pipe, None)")
        if self._tuners is None or self._tuners.denoiser is not denoiser:
            self._tuners = Tuners(denoiser)
        tuners = self._tuners
        layers, names, others = tuners.annealed(self.adapter, self.space)
        if self._batches[self._count_prepared - 1].endswith("_base"):
            self._off.enter_context(without(layers, names))
        elif self.space == "weight" and self._weight != 1:

            def scale(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
                kwargs, factors = weighted(kwargs, names, others, cast(float, self._weight))
                self._off.enter_context(tuners.scaled(factors))
                return args, kwargs

            self._off.callback(denoiser.register_forward_pre_hook(scale, with_kwargs=True).remove)
        else:
            return
        # cleanup_models is not called after a denoiser that fails.
        hook = denoiser.register_forward_hook(lambda *_: self._off.close(), always_call=True)
        self._off.callback(hook.remove)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._off.close()
        super().cleanup_models(denoiser)

    def forward(
        self,
        pred_cond: Tensor | None = None,
        pred_uncond: Tensor | None = None,
        pred_cond_base: Tensor | None = None,
        pred_uncond_base: Tensor | None = None,
    ) -> Any:
        return super().forward(self._mixed(pred_cond_base, pred_cond), self._mixed(pred_uncond_base, pred_uncond))  # type: ignore[arg-type]

    def _mixed(self, base: Tensor | None, tuned: Tensor | None) -> Tensor | None:
        if base is None or tuned is None:
            return tuned if base is None else base
        assert self._weight is not None
        return schedules.mix(base, tuned, self._weight)
