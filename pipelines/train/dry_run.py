"""The cost of a training before anything is downloaded or computed, counted on the real classes without weights.

Activations are those that autograd would hold for one micro-batch: one prediction through the denoiser, K times, and
one decoding, run on torch's meta device, where tensors have shapes and no storage. They exclude the reward's own and,
with checkpointing, those of the block that is being recomputed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from aig import adapters, memory
from aig.grid import Grid, scheduler_for
from aig.models import LatentModel
from aig.models.empty import empty, parameters
from aig.models.protocol import Condition
from aig.models.published import PUBLISHED
from aig.objective import DraftConfig
from pipelines.config import Config, given
from pipelines.runs.directory import RunDir
from pipelines.study import models
from pipelines.study.prompts import EVALUATE, TRAIN, describe, missing, prompt_lists
from pipelines.train import parallel
from pipelines.train.objective import ADAPTER, attach, draft_config

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DAY = 86_400
# Peak FLOP/s of a card's data sheet for dense bfloat16, and the share of it that the plan assumes.
CARDS = {"A100": 312e12, "H100": 989e12}
SHARE = 0.35
WORDS = {
    parallel.ALONE: "which share each step's images where there are several",
    parallel.DDP: "which share each step's images",
    parallel.FSDP: "which share each step's images, and what is trained with its optimizer",
}


@dataclass(frozen=True)
class Plan:
    """The resolved plan of one training; sizes in bytes, work in floating-point operations."""

    config: Config
    model: LatentModel
    here: bool
    trained: int
    rows: int
    """Rows of the denoiser in one optimizer step, with guidance's second half."""
    predictions: int
    weights: int
    states: int
    """The adapter's weights, their gradients, moments and moving average, if any, all in float32."""
    activations: int
    operations: float
    """Of one optimizer step, without the reward."""

    @property
    def download(self) -> int:
        """Bytes to download, about: the files have the publisher's precision."""
        if self.here:
            return 0
        known = PUBLISHED.get(self.config.model.name)
        stored = 2 if self.config.model.variant == "fp16" or known is None else known.stored
        return stored * all_parameters(self.model)


def all_parameters(model: LatentModel) -> int:
    return sum(parameters(part) for part in model.pipe.components.values() if isinstance(part, torch.nn.Module))


def make(config: Config) -> Plan:
    """The plan of `config.train`; ConfigError if model, sizes and settings do not go together."""
    train = config.train
    with given("model"):
        model, here = empty(config.model.name, config.model.revision, models.DTYPES[config.model.dtype])
        model = models.sized(model, config)
        scheduler_for(model, models.resolve_sampling(config, model.defaults))
    with given("train"):
        settings, order = _objective(config, model)
    sampling = settings.sampling
    frozen = all_parameters(model)
    with given("train"):
        attach(train, model.denoiser)
    trained = sum(parameter.numel() for parameter in adapters.parameters(model.denoiser, ADAPTER))
    memory.prepare(model, [part for part in train.checkpointing if part != "reward"])
    # The meta device has no autocast: assume that it halves all activations.
    halved = train.autocast is not None and config.model.dtype == "float32"
    micro = min(train.micro_batch, train.batch)
    once, saved = _count(model, lambda: _predict(model, micro, sampling.guidance))
    latents = torch.randn(micro, *model.latent_shape, device="meta", dtype=model.dtype, requires_grad=True)
    decoded, saved_decoding = _count(model, lambda: model.decode(latents))
    graph, with_gradient = train.k, train.k * train.lv
    extra = with_gradient if train.kl_weight > 0 else 0
    if settings.drawn:  # a prediction of either model
        graph, with_gradient, extra = graph + 1, with_gradient + train.lv, train.lv
    elif settings.by_path and train.lv == 1:  # the base's for the steps that a multistep scheduler remembers
        extra += min(order - 1, sampling.steps - train.k)
    steps = sampling.steps - train.k + (1 if train.lv > 1 else 0)
    predictions = train.batch * (steps + with_gradient + extra)
    # A backward pass through frozen weights costs about as much as the forward one; with their gradients, twice.
    passes = 3 if train.method == "full" else 2
    operations = train.batch / micro * (once * (steps + passes * with_gradient + extra) + decoded * 2 * train.lv)
    return Plan(
        config, model, here, trained, predictions * (1 if sampling.guidance == 1 else 2), predictions,
        weights=frozen * BYTES[config.model.dtype],
        states=trained * (4 + 4 + (2 if train.optimizer == "adamw-8bit" else 8) + (0 if train.ema is None else 4)),
        activations=(saved * graph + saved_decoding) // (2 if halved else 1), operations=operations,
    )  # fmt: skip


