"""An exponential moving average of the weights that are tuned: what is kept instead of the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """m <- decay m + (1 - decay) p after each step, for every parameter p, in float32, from m = p at the start.

    After n steps the start still weighs decay^n, and no warm-up or correction makes it less: with 0.9999 that is 0.90
    after 1,000 steps, 0.67 after 4,000, 0.37 after 10,000. So does the published code (NeMo's EMA, decay 0.9999, which
    also validates with the average), where the average is a regularizer as much as it takes noise away. Short trainings
    want a smaller decay: 1 / (1 - decay) steps are the span that it averages over.

    Sharded parameters have sharded averages. Raises ValueError for a decay that is not in (0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay {decay} of an exponential moving average must be between 0 and 1")
        self.parameters, self.decay = list(parameters), decay
        self.means: list[Tensor] = [p.detach().to(torch.float32, copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are, after a step of the optimizer."""
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            mean.lerp_(parameter.to(mean.dtype), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the parameters are the averages; what they were comes back bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(held)
