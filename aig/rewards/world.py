"""The embedded world's rewards: two learned preference models to tune to, and the hidden utility to judge by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aig.rewards.base import LibraryReward
from aig.rewards.spec import RewardSpec
from aig.vision import Source, Views
from aig.world import weights

# name: (network, range, whether it may be tuned to)
WORLD = {
    "world": ("fragile", (5.0, 25.0), True),
    "fragile": ("fragile", (5.0, 25.0), True),
    "robust": ("robust", (5.0, 25.0), True),
    "gold": ("gold", (-2.0, 4.5), False),
    "gold_a": ("judge_a", (-2.0, 4.5), False),
    "gold_b": ("judge_b", (-2.0, 4.5), False),
}


class WorldReward(LibraryReward):
    """A frozen reward of the embedded world, for images (B, 3, 32, 32) in [0, 1] and prompts of its caption grammar.

    Its small networks compute in float32 at least. Raises ValueError for a prompt outside the grammar.

    Examples:
        >>> aig.rewards.WorldReward("gold")(torch.zeros(1, 3, 32, 32), ["a red star"]).shape
        torch.Size([1])
    """

    def __init__(
        self,
        name: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        label: str | None = None,
    ) -> None:
        network, self.range, self.trainable = WORLD[name]
        self.name, self.key = label or name, name
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.network: Any = weights.load(network).to(device, self.dtype)

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        score = self.network.gold if self.key in ("gold_a", "gold_b") else self.network
        return score(views.floats.to(self.dtype), prompts)


def sources(spec: RewardSpec) -> list[Source]:
    """None: the weights are in the package."""
    return []


def load(spec: RewardSpec, device: torch.device, dtype: torch.dtype) -> WorldReward:
    """Load one of `WORLD`."""
    return WorldReward(spec.name, device, dtype, spec.column)


@torch.no_grad()
def accuracies(judges: dict[str, WorldReward], images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """Whether the judges gold_a and gold_b see the colour and shape that each prompt names.

    images (B, 3, 32, 32) in [0, 1]. Returns float columns (B,): accuracy_a, accuracy_b (1 if both are right), and
    colour_ok, shape_ok (the share of judges that agree).

    Examples:
        >>> judges = {name: aig.rewards.load(name) for name in ("gold_a", "gold_b")}
        >>> list(aig.rewards.accuracies(judges, torch.zeros(1, 3, 32, 32), ["a red star"]))
        ['accuracy_a', 'accuracy_b', 'colour_ok', 'shape_ok']
    """
    hits = torch.stack(
        [judges[name].network.hits(images, prompts) for name in ("gold_a", "gold_b")]
    ).float()  # (2, B, 2)
    both = hits.prod(dim=2)
    return {
        "accuracy_a": both[0],
        "accuracy_b": both[1],
        "colour_ok": hits[:, :, 0].mean(0),
        "shape_ok": hits[:, :, 1].mean(0),
    }
