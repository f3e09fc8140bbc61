"""What the tests of the pipeline share: rewards and features without weights, for any process, and a small run."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from aig.world.scenes import all_prompts

HERE = Path(__file__).parent


def red(images: Tensor, prompts: list[str]) -> Tensor:
    """How red an image is: differentiable, and easy to ascend."""
    return 10 * (images[:, 0].flatten(1).mean(1) - images[:, 1:].flatten(1).mean(1))


def unhurried(images: Tensor, prompts: list[str]) -> Tensor:
    """How red an image is, told so late that there is time to kill who asks."""
    time.sleep(0.2)
    return red(images, prompts)


def pale(images: Tensor, prompts: list[str]) -> Tensor:
    """How little red there is: what falls as `red` is ascended."""
    return -red(images, prompts)


def bright(images: Tensor, prompts: list[str]) -> Tensor:
    return images.flatten(1).mean(1)


def promptless(images: Tensor, prompts: list[str]) -> Tensor:
    return bright(images, prompts)


promptless.reads_prompts = False  # type: ignore[attr-defined]


def spoiled(images: Tensor, prompts: list[str]) -> Tensor:
    """How red an image is, but NaN for prompts of a heart."""
    factor = [float("nan") if "heart" in prompt else 1.0 for prompt in prompts]
    return red(images, prompts) * images.new_tensor(factor)


def __getattr__(name: str) -> Callable[[Tensor, list[str]], Tensor]:
    """`until_HEX`: how red an image is, but no reward to train on until there is a file at the path in hexadecimal;
    `nan_HEX`: NaN where it is trained on, with each such process noted in that file."""
    kind, _, path = name.partition("_")
    if kind not in ("until", "nan"):
        raise AttributeError(name)
    path = Path(bytes.fromhex(path).decode())

    def nan(images: Tensor, prompts: list[str]) -> Tensor:
        if not images.requires_grad:
            return red(images, prompts)
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return red(images, prompts) * float("nan")

    def until(images: Tensor, prompts: list[str]) -> Tensor:
        if images.requires_grad and not path.exists():
            raise RuntimeError(f"{path.name} is not there yet")
        return red(images, prompts)

    return until if kind == "until" else nan


def misshapen(images: Tensor, prompts: list[str]) -> Tensor:
    """No score an image, which is found where it is first called."""
    return images.mean()


def constant(images: Tensor, prompts: list[str]) -> Tensor:
    return 0 * bright(images, prompts) + 3


def warning(images: Tensor, prompts: list[str]) -> Tensor:
    warnings.warn(f"{len(prompts)} prompts were truncated", stacklevel=2)
    return bright(images, prompts)


def refusing(images: Tensor, prompts: list[str]) -> Tensor:
    """How bright an image is, of anything but stars."""
    if any("star" in prompt for prompt in prompts):
        raise RuntimeError("a star has no brightness")
    return bright(images, prompts)


def squared(u: float) -> float:
    """A schedule: power:2."""
    return u**2


def pixels(images: Tensor) -> Tensor:
    """Images on 4 x 4 pixels (B, 48), none a row of zeros."""
    return F.adaptive_avg_pool2d(images, 4).flatten(1) + 0.1


pixels.dimension = 48  # type: ignore[attr-defined]


def overrides(model: Path, storage: Path, **more: object) -> list[str]:
    """A smoke run on an untrained model, with the toys for rewards; `more` are keys with two underscores for a dot.

    A number of prompts is that of the embedded world's captions, as a list: only the embedded model takes a number.
    """
    given = {"train__prompts": 32, "evaluate__prompts": 2, **more}
    for key in ("train__prompts", "evaluate__prompts"):
        if isinstance(given[key], int):
            given[key] = json.dumps(all_prompts()[: given[key]])
    return [
        f"model.name={model}",
        f"run.storage={storage}",
        "train.reward=pipeline_toys:red",
        "sweep.rewards=['pipeline_toys:red']",
        "sweep.kl_weights=[0]",
        "evaluate.rewards=['pipeline_toys:red', 'pipeline_toys:bright']",
        "evaluate.gold=pipeline_toys:bright",
        "evaluate.features=pipeline_toys:pixels",
        "evaluate.generators=1",
        *(f"{key.replace('__', '.')}={value}" for key, value in given.items()),
    ]
