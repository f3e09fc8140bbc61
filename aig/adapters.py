"""LoRA adapters on a denoiser: attach, save, load, scale, and route each row of a batch to its own adapter or to none.

The base model is the denoiser with no adapter, so one set of weights serves both predictions of annealed importance
guidance, in one
forward. Routing rests on PEFT's `adapter_names`, which diffusers' models do not accept as an argument: a pre-hook on
each LoRA layer
passes it instead.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

BASE = "__base__"  # PEFT's word for no adapter
WEIGHTS = "pytorch_lora_weights.safetensors"
RECORD = "adapter.json"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# Attention alone is too weak for the tiny model: feed-forward, residual convolutions and projections as well.
EVERYWHERE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut")
TARGETS = {"attention": ATTENTION, "everywhere": EVERYWHERE}


def key(name: str) -> str:
    """The name as PEFT holds it: a module name cannot contain a dot."""
    return name.replace(".", "_")


def names(denoiser: nn.Module) -> list[str]:
    """The adapters that rows can be routed to, scaled ones included (as PEFT holds them)."""
    return sorted({name for layer in _layers(denoiser) for name in layer.scaling})


def attach(
    denoiser: nn.Module,
    name: str,
    rank: int = 8,
    alpha: float = 8,
    targets: str | Sequence[str] = "attention",
    seed: int = 0,
) -> None:
    """Add a new LoRA adapter that changes nothing yet (its B matrices are zero); its A matrices are drawn from `seed`.

    `targets` is "attention", "everywhere" or a list of module name endings. Raises ValueError for a name in use or a
    rank below 1.
    """
    _check_new(denoiser, name)
    if rank < 1:
        raise ValueError(f"LoRA rank {rank} must be at least 1")
    modules = list(TARGETS.get(targets, (targets,)) if isinstance(targets, str) else targets)
    with torch.random.fork_rng(devices=[]), _several():
        torch.manual_seed(seed)
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules), adapter_name=key(name))  # type: ignore[operator]


def parameters(denoiser: nn.Module, name: str) -> list[nn.Parameter]:
    """The adapter's trainable tensors, in a fixed order, with gradients switched on for them and off for all else."""
    _check_known(denoiser, name)
    denoiser.requires_grad_(False)
    found = []
    for layer in _layers(denoiser):
        if key(name) in layer.lora_A:
            found += [*layer.lora_A[key(name)].parameters(), *layer.lora_B[key(name)].parameters()]
    for parameter in found:
        parameter.requires_grad_(True)
    return found


def scaled(denoiser: nn.Module, name: str, scale: float) -> str:
    """Make the same weights available at `scale` times their contribution, and return the name to route rows to.

    LoRA scaling interpolates between base (0) and tuned (1). Nothing is copied; scale 0 is the base, scale 1 the
    adapter itself.
    """
    _check_known(denoiser, name)
    if scale == 0:
        return BASE
    if scale == 1:
        return key(name)
    alias = key(f"{name}*{scale:g}")
    for layer in _layers(denoiser):
        if key(name) in layer.lora_A and alias not in layer.scaling:
            for modules in (layer.lora_A, layer.lora_B, layer.lora_dropout):
                modules[alias] = modules[key(name)]
            layer.scaling[alias] = layer.scaling[key(name)] * scale
            layer.r[alias] = layer.r[key(name)]
    return alias


