"""An arm: one way to sample a tuned model, a point of the trade-off."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from aig import schedules
from aig.schedules import Schedule

SPACES = ("prediction", "weight")


@dataclass(frozen=True)
class Arm:
    """One point of the trade-off: an adapter, its LoRA scale, a schedule, and how the two are carried out.

    Raises ValueError that names the arm for a value out of range, a schedule that `parse` refuses, and a schedule
    without an adapter.

    Examples:
        >>> aig.Arm("annealed", "tuned", schedule="power:2").id
        '473411b424b07167'
        >>> aig.Arm("beyond", "tuned", schedule="ramp:0.5,3", space="weight").curve.to_last
        True
    """

    name: str
    adapter: str | None = None
    """The adapter's name; None for the base model, with the schedule "base"."""
    lora_scale: float = 1.0
    """In [0, 64]: 0 is the base, 1 the adapter as trained; more goes beyond it."""
    schedule: str = "tuned"
    """The text of a schedule, as `parse` reads it; one that still has to be `fitted` cannot be sampled."""
    space: str = "prediction"
    """Where the schedule acts. prediction: mix the two models' predictions, as published. weight: scale the LoRA by the
    weight, base + w lora_scale B A, for one prediction a step; the two agree up to w(1 - w) times its square."""
    guidance: float | None = None
    """Classifier-free guidance scale, at least 1; None for the sampling's own."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Progress (begin, end) in [0, 1] between which guidance acts, begin <= i/T < end; outside its scale is 1.
    Guidance interval (arXiv 2404.07724), which states it in noise levels."""
    against: str | None = None
    """Another adapter in the base's place: autoguidance (arXiv 2406.02507), if it is the tuned model's own early stop
    and the weight is above 1."""
    seed_offset: int = 0
    """Added to the seed index that its noise comes from: further images of the same prompts, which best-of-n chooses
    among."""

    def __post_init__(self) -> None:
        begin, end = self.interval
        checks = {
            "lora_scale": (0 <= self.lora_scale <= schedules.MOST, f"in [0, {schedules.MOST:g}]"),
            "space": (self.space in SPACES, f"one of {', '.join(SPACES)}"),
            "guidance": (self.guidance is None or self.guidance >= 1, "at least 1, or None for the sampling's own"),
            "interval": (0 <= begin < end <= 1, "two rising numbers in [0, 1]"),
            "seed_offset": (self.seed_offset >= 0, "at least 0"),
        }
        for key, (ok, allowed) in checks.items():
            if not ok:
                raise ValueError(f"arm {self.name!r}: {key} = {getattr(self, key)!r} must be {allowed}")
        if self.curve.name != "base" and self.adapter is None:
            raise ValueError(
                f"arm {self.name!r}: schedule {self.schedule!r} needs an adapter; without one use schedule='base'"
            )
        if self.space == "weight" and (self.curve.coin or self.against is not None):
            other = "a coin" if self.curve.coin else f"an arm against {self.against!r}"
            raise ValueError(f"arm {self.name!r}: {other} takes predictions of two models; leave space='weight' out")

    @cached_property
    def curve(self) -> Schedule:
        """The schedule itself, parsed once."""
        return schedules.parse(self.schedule)

    def __getstate__(self) -> dict[str, Any]:
        """An own function travels with its arm, to Ray's actors too; a known schedule is parsed again from its text."""
        return {name: value for name, value in self.__dict__.items() if name != "curve" or value.digest}

    @property
    def id(self) -> str:
        """A hash of what the arm does, without its name: 16 hex digits. The values of a user's own curve count."""
        digest = [self.curve.digest] if self.curve.digest else []
        later = [field for field in fields(self) if field.name not in ("name", "adapter", "lora_scale", "schedule")]
        changed = {field.name: value for field in later if (value := getattr(self, field.name)) != field.default}
        content = json.dumps([self.adapter, self.lora_scale, self.schedule, *digest, *([changed] if changed else [])])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
