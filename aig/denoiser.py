"""Annealed importance guidance in any diffusers pipeline: a stand-in for its `unet` or `transformer`.

    pipe.load_lora_weights("folder")
    aig.annealed(pipe, "power:2")
    image = pipe("a red star").images[0]

The tuned prediction comes from the pipeline's active adapters, at the scales of `pipe.set_adapters`; the base is the
denoiser without them. They are mixed before the pipeline's classifier-free guidance, which is linear and so mixes the
guided predictions alike; `guidance_rescale` acts on the mix. With `space="weight"` the LoRA is scaled instead, for one
prediction a step. A LoRA on a text encoder stays on for both.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from aig import adapters, schedules
from aig.arm import SPACES
from aig.clock import Clock, eager, followed
from aig.schedules import Curve

__all__ = ["AnnealedDenoiser", "annealed"]

# Arguments of denoisers that do not have one row per image.
SHARED = ("img_ids", "txt_ids", "ip_adapter_masks")
# The end of the argument that holds a call's LoRA scale: cross_attention_kwargs, joint_attention_kwargs.
SCALED = "attention_kwargs"
# accelerate keeps these on the module that it hooks, either this one or the inner one.
HOOKS = ("_hf_hook", "_old_forward")


class AnnealedDenoiser(nn.Module):
    """A denoiser whose prediction is (1 - w) base + w tuned, w being the schedule's weight at the pipeline's step.

    That is `space` = "prediction", the published form. "weight" scales the LoRA's contribution by w instead, on top of
    the scales of `pipe.set_adapters`, for one prediction a step. Both take weights above 1, which go beyond the tuned
    model (RLG, arXiv 2508.21016), and both are the plain pipeline at w = 1.

    `adapter` names the adapter to anneal and leaves other active ones in both predictions; None anneals all active
    ones. `scheduler` is the pipeline, whose scheduler is followed even when it is replaced, or a scheduler. With
    `passes` = 1 both predictions come from one forward of twice the rows; 2 takes two forwards and half the memory, and
    is used anyway for several active adapters, DoRA and tuners other than LoRA; weight space refuses the last two. If w
    is 0 or 1, one prediction is made. After `pipe.disable_lora()` both predictions are the base's, and
    `fuse_qkv_projections` loses the LoRA of what it fuses, as in the plain pipeline. diffusers' gradient checkpointing
    recomputes without the weight: leave it off.

    It has the inner denoiser's parameters, names, configuration and methods, and passes for its class, so adapters,
    devices and pipelines made from others work as before. `save_pretrained` saves the base model. Raises ValueError for
    an annealed denoiser, other `passes` or `space`, a schedule that is a coin or still to be fitted, and a missing or
    inactive adapter; RuntimeError for a fused one.

    Examples:
        >>> pipe = aig.load("tiny").pipe
        >>> aig.adapters.attach(pipe.unet, "tuned")
        >>> aig.AnnealedDenoiser(pipe.unet, "power:2", scheduler=pipe)
        AnnealedDenoiser(UNet2DConditionModel, 'power:2', adapter='tuned')
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: Curve,
        adapter: str | None = "tuned",
        scheduler: Any = None,
        passes: int = 1,
        space: str = "prediction",
    ) -> None:
        super().__init__()
        if type(denoiser) is AnnealedDenoiser:
            raise ValueError("the denoiser is annealed already; wrap denoiser.inner, or call aig.annealed(pipe, ...)")
        if passes not in (1, 2):
            raise ValueError(f"passes = {passes} must be 1 or 2")
        check_space(space)
        model = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wrapped
        self.__dict__.update(inner=denoiser, _model=model)
        # Separate tables would prefix every parameter's name, and hide a replaced part from the inner denoiser.
        for table in ("_parameters", "_buffers", "_modules"):
            self.__dict__[table] = getattr(denoiser, table)
        self.__dict__["__module__"] = type(model).__module__  # what model_index.json names
        self._given = schedule
        self.schedule = followed(schedule)
        self.adapter, self.passes, self.space = adapter, passes, space
        self.clock = Clock(scheduler)
        self._signature = inspect.signature(model.forward)
        self._tuners = Tuners(denoiser)
        self._tuners.annealed(adapter, space)
        self.training = denoiser.training

    @property
    def __class__(self) -> type:  # type: ignore[override] - diffusers decides by model.__class__
        return type(self.__dict__["_model"]) if "_model" in self.__dict__ else AnnealedDenoiser

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in HOOKS or "inner" not in self.__dict__:
                raise
            return getattr(self.__dict__["inner"], name)

    @functools.partial(torch.compiler.disable, recursive=False)  # the inner denoiser compiles, whatever the weight
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner denoiser's arguments and output, its prediction annealed."""
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        w = self.clock.weight(self.schedule, arguments["timestep"])
        layers, names, others = self._tuners.annealed(self.adapter, self.space)
        if w == 1 or not names:
            return self.inner(**arguments)
        if w == 0:
            with without(layers, names):
                return self.inner(**arguments)
        if self.space == "weight":
            arguments, factors = weighted(arguments, names, others, w)
            with self._tuners.scaled(factors):
                return self.inner(**arguments)
        if self.passes == 1 and not others and len(names) == 1 and plain(layers, names):
            base, tuned, out = self._one_pass(arguments, names[0])
        else:
            with without(layers, names):
                base = self.inner(**_repeated(arguments, 0, 1))[0]
            out = self.inner(**arguments)
            tuned = out[0]
        mixed = schedules.mix(base, tuned, w)
        return (mixed, *out[1:]) if isinstance(out, tuple) else type(out)(sample=mixed)

    def _one_pass(self, arguments: dict[str, Any], name: str) -> tuple[Tensor, Tensor, Any]:
        rows = len(next(iter(arguments.values())))  # a sample is the first argument of every denoiser
        with adapters.routed(self.inner, [adapters.BASE] * rows + [name] * rows):
            out = self.inner(**_repeated(arguments, rows, 2))
        base, tuned = out[0].chunk(2)
        return base, tuned, out

    def to(self, *args: Any, **kwargs: Any) -> AnnealedDenoiser:
        self.inner.to(*args, **kwargs)
        return self

    def train(self, mode: bool = True) -> AnnealedDenoiser:
        self.inner.train(mode)
        self.training = mode
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the inner denoiser only: the weight changes at every step."""
        self.inner.compile(*args, **kwargs)

    @functools.wraps(ModelMixin.save_pretrained)
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        layers = self._tuners.layers()
        _check_unfused(layers)
        warnings.warn(
            f"the base {type(self._model).__name__} is saved, without its adapters "
            f"({', '.join(adapters.names(self._model)) or 'none'}); save those with aig.adapters.save",
            stacklevel=2,
        )
        _plain(self._model).save_pretrained(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # For deepcopy and pickle; in a copied pipeline the scheduler is the copy's.
        given = (self.inner, self._given, self.adapter, self.clock.scheduler, self.passes, self.space)
        return AnnealedDenoiser, given

    def __repr__(self) -> str:
        name = schedules.format_name(self.schedule)
        space = f", space={self.space!r}" if self.space != "prediction" else ""
        return f"AnnealedDenoiser({type(self._model).__name__}, {name!r}, adapter={self.adapter!r}{space})"


def annealed(
    pipe: Any, schedule: Curve | None, adapter: str | None = None, passes: int = 1, space: str = "prediction"
) -> Any:
    """Put annealed importance guidance into a diffusers pipeline, in place, and return the pipeline.

    `schedule` is a text (`aig.parse`), a `Schedule` or a function from progress u in [0, 1] to a weight in [0, 64];
    None takes the guidance out. A second call replaces the schedule. The other arguments are those of
    `AnnealedDenoiser`. A pipeline made from this one shares its guidance as long as it shares its scheduler; after
    changing its scheduler, call this on it. Raises ValueError for a pipeline without a denoiser or without adapters.

    Examples:
        >>> pipe = aig.load("tiny").pipe
        >>> aig.adapters.attach(pipe.unet, "tuned")
        >>> pipe = aig.annealed(pipe, lambda u: u**2)
        >>> image = pipe("a red star", num_inference_steps=2).images[0]
        >>> image.size
        (32, 32)
        >>> aig.annealed(pipe, "ramp:0.5,3", space="weight").unet  # one prediction a step, and beyond the tuned model
        AnnealedDenoiser(UNet2DConditionModel, 'ramp:0.5,3', adapter=None, space='weight')
    """
    slot = next((name for name in ("unet", "transformer") if isinstance(getattr(pipe, name, None), nn.Module)), None)
    if slot is None:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer to anneal")
    current = getattr(pipe, slot)
    inner = current.inner if type(current) is AnnealedDenoiser else current
    if schedule is None:
        _swap(pipe, slot, inner)
        return pipe
    denoiser = AnnealedDenoiser(inner, schedule, adapter, pipe, passes, space)
    for name, part in getattr(pipe, "components", {}).items():
        if name.startswith("text_encoder") and any(isinstance(m, BaseTunerLayer) for m in _modules(part)):
            warnings.warn(
                f"{name} has an adapter, which stays on for the base prediction too: only the {slot} is annealed",
                stacklevel=2,
            )
    _swap(pipe, slot, denoiser)
    return pipe


def _swap(pipe: Any, slot: str, denoiser: nn.Module) -> None:
    """Replace the denoiser; model offload hooks every component, so it is removed and restored."""
    device = pipe._offload_device if getattr(pipe, "_all_hooks", None) else None
    if device is not None:
        pipe.remove_all_hooks()
    setattr(pipe, slot, denoiser)
    if device is not None:
        pipe.enable_model_cpu_offload(device=device)


class Tuners:
    """The adapter layers of a denoiser, looked up again when its adapters change."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self._layers: list[Any] = []
        # The scales of each LoRA layer, an adapter's name in them, and its parameters.
        self._terms: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
        self._configs: dict[str, Any] = {}

    def layers(self) -> list[Any]:
        configs = getattr(self.denoiser, "peft_config", None) or {}
        if len(configs) != len(self._configs) or any(self._configs.get(k) is not v for k, v in configs.items()):
            self._layers = [m for m in self.denoiser.modules() if isinstance(m, BaseTunerLayer)]
            loras = [layer for layer in self._layers if isinstance(layer, LoraLayer)]
            self._terms = [
                (layer.scaling, name, part._parameters) for layer in loras for name, part in layer.lora_A.items()
            ]
            self._configs = dict(configs)
        return self._layers if configs else []

    @eager
    def annealed(self, adapter: str | None, space: str) -> tuple[list[Any], list[str], list[str]]:
        """The layers, the active adapters to anneal (none if adapters are disabled) and the other active ones.

        Raises ValueError for a missing or inactive adapter and one that `space` does not take, and RuntimeError for a
        fused one.
        """
        layers, names, others = self._split(adapter)
        if space == "weight" and not plain(layers, names):
            raise ValueError(
                f"adapter {', '.join(map(repr, names))} is no plain LoRA (DoRA, or a tuner other than LoRA), and "
                "space = 'weight' scales a plain LoRA's contribution: use space = 'prediction'"
            )
        return layers, names, others

    def _split(self, adapter: str | None) -> tuple[list[Any], list[str], list[str]]:
        layers = self.layers()
        loaded = ", ".join(self._configs) or "none"
        if not layers and (copies := adapters.names(self.denoiser)):
            raise ValueError(
                f"adapter {', '.join(map(repr, copies))} is a full copy of the denoiser, and pipelines anneal a LoRA: "
                "sample a copy with aig.sample_arms, in space = 'prediction'"
            )
        if not layers:
            raise ValueError(
                "the denoiser has no adapter, and annealing needs one: load a LoRA first, with "
                "pipe.load_lora_weights(folder)"
            )
        _check_unfused(layers)
        if all(layer.disable_adapters for layer in layers):
            return layers, [], []
        active = list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))
        if adapter is None:
            return layers, active, []
        name = adapters.key(adapter)
        if name not in self._configs:
            raise ValueError(
                f"adapter {adapter!r} is not loaded (loaded: {loaded}); load it with "
                f"pipe.load_lora_weights(folder, adapter_name={adapter!r}), or anneal what is active with adapter=None"
            )
        if name not in active:
            raise ValueError(
                f"adapter {adapter!r} is not active (active: {', '.join(active) or 'none'}); call "
                f"pipe.set_adapters({adapter!r})"
            )
        return layers, [name], [other for other in active if other != name]

    @contextmanager
    def scaled(self, factors: Mapping[str, float]) -> Iterator[None]:
        """Multiply the scales of these adapters within the context."""
        own = [(scales, name, scales[name], held["weight"]) for scales, name, held in self._terms if name in factors]
        # Tensors: torch.compile guards on the value of a number, and would compile again at every step. New ones at
        # every step, since a backward may need the last; one for all layers alike, since each costs a kernel.
        tensors: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}
        try:
            for scales, name, scale, weight in own:
                value = scale * factors[name], weight.device, weight.dtype
                if value not in tensors:
                    device = "cpu" if weight.is_meta else weight.device  # any device takes a number from the CPU
                    dtype = torch.promote_types(weight.dtype, torch.float32)
                    tensors[value] = torch.full((), value[0], device=device, dtype=dtype)
                scales[name] = tensors[value]
            yield
        finally:
            for scales, name, scale, _ in own:
                scales[name] = scale