class _Route:
    """The adapter of each row of the forward under way, read by a hook on every LoRA layer."""

    def __init__(self) -> None:
        self.rows: list[str] | None = None
        self.hooked: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[_Route], tuple[()]]:
        return _Route, ()  # a copied or pickled denoiser is on no route

    def hook(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return (args, kwargs) if self.rows is None else (args, {**kwargs, "adapter_names": self.rows})


_routes: WeakKeyDictionary[nn.Module, _Route] = WeakKeyDictionary()


@contextmanager
def routed(denoiser: nn.Module, rows: Sequence[str]) -> Iterator[None]:
    """Within the context, row i of a forward goes through adapter rows[i], or through none where rows[i] is `BASE`.

    A backward through gradient checkpoints belongs inside the context too. Raises ValueError for an unknown adapter
    (PEFT would
    silently give the base) and RuntimeError where adapters are disabled or merged, which would override the routing.
    """
    layers = _layers(denoiser)
    unknown = set(rows) - {BASE} - {name for layer in layers for name in layer.scaling}
    if unknown:
        raise ValueError(
            f"adapter {sorted(unknown)[0]!r} is not loaded (loaded: {', '.join(names(denoiser)) or 'none'})"
        )
    if any(layer.disable_adapters or layer.merged for layer in layers):
        raise RuntimeError(
            "the denoiser's adapters are disabled or merged; call enable_adapters() or unfuse_lora() first"
        )
    route = _routes.setdefault(denoiser, _Route())
    for layer in layers:
        if layer not in route.hooked:
            route.hooked[layer] = layer.register_forward_pre_hook(route.hook, with_kwargs=True)
    previous, route.rows = route.rows, list(rows)
    try:
        yield
    finally:
        route.rows = previous


class Fuser:
    """Folds one adapter at a time into the denoiser's own weights; `fusing` makes it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._layers = _layers(denoiser)
        self._own = [layer.get_base_layer().weight.data for layer in self._layers]
        self._folded: list[torch.Tensor] = []
        self._cached = BASE
        self.current = BASE
        """The adapter that is folded in now, or `BASE`."""

    @torch.no_grad()
    def switch(self, name: str) -> None:
        """Fold in this adapter, as PEFT holds its name, or none (`BASE`); going back and forth with one is free."""
        if name == self.current:
            return
        if name not in (BASE, self._cached):
            self._folded = []  # one folded copy at a time
            self._folded = [
                own + layer.get_delta_weight(name).to(own) if name in layer.lora_A else own
                for layer, own in zip(self._layers, self._own, strict=True)
            ]
            self._cached = name
        weights = self._own if name == BASE else self._folded
        for layer, weight in zip(self._layers, weights, strict=True):
            layer.get_base_layer().weight.data = weight
        self.current = name


@contextmanager
def fusing(denoiser: nn.Module) -> Iterator[Fuser]:
    """Within the context, `switch` puts W + scale B A in place of the tuned layers' weights W; the end puts W back.

    A forward with the adapter folded in, its rows routed to `BASE`, costs what the base's does and needs one copy of
    the tuned layers' weights. It carries no gradient to the adapter. The weights that come back are the very same
    tensors.
    """
    fuser = Fuser(denoiser)
    try:
        yield fuser
    finally:
        fuser.switch(BASE)


def save(
    denoiser: nn.Module, name: str, folder: str | os.PathLike[str], record: dict[str, Any], prefix: str = "unet"
) -> Path:
    """Save an adapter in diffusers' file format beside `adapter.json`, the record of what made it; the folder appears
    whole or not at all.

    `pipe.load_lora_weights(folder)` of any diffusers program loads it. An existing folder is replaced.
    """
    _check_known(denoiser, name)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = denoiser.peft_config[key(name)].to_dict()  # type: ignore[union-attr, index, operator]
    metadata = {f"{prefix}.{k}": sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    tensors = get_peft_model_state_dict(denoiser, adapter_name=key(name))
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # diffusers reads rank and alpha from this header, as its own save_lora_weights writes it.
        header = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True, default=str)}
        save_file({f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}, part / WEIGHTS, header)
        (part / RECORD).write_text(json.dumps({"name": name, **record}, indent=2, sort_keys=True) + "\n")
        part.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def load(denoiser: nn.Module, folder: str | os.PathLike[str], name: str, prefix: str = "unet") -> None:
    """Load an adapter in diffusers' format, ours or anyone's; ValueError names the file, the reason and the fix."""
    _check_new(denoiser, name)
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - a safetensors file is no mapping
            header = (file.metadata() or {}).get("lora_adapter_metadata")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such adapter; train it first, or give the folder that holds {WEIGHTS}") from None
    except SafetensorError as error:
        raise ValueError(
            f"{path}: the adapter's weights are corrupt ({error}); delete the folder and train it again"
        ) from None
    if not any(k.startswith(f"{prefix}.") for k in tensors):
        raise ValueError(f"{path}: holds no LoRA for {prefix!r} (keys begin with {next(iter(tensors), 'nothing')!r})")
    metadata = json.loads(header) if header else None
    with _several():
        denoiser.load_lora_adapter(tensors, prefix=prefix, adapter_name=key(name), metadata=metadata)  # type: ignore[operator]


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`adapter.json` of a saved adapter; ValueError names the file and the reason where it cannot be read."""
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: cannot read the adapter's record ({error}); delete the folder and train it again"
        ) from None


@contextmanager
def _several() -> Iterator[None]:
    """PEFT warns of every adapter after a model's first; here several are the point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        yield


def _layers(denoiser: nn.Module) -> list[Any]:  # LoraLayers, which are modules by mixing in
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]


def _check_new(denoiser: nn.Module, name: str) -> None:
    if not name or key(name) in (BASE, *names(denoiser)):
        raise ValueError(f"adapter name {name!r} is empty or in use; choose another")


def _check_known(denoiser: nn.Module, name: str) -> None:
    if key(name) not in names(denoiser):
        raise ValueError(f"adapter {name!r} is not loaded (loaded: {', '.join(names(denoiser)) or 'none'})")
