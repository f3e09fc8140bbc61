"""Diversity of one prompt's images by a perceptual distance: LPIPS or DreamSim if installed, or any other."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Distance = Callable[[Tensor, Tensor], Tensor]
"""From images (B, 3, H, W) in [0, 1] and as many others to distances (B,)."""


def load(name: str, device: str | torch.device = "cpu", weights: str | None = None) -> Distance:
    """`lpips` (Zhang et al. 2018, AlexNet) or `dreamsim` (Fu et al. 2023, ensemble): distances >= 0 without unit.

    Neither package is a dependency. LPIPS takes images of about 64 px and more; its AlexNet comes from torchvision's
    cache (TORCH_HOME). DreamSim resizes images to 224 × 224; weights is the folder of its files, `models` by default.
    Both download missing files. Raises ValueError for another name, and if the package is not installed or its weights
    cannot be read.
    """
    if name not in BUILDERS:
        raise ValueError(f"perceptual distance {name!r} is not known (known: {', '.join(BUILDERS)})")
    try:
        return BUILDERS[name](import_module(name), torch.device(device), weights)
    except ImportError as error:
        raise ValueError(f"perceptual distance {name!r} needs a package ({error}): pip install {name}") from error
    except OSError as error:
        raise ValueError(
            f"perceptual distance {name!r} has no weights at hand ({error}): load it once on a machine with a network, "
            "and copy its files here"
        ) from error


@torch.no_grad()
def mean_pairwise_perceptual_distance(images: Tensor, distance: Distance, *, batch: int = 64) -> float:
    """Mean distance over all pairs of different images (n, 3, H, W) of one prompt; higher is more diverse.

    `distance` takes images and as many others to distances (B,), as `aig.metrics.perceptual.load` returns. Each pair is
    measured once, `batch` at a time. Raises ValueError for fewer than two images, values that are not finite, or a
    distance that returns another shape or such values.

    Examples:
        >>> images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
        >>> mse = lambda a, b: (a - b).square().mean(dim=(1, 2, 3))
        >>> aig.metrics.mean_pairwise_perceptual_distance(images, mse)
        1.0
    """
    n = len(images)
    if images.ndim != 4 or n < 2:
        raise ValueError(f"images have shape {tuple(images.shape)}: give at least two as (n, 3, height, width)")
    if not torch.isfinite(images).all():
        raise ValueError("images hold values that are not finite: drop them, or mark their arm as broken")
    first, second = torch.triu_indices(n, n, 1)
    total = 0.0
    for i, j in zip(first.split(batch), second.split(batch), strict=True):
        values = distance(images[i], images[j])
        if values.shape != (len(i),) or not torch.isfinite(values).all():
            raise ValueError(
                f"the distance gave shape {tuple(values.shape)} for {len(i)} pairs, or values that are not finite: "
                "it must give one finite number per pair"
            )
        total += float(values.double().sum())
    return total / len(first)


def _lpips(package: Any, device: torch.device, weights: str | None) -> Distance:
    network = package.LPIPS(net="alex", verbose=False).to(device).eval()
    return lambda a, b: network(a.to(device), b.to(device), normalize=True)[:, 0, 0, 0]


def _dreamsim(package: Any, device: torch.device, weights: str | None) -> Distance:
    network, _ = package.dreamsim(pretrained=True, device=str(device), cache_dir=weights or "models")

    def resized(images: Tensor) -> Tensor:
        images = interpolate(images.to(device), (224, 224), mode="bicubic", antialias=True)
        return images.clamp(0, 1)

    # The network drops the batch dimension of a single pair.
    return lambda a, b: network(resized(a), resized(b)).reshape(len(a))


BUILDERS: dict[str, Callable[[Any, torch.device, str | None], Distance]] = {"lpips": _lpips, "dreamsim": _dreamsim}
