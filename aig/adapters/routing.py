"""Route each row of a batch through its own adapter or none; fold an adapter into the weights if all rows use it.

PEFT would route rows by `adapter_names`, which diffusers' models do not accept as an argument, and gathers and scatters
them by index lists in every layer. Here hooks on each LoRA layer take its base output and add an adapter's contribution
to its rows, by slices if they are contiguous, which costs a tenth less and gives the same bits. Layers with full copies
(`full`) read their rows from the same route.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

BASE = "__base__"  # PEFT's name for no adapter


def key(name: str) -> str:
    """An adapter's name in PEFT, where a module name cannot contain a dot."""
    return name.replace(".", "_")


def names(denoiser: nn.Module) -> list[str]:
    """The adapters that rows can be routed to, by PEFT's names (`key`), scaled ones included."""
    copies = {name for layer in copied_layers(denoiser) for name in layer.weights if name != BASE}
    return sorted(_loras(denoiser) | copies)


def _loras(denoiser: nn.Module) -> set[str]:
    """The LoRAs, and the names of those at other scales."""
    loras = {name for layer in lora_layers(denoiser) for name in layer.scaling}
    route = _routes.get(denoiser)
    return loras | {alias for alias, (name, _) in (route.scales if route else {}).items() if name in loras}


def lora_layers(denoiser: nn.Module) -> list[Any]:  # LoraLayers, which are modules by mixing in
    return _adapted(denoiser)[0]


def copied_layers(denoiser: nn.Module) -> list[Copied]:
    return _adapted(denoiser)[1]


def is_copy(denoiser: nn.Module, name: str) -> bool:
    """Whether an adapter is a full copy of the denoiser; every copied layer holds the same sets.

    Examples:
        >>> denoiser = aig.load("tiny").denoiser
        >>> aig.adapters.attach(denoiser, "tuned")
        >>> aig.adapters.is_copy(denoiser, "tuned")
        False
    """
    return any(key(name) in layer.weights for layer in copied_layers(denoiser)[:1])


_cached: WeakKeyDictionary[nn.Module, tuple[list[Any], list[Any], list[Copied]]] = WeakKeyDictionary()


