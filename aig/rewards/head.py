"""The linear head of the aesthetic predictor and of ImageReward."""

from __future__ import annotations

from collections.abc import Mapping
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

LAYERS = (0, 2, 4, 6, 7)  # in the published modules, with dropouts between them


def linear_head(state: Mapping[str, Tensor], width: int, user: str, prefix: str = "layers.") -> nn.Sequential:
    """Linear layers from embeddings (B, width) to (B, 1), from `<prefix>N.weight` and `.bias` with N in `LAYERS`.

    In float32, eval mode and frozen; neither publication has activations between them. Raises ValueError for other
    keys, and for layers whose widths do not chain from `width` to 1.
    """
    keys = {key for key in state if key.startswith(prefix)}
    expected = {f"{prefix}{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}
    if keys != expected:
        raise ValueError(
            f"{user}: the head's weights do not have the keys of a published linear head ({', '.join(sorted(expected))}"
            f"); different: {', '.join(sorted(keys ^ expected)[:4])}"
        )
    layers = []
    for layer in LAYERS:
        weight, bias = state[f"{prefix}{layer}.weight"], state[f"{prefix}{layer}.bias"]
        if weight.shape[1] != width:
            raise ValueError(
                f"{user}: {prefix}{layer} takes {weight.shape[1]} numbers and gets {width}; the head belongs to "
                "another backbone: name that one, or the head that was trained on this one"
            )
        linear = nn.Linear(width, len(weight))
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers.append(linear)
        width = len(weight)
    if width != 1:
        raise ValueError(f"{user}: the head gives {width} numbers per image, not one; give a published linear head")
    return nn.Sequential(*layers).eval().requires_grad_(False)


def read_state(path: object, user: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; ValueError if it holds anything else (only tensors are unpickled)."""
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, KeyError, EOFError) as error:
        raise ValueError(f"{user}: {path} is no file of weights ({str(error).strip().splitlines()[0]})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{user}: {path} holds no dict of tensors; give the published checkpoint")
    return state