def _objective(config: Config, model: LatentModel) -> tuple[DraftConfig, int]:
    """The objective, and the number of predictions that a step of its scheduler reads."""
    here = copy.copy(model)
    here.device = torch.device("cpu")  # on the meta device times would have no values
    settings = draft_config(config, here)
    return settings, Grid(here, settings.sampling).order


def _predict(model: LatentModel, batch: int, guidance: float) -> Tensor:
    x = torch.randn(batch, *model.latent_shape, device="meta", dtype=model.dtype)
    shapes = model.input_shapes()
    rows, shared = (
        {name: torch.zeros(count, *shape, device="meta", dtype=model.dtype) for name, shape in shapes.items()}
        for count in (batch, 1)
    )
    condition = Condition(rows, shared)
    return model.predict(x, torch.zeros((), device="meta"), condition, [adapters.key(ADAPTER)] * batch, guidance)


def _count(model: LatentModel, run: Callable[[], Tensor]) -> tuple[float, int]:
    """Floating-point operations of a forward pass, and bytes of distinct storage that autograd holds of it."""
    parts = [part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = {tensor.untyped_storage()._cdata for part in parts for tensor in part.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = storage.nbytes()
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        _FusedAttention(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        out = run()
    total = sum(held.values())
    del out
    return counter.get_total_flops(), total


class _FusedAttention(TorchFunctionMode):
    """Fused attention as real devices have it; torch's meta device would hold a matrix of all pairs in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **(kwargs or {})}
        if func is not F.scaled_dot_product_attention or given.get("attn_mask") is not None:
            return func(*args, **(kwargs or {}))
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(given["query"], given["key"], given["value"], None, True, scale=given.get("scale"))[0]


def lines(plan: Plan) -> list[str]:
    """The plan as text, one fact per line."""
    config, model, train = plan.config, plan.model, plan.config.train
    sampling = models.resolve_sampling(config, model.defaults)
    height, width = model.image_size
    whole = train.method == "full"
    denoiser = plan.trained if whole else parameters(model.denoiser) - plan.trained
    what = "every weight" if whole else f"LoRA rank {train.rank}, {train.targets}"
    scheduler = sampling.scheduler or type(model.scheduler).__name__
    download = "nothing: the weights are here" if plan.here else f"about {_size(plan.download)} from the hub"
    least, most = train.workers
    mode = parallel.strategy(train, least)
    states = plan.states // (least if mode == parallel.FSDP else 1)
    total = plan.weights + states + plan.activations
    seconds = {card: plan.operations / (SHARE * peak) for card, peak in CARDS.items()}
    times = ", ".join(f"{_duration(train.steps * each)} on one {card}" for card, each in seconds.items())
    rows = {
        "model": f"{config.model.name} ({type(model.pipe).__name__}), {width} x {height}, {config.model.dtype}",
        "to download": download,
        "sampling": f"{scheduler}, {sampling.steps} steps, guidance {sampling.guidance:g}, eta {sampling.eta:g}",
        "objective": f"DRaFT-{train.k}, reward {train.reward}, KL weight {train.kl_weight:g}"
        + (f" ({train.drawn_kl} steps)" if train.drawn_kl else "")
        + (f", {train.lv} draws of the last step" if train.lv > 1 else ""),
        "trained": f"{plan.trained / 1e6:.2f} M parameters ({what}) beside {denoiser / 1e6:,.0f} M frozen ones",
        "a step": f"{train.batch} images, {plan.predictions:,} predictions ({plan.rows:,} rows of the denoiser), "
        f"{plan.operations / 1e12:,.3g} TFLOP without the reward",
        "prompts": _prompts(config),
        "all steps": f"{train.steps:,} steps, {train.steps * train.batch:,} images"
        + ("" if train.ema is None else f"; averaged, with the start at {train.ema**train.steps:.2g} of the weight"),
        "to end in a day": f"{train.steps * train.batch / DAY:.2f} images/s are needed",
        f"at {100 * SHARE:g} % of peak": times,
        "workers": f"{least}" + (f" to {most}" if most > least else "") + (f", {WORDS[mode]}" if most > 1 else ""),
        "memory": f"about {_size(total)}: weights {_size(plan.weights)}, what is trained with its optimizer "
        f"{_size(states)}, activations of {min(train.micro_batch, train.batch)} images {_size(plan.activations)}; "
        "the reward's are not in it",
        "run directory": RunDir.of(config).shown(),
    }
    return [f"{name:<20}{value}" for name, value in rows.items()]


def _prompts(config: Config) -> str:
    """The prompts in words; missing ones do not prevent a plan."""
    absent = missing(config, TRAIN, EVALUATE)
    if absent:
        example = " ".join(f"{key}=FILE" for key in absent)
        return f"missing: give {' and '.join(absent)}, each as a list or a file, as in {example}"
    return describe(prompt_lists(config))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", DAY), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
