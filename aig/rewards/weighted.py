"""A weighted sum of rewards, each normalized by the base model's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aig.rewards.base import LibraryReward, Reward
from aig.vision import Views

Statistics = Mapping[str, Sequence[float]]  # component: (mean, standard deviation)


class WeightedSum(LibraryReward):
    """`sum of w_i * (r_i - mean_i) / std_i` with the base model's `statistics`; without them, `sum of w_i * r_i`.

    Scales of rewards differ by orders of magnitude, so the weights of a raw sum mean little: PickScore's 0.5 outweighs
    ImageReward's. A component with `higher_is_better` False has the opposite sign. Raises ValueError for statistics
    that lack a component or have a deviation that is not positive.

    Examples:
        >>> parts = {name: aig.rewards.load(name) for name in ("fragile", "robust")}
        >>> aig.rewards.WeightedSum(parts, {"fragile": 1.0, "robust": 0.5}).name
        '1*fragile + 0.5*robust'
    """

    def __init__(
        self, components: Mapping[str, Reward], weights: Mapping[str, float], statistics: Statistics | None = None
    ) -> None:
        self.components, self.weights = dict(components), dict(weights)
        self.name = " + ".join(f"{self.weights[name]:g}*{name}" for name in self.components)
        self.differentiable = all(part.differentiable for part in self.components.values())
        self.trainable = all(part.trainable for part in self.components.values())
        self.reads_prompts = any(getattr(part, "reads_prompts", True) for part in self.components.values())
        self.statistics = statistics

    @property
    def statistics(self) -> dict[str, tuple[float, float]] | None:
        """Mean and standard deviation of each component's scores of the base model; None for the raw sum."""
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: Statistics | None) -> None:
        self._statistics = None if statistics is None else _checked(self.name, statistics, self.components)
        # The usual range of sums: three standard deviations of each term, or the terms' own ranges.
        ends = [
            sorted(weight * value for value in (self.components[name].range if statistics is None else (-3.0, 3.0)))
            for name, weight in self._signed().items()
        ]
        self.range = sum(low for low, _ in ends), sum(high for _, high in ends)

    def score(self, views: Views, prompts: list[str]) -> Tensor:
        return self.combine(self._columns(views, prompts))

    def columns(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """The components' own scores (B,) by name, of images for a call (floats) or for `report` (uint8)."""
        if images.dtype != torch.uint8:
            self.check(images)
        return self._columns(Views(images, self._rounding), prompts)

    def _columns(self, views: Views, prompts: list[str]) -> dict[str, Tensor]:
        return {
            name: part.checked(views, prompts) if isinstance(part, LibraryReward) else part(views.floats, prompts)
            for name, part in self.components.items()
        }

    def combine(self, columns: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum (B,) of the components' scores, as `columns` returns them."""
        total: Tensor | None = None
        for name, weight in self._signed().items():
            mean, std = self.statistics[name] if self.statistics else (0.0, 1.0)
            term = weight * (columns[name] - mean) / std
            total = term if total is None else total + term
        assert total is not None
        return total

    def checkpoint(self) -> None:
        for part in self.components.values():
            if isinstance(part, LibraryReward):
                part.checkpoint()

    def _signed(self) -> dict[str, float]:
        return {
            name: weight if self.components[name].higher_is_better else -weight for name, weight in self.weights.items()
        }


def _checked(name: str, statistics: Statistics, components: Mapping[str, Reward]) -> dict[str, tuple[float, float]]:
    lacking = [component for component in components if component not in statistics]
    if lacking:
        raise ValueError(
            f"reward {name!r}: statistics lack {', '.join(lacking)}; give (mean, standard deviation) of every component"
        )
    result = {component: (float(statistics[component][0]), float(statistics[component][1])) for component in components}
    for component, (mean, std) in result.items():
        if not math.isfinite(mean) or not math.isfinite(std) or std <= 0:
            raise ValueError(
                f"reward {name!r}: {component} has mean {mean:g} and standard deviation {std:g} over the base model's "
                "images; a term is divided by a positive, finite one: measure it on more images"
            )
    return result
