"""Feature extractors for the diversity metrics: images (B, 3, H, W) in [0, 1] to features (B, d)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from aig.world import weights


class Features:
    """A frozen extractor with its name, dimension d and input size (None: any)."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], name: str, dimension: int, input_size: tuple[int, int] | None
    ) -> None:
        self.function, self.name, self.dimension, self.input_size = function, name, dimension, input_size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images).float()


def load(name: str, device: str | torch.device = "cpu") -> Features:
    """`world`, the embedded extractor (64 standardized features of 32x32 images), or `package.module:callable` with a
    `dimension`.

    Raises ValueError that names what was asked for and what is known.
    """
    if name == "world":
        network: Any = weights.load("features").to(device)
        return Features(network.features, name, 64, (32, 32))
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            function = getattr(import_module(module), attribute)
            return Features(function, name, function.dimension, getattr(function, "input_size", None))
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"features {name!r} cannot be loaded ({error}); it needs package.module:callable with .dimension"
            ) from None
    raise ValueError(f"features {name!r} are not known (known: world, or package.module:callable)")