def _adapted(denoiser: nn.Module) -> tuple[list[Any], list[Copied]]:
    """The LoRA layers and those with copies, cached until PEFT's configuration objects change.

    A large denoiser has thousands of modules, too many to walk in every forward.
    """
    configs = list(getattr(denoiser, "peft_config", {}).values())
    known = _cached.get(denoiser)
    if known is not None and len(known[0]) == len(configs) and all(map(operator.is_, known[0], configs)):
        return known[1:]
    loras = [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
    copied = [module for module in denoiser.modules() if isinstance(module, Copied)]
    _cached[denoiser] = (configs, loras, copied)
    return loras, copied


def forget(denoiser: nn.Module) -> None:
    """Forget the cached layers, after a change that PEFT's configurations do not show."""
    _cached.pop(denoiser, None)


def check_new(denoiser: nn.Module, name: str) -> None:
    """Raise ValueError for a name in use, RuntimeError if a fused adapter has changed the base."""
    if not name or key(name) in (BASE, *names(denoiser)):
        raise ValueError(f"adapter name {name!r} is empty or in use; choose another")
    check_base(lora_layers(denoiser))


def check_known(denoiser: nn.Module, name: str) -> None:
    if key(name) not in names(denoiser):
        raise ValueError(f"adapter {name!r} is not loaded (loaded: {', '.join(names(denoiser)) or 'none'})")


def check_base(layers: Sequence[Any]) -> None:
    if any(layer.disable_adapters or layer.merged for layer in layers):
        raise RuntimeError(
            "the denoiser's adapters are disabled or merged; call enable_adapters() or unfuse_lora() first"
        )


class Route:
    """The adapter of each row of the current forward, read by every adapted layer."""

    def __init__(self) -> None:
        self.rows: list[str] | None = None
        self.groups: dict[str, list[int]] = {}
        """The rows of each full copy; all others count as the base's."""
        self.copies: set[str] = set()
        """The adapters that are full copies."""
        self.parts: dict[str, slice | Tensor] = {}
        """The rows of each LoRA."""
        self.scales: dict[str, tuple[str, float]] = {}
        """By the name of a scaled LoRA, the LoRA and its scale."""
        self.hooked: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Route], tuple[()]]:
        return Route, ()  # a copied or pickled denoiser has no route

    @contextmanager
    def through(self, rows: list[str]) -> Iterator[None]:
        previous = self.rows, self.groups, self.parts
        self.rows, self.groups = rows, {}
        indices: dict[str, list[int]] = {}
        for i, name in enumerate(rows):
            self.groups.setdefault(name if name in self.copies else BASE, []).append(i)
            if name != BASE and name not in self.copies:
                indices.setdefault(name, []).append(i)
        self.parts = {name: _slice_or_indices(own) for name, own in indices.items()}
        try:
            yield
        finally:
            self.rows, self.groups, self.parts = previous

    def unscaled(self, name: str) -> tuple[str, float]:
        """The LoRA that a name stands for, and its scale."""
        return self.scales.get(name, (name, 1.0))

    def only(self, rows: list[int]) -> AbstractContextManager[None]:
        """Continue the forward with these rows."""
        return self.through([self.rows[row] for row in rows] if self.rows is not None else [])

    def hook(self, layer: Any) -> None:
        """Make a LoRA layer follow this route."""
        if layer not in self.hooked:
            handles = (
                layer.register_forward_pre_hook(self._base_alone, with_kwargs=True),
                layer.register_forward_hook(self._add),
            )
            self.hooked[layer] = handles

    def _base_alone(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return (args, kwargs) if self.rows is None else (args, {**kwargs, "adapter_names": [BASE] * len(self.rows)})

    def _add(self, layer: Any, args: tuple[Tensor], out: Tensor) -> None:
        for alias, rows in list(self.parts.items()):
            name, scale = self.unscaled(alias)
            if name in layer.lora_A:
                if isinstance(rows, Tensor) and rows.device != out.device:
                    rows = self.parts[alias] = rows.to(out.device)
                down, up = layer.lora_A[name], layer.lora_B[name]
                part = args[0][rows].to(down.weight.dtype)
                change = up(down(layer.lora_dropout[name](part))) * (layer.scaling[name] * scale)
                out[rows] += change.to(out.dtype)


def _slice_or_indices(rows: list[int]) -> slice | Tensor:
    """Contiguous rows as a slice, others as indices."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)


class Copied(nn.Module):
    """Mixin for the class of a layer that holds several sets of its weights, one per adapter and `BASE`.

    One set is in place: the module's parameters, which a forward outside `routed` uses. A set of another precision than
    the base's is cast to the base's for a forward.
    """

    weights: dict[str, dict[str, Tensor | None]]
    dtypes: dict[str, torch.dtype]
    """The precision of each of the base's weights, in which the layer computes."""
    route: Route | None
    offloaded: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.route is None or self.route.rows is None:
            return self._through(self.__dict__["_parameters"], x, *args, **kwargs)
        groups = self.route.groups
        if len(groups) == 1:
            return self._through(self.weights[next(iter(groups))], x, *args, **kwargs)
        parts = []
        for name, rows in groups.items():
            with self.route.only(rows):  # for layers inside this one
                parts.append(self._through(self.weights[name], x[rows], *args, **kwargs))
        order = [row for rows in groups.values() for row in rows]
        return torch.cat(parts)[sorted(range(len(order)), key=order.__getitem__)]

    def _through(self, tensors: dict[str, Tensor | None], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        tensors = {k: v if v is None else v.to(x.device, self.dtypes[k]) for k, v in tensors.items()}
        in_place = self.__dict__["_parameters"]
        self.__dict__["_parameters"] = tensors
        try:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__["_parameters"] = in_place

    def place(self, name: str) -> None:
        """Make a set the module's parameters."""
        self.__dict__["_parameters"] = self.weights[name]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for name, tensors in self.weights.items():
            if tensors is not self.__dict__["_parameters"] and not (name == BASE and self.offloaded):
                for k, tensor in tensors.items():
                    if tensor is not None:
                        tensors[k] = nn.Parameter(fn(tensor.detach()), requires_grad=False)
        applied = super()._apply(fn, recurse)
        self.dtypes = {k: tensor.dtype for k, tensor in self.weights[BASE].items() if tensor is not None}
        return applied


class Held(nn.Module):
    """A set of a layer's weights as a module's parameters, for FSDP; replacing one replaces it in the set too."""

    def __init__(self, tensors: dict[str, Tensor | None]) -> None:
        super().__init__()
        self.__dict__["_parameters"] = tensors


_routes: WeakKeyDictionary[nn.Module, Route] = WeakKeyDictionary()


def current_route(denoiser: nn.Module) -> Route | None:
    """The denoiser's route, whose `rows` are the current forward's; None before the first `routed`."""
    return _routes.get(denoiser)


def scale_route(denoiser: nn.Module, name: str, scale: float, alias: str) -> None:
    """Let rows be routed through `scale` times a LoRA's contribution, by this alias."""
    _route(denoiser).scales[alias] = (name, scale)


def unscaled(denoiser: nn.Module, name: str) -> tuple[str, float]:
    """The LoRA that a name stands for, and its scale."""
    return _route(denoiser).unscaled(name)


def _route(denoiser: nn.Module) -> Route:
    return _routes.setdefault(denoiser, Route())


@contextmanager
def routed(denoiser: nn.Module, rows: Sequence[str]) -> Iterator[None]:
    """Route row i of every forward within the context through adapter rows[i]; `BASE` is none.

    A backward through gradient checkpoints belongs inside the context too, unless `aig.memory.checkpoint_blocks` made
    them. Raises ValueError for an adapter that is not loaded (PEFT would silently use the base) or cannot share a batch
    (DoRA), and RuntimeError if adapters are disabled or merged, which would override the routing.

    Examples:
        >>> model = aig.load("tiny")
        >>> aig.adapters.attach(model.denoiser, "tuned")
        >>> x, text = torch.zeros(2, 12, 16, 16), model.encode(["a red star"] * 2).embeddings
        >>> with torch.no_grad(), aig.adapters.routed(model.denoiser, [aig.adapters.BASE, "tuned"]):
        ...     base, tuned = model.denoiser(x, 500, text).sample
        >>> torch.allclose(base, tuned, atol=1e-6)  # a new adapter changes nothing yet
        True
    """
    layers, copied = lora_layers(denoiser), copied_layers(denoiser)
    copies = {name for layer in copied[:1] for name in layer.weights}
    used = set(rows) - {BASE}
    unknown = used - copies - _loras(denoiser)
    if unknown:
        raise ValueError(
            f"adapter {sorted(unknown)[0]!r} is not loaded (loaded: {', '.join(names(denoiser)) or 'none'})"
        )
    check_base(layers)
    route = _route(denoiser)
    for name in used:
        if any(route.unscaled(name)[0] in layer.lora_variant for layer in layers):
            raise ValueError(f"adapter {name!r} {NO_VARIANT}")
    for layer in layers:
        route.hook(layer)
    for layer in copied:
        layer.route = route
    route.copies = copies
    with route.through(list(rows)):
        yield


NO_VARIANT = (
    "is no plain LoRA (DoRA or another variant): it depends on the whole weight, so that rows of one batch cannot take "
    "turns with it; convert it with peft.save_as_lora, or train a plain LoRA"
)


class Fuser:
    """Folds one adapter at a time into the denoiser's weights; `fusing` creates it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._layers, self._copied = lora_layers(denoiser), copied_layers(denoiser)
        self._route = _route(denoiser)
        self._weights = [base_weight(layer) for layer in self._layers]
        self._own = [weight.data for weight in self._weights]
        self._own_sets = [layer.weights[BASE] for layer in self._copied]
        self._folded: list[Tensor] = []
        self._cached = BASE
        self.current = BASE
        """The adapter that is folded in, or `BASE`."""

    @torch.no_grad()
    def switch(self, name: str) -> None:
        """Fold in this adapter (by PEFT's name), or none (`BASE`); switching between the two again is free."""
        if name == self.current:
            return
        if name not in (BASE, self._cached):
            self._folded = []  # one folded copy at a time
            self._folded = [self._fold(i, name) for i in range(len(self._layers))]
            self._cached = name
        weights = self._own if name == BASE else self._folded
        for tensor, data in zip(self._weights, weights, strict=True):
            tensor.data = data
        for layer, own in zip(self._copied, self._own_sets, strict=True):
            layer.weights[BASE] = own if name == BASE else layer.weights.get(name, own)
        self.current = name

    def _fold(self, i: int, name: str) -> Tensor:
        layer, own = self._layers[i], self._own[i]
        name, scale = self._route.unscaled(name)
        if name not in layer.lora_A:
            return own
        if layer.lora_bias.get(name):
            raise ValueError(
                f"adapter {name!r} has LoRA biases, which do not fold into a weight; set sampling.fuse off"
            )
        delta = layer.get_delta_weight(name).to(own.device) * scale
        return (own + delta).to(own.dtype)


def base_weight(layer: Any) -> Tensor:
    """The base's weight under a LoRA layer."""
    own = layer.get_base_layer()
    return own.weights[BASE]["weight"] if isinstance(own, Copied) else own.weight  # type: ignore[return-value]


@contextmanager
def fusing(denoiser: nn.Module) -> Iterator[Fuser]:
    """Yield a `Fuser`, whose `switch` replaces the tuned layers' weights W by W + scale B A; the exit restores W.

    A full copy replaces the base. A forward with the adapter folded in and its rows routed to `BASE` costs no more than
    the base's and needs one copy of the tuned layers' weights. It carries no gradient to the adapter. The restored
    weights are the same tensors. In bfloat16 an adapter's contribution is rounded to the spacing of W, which loses most
    of a small one.

    Examples:
        >>> denoiser = aig.load("tiny").denoiser
        >>> aig.adapters.attach(denoiser, "tuned")
        >>> with aig.adapters.fusing(denoiser) as fuser:
        ...     fuser.switch("tuned")
        ...     print(fuser.current)
        tuned
    """
    fuser = Fuser(denoiser)
    try:
        yield fuser
    finally:
        fuser.switch(BASE)
