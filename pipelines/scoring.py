"""Every score of an image that the pipeline knows: rewards, the judges' gold and accuracy, features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aig import rewards
from aig.metrics import features
from pipelines.layout import slug

GOLD = "gold"
JUDGES = ("gold_a", "gold_b")
ACCURACIES = ("accuracy_a", "accuracy_b", "colour_ok", "shape_ok")


class Scores:
    """Loads rewards, the gold one with its judges, and a feature extractor once; scores any images with them."""

    def __init__(
        self, names: Sequence[str], gold: str | None, extractor: features.Spec, device: str | torch.device = "cpu"
    ) -> None:
        self.rewards = {slug(name): rewards.load(name, device) for name in names}
        if gold is not None:
            self.rewards[GOLD] = rewards.load(gold, device)
        self.judges = {name: rewards.load(name, device) for name in JUDGES} if gold == GOLD else {}
        self.features = features.load(extractor, device)

    @property
    def columns(self) -> list[str]:
        """The names of the float columns."""
        return [*self.rewards, *self.judges, *(ACCURACIES if self.judges else ())]

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Float columns (B,) and `features` (B, d) of images (B, 3, H, W) in [0, 1]."""
        texts = list(prompts)
        columns = {name: reward(images, texts) for name, reward in (self.rewards | self.judges).items()}
        if self.judges:
            columns |= rewards.accuracies(self.judges, images, texts)  # type: ignore[arg-type]
        found = features.report(self.features, (images * 255).round().to(torch.uint8))
        return {**{name: value.float() for name, value in columns.items()}, "features": found}


def rounded(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as 8 bits hold them."""
    return (images.float().clamp(0, 1) * 255).round() / 255
