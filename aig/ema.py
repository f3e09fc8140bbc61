"""An exponential moving average of the tuned weights, kept instead of the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """m <- decay m + (1 - decay) p after each step, for every parameter p, in float32, from m = p at the start.

    After n steps the start still weighs decay^n, without warm-up or correction: with 0.9999 that is 0.90 after 1,000
    steps, 0.67 after 4,000, 0.37 after 10,000. The published code does the same (NeMo's EMA, decay 0.9999, which also
    validates with the average); there the average regularizes as much as it removes noise. It spans about
    1 / (1 - decay) steps, so short trainings need a smaller decay.

    Sharded parameters have sharded averages. Raises ValueError for a decay outside (0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay {decay} of an exponential moving average must be between 0 and 1")
        self.parameters, self.decay = list(parameters), decay
        self.means: list[Tensor] = [p.detach().to(torch.float32, copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Average in the current parameters, after a step of the optimizer."""
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            mean.lerp_(parameter.to(mean.dtype), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averages into the parameters within the context; the parameters return bit for bit."""
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