@contextmanager
def without(layers: Sequence[Any], names: Sequence[str]) -> Iterator[None]:
    """Deactivate these adapters of these layers within the context.

    PEFT's own switches also set requires_grad, which belongs to the caller.
    """
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name for name in layer.active_adapters if name not in names]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def plain(layers: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether these adapters are plain LoRAs, whose contribution is a term of its own in each layer."""
    return all(isinstance(layer, LoraLayer) and layer.lora_variant.keys().isdisjoint(names) for layer in layers)


def check_space(space: str) -> None:
    if space not in SPACES:
        raise ValueError(f"space = {space!r} must be one of {', '.join(SPACES)}")


def weighted(
    arguments: dict[str, Any], names: Sequence[str], others: Sequence[str], w: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """The denoiser's arguments without their LoRA scale, and the factor of each adapter: that scale, times w if it is
    annealed. diffusers would multiply the layers' scales in place."""
    scale = 1.0
    for name, value in arguments.items():
        if name.endswith(SCALED) and value and "scale" in value:
            scale = value["scale"]
            arguments = {**arguments, name: {**value, "scale": 1.0}}
    others = others if scale != 1 else ()
    return arguments, {**dict.fromkeys(names, scale * w), **dict.fromkeys(others, scale)}


def _repeated(value: Any, rows: int, times: int, name: str = "") -> Any:
    """Copy nested arguments (UNets empty some of their lists) and repeat tensors of this many rows."""
    if isinstance(value, Tensor):
        batched = times > 1 and name not in SHARED and value.ndim > 0 and len(value) == rows
        return torch.cat([value] * times) if batched else value
    if isinstance(value, dict):
        return {k: _repeated(v, rows, times, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_repeated(v, rows, times, name) for v in value]
    return value


def _check_unfused(layers: Sequence[Any]) -> None:
    if any(layer.merged for layer in layers):
        raise RuntimeError(
            "the adapter is fused into the denoiser's weights, so the base is gone; call pipe.unfuse_lora()"
        )


def _plain(model: Any) -> Any:
    """The model without adapters; it shares the weights."""
    with torch.device("meta"):
        plain = type(model).from_config(model.config)
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    plain.load_state_dict({name: tensors[name] for name in plain.state_dict()}, assign=True)
    return plain


def _modules(part: Any) -> Iterator[nn.Module]:
    return part.modules() if isinstance(part, nn.Module) else iter(())
