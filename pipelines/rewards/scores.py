"""Every score of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aig import rewards
from aig.metrics import features
from aig.rewards import RewardSpec
from pipelines.rewards.names import Columns, Statistics

GOLD = "gold"
JUDGES = ("gold_a", "gold_b")
ACCURACIES = ("accuracy_a", "accuracy_b", "colour_ok", "shape_ok")


class Scores:
    """Rewards, the gold one with its judges, and a feature extractor, loaded once to score any images.

    A weighted sum is z-scored by the base model's `statistics` of its terms, or without them the raw sum.
    """

    def __init__(
        self,
        columns: Columns,
        statistics: Statistics | None = None,
        gold: RewardSpec | None = None,
        extractor: features.Spec | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.rewards: dict[str, Any] = {name: rewards.load(spec, device) for name, spec in columns.parts.items()}
        self.sums = {
            name: rewards.WeightedSum(
                {part: self.rewards[part] for part in weights},
                weights,
                None if statistics is None else {part: statistics[part] for part in weights},
            )
            for name, weights in columns.sums.items()
        }
        if gold is not None:
            self.rewards[GOLD] = rewards.load(gold, device)
        judged = gold is not None and gold.name == GOLD
        self.judges: dict[str, Any] = {name: rewards.load(name, device) for name in JUDGES} if judged else {}
        self.features = None if extractor is None else features.load(extractor, device)

    @property
    def columns(self) -> list[str]:
        """The names of the float columns."""
        return [*self.rewards, *self.sums, *self.judges, *(ACCURACIES if self.judges else ())]

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Float columns (B,) and, with an extractor, `features` (B, d) of saved images (B, 3, H, W) uint8."""
        images, texts = images.to(self.device), list(prompts)
        columns = rewards.report_all(self.rewards | self.judges, images, texts)
        columns |= {name: added.combine(columns) for name, added in self.sums.items()}
        if self.judges:
            columns |= rewards.accuracies(self.judges, images.float() / 255, texts)
        scores = {name: columns[name].float().cpu() for name in self.columns}
        return scores if self.features is None else {**scores, "features": features.report(self.features, images).cpu()}
