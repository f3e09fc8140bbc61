"""What a report draws from: a run's studies, arms and estimates, and the names of things in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from aig.pareto import LEAST_SEEDS
from pipelines.front.families import FAMILIES, counted, family_name, members
from pipelines.show.estimates import UNKNOWN, Estimate

# Verdicts on a difference, as in front.json.
AHEAD, BEHIND, UNDECIDED = "ahead", "behind", "undecided"

METRICS = {
    "fragile": "fragile reward",
    "robust": "robust reward",
    "gold": "gold",
    "gold_a": "gold, judge A",
    "gold_b": "gold, judge B",
    "accuracy": "prompt accuracy",
    "accuracy_a": "prompt accuracy, judge A",
    "accuracy_b": "prompt accuracy, judge B",
    "colour_ok": "colour right",
    "shape_ok": "shape right",
    "vendi": "Vendi score in a prompt",
    "pairwise": "pairwise distance in a prompt",
    "kl_to_base": "path KL to base (nats per image)",
    "path": "path length to base (eps_mse)",
    "spectral": "spectral distance",
    "log_spectral": "log spectral distance",
    "log_spectral_floor": "log spectral distance of base to base (half of n)",
    "frechet": "Fréchet distance",
    "kid": "kernel distance (KID)",
    "cmmd": "CLIP distance (CMMD)",
    "collapse": "spread in a prompt against base (mean log ratio)",
    "precision": "precision against base",
    "recall": "recall against base",
    "vendi_pooled": "Vendi score of all images",
    "density": "density against base",
    "coverage": "coverage of base",
    "pixel_std": "contrast (std of pixels)",
}
"""Names of metrics in words; a metric that is not here is shown by its own name."""


ROLES = ("proxy", "held-out reward", "gold")
"""What a reward on the x axis of a plane is to a study."""


def metric_name(metric: str) -> str:
    """A metric in words."""
    return METRICS.get(metric, metric.replace("_", " "))


@dataclass(frozen=True)
class Arm:
    """One arm of a study: how it samples and what it measured."""

    name: str
    label: str
    family: str
    settings: Mapping[str, Any]
    """The arm's entry in arms.json: adapter, lora_scale, schedule, k, kl_weight, train_seed, step, ..."""
    metrics: Mapping[str, Estimate]
    n: int
    prompts: int
    seeds: int
    x: Estimate = UNKNOWN
    y: Estimate = UNKNOWN
    on_front: bool = False
    front_probability: float = math.nan
    broken: str | None = None
    """How its images are unsound; such an arm is shown, marked, and is on no front."""
    warning: str | None = None
    """What to know of images that are sound; the arm takes part in every comparison."""

    @property
    def members(self) -> list[str]:
        """Names of the arms that have this one's images: itself, or one a training seed where it is their mean."""
        return list(self.settings.get("members") or [self.name])

    @property
    def adapter_key(self) -> str | None:
        """Key of the training run: the adapter without the step at which a snapshot was taken."""
        adapter = self.settings.get("adapter")
        return adapter.split("@")[0] if adapter else None

    def metric(self, name: str | None) -> Estimate:
        """The metric's estimate, NaN where the arm has none."""
        return self.metrics.get(name or "", UNKNOWN)


class Difference(NamedTuple):
    """Hypervolume of family a less that of family b, at equal size."""

    a: str
    b: str
    estimate: Estimate
    verdict: str | None = None
    """Of a: ahead, behind or undecided, as `front` decided; None where it is no comparison of the report."""
    p: float = math.nan
    """Adjusted for all comparisons of the report."""
    arms: tuple[int, int] = (0, 0)
    """How many arms a and b have of their own."""
    size: int = 0
    """At how many arms they were compared."""
    by_seed: Mapping[str, float] = MappingProxyType({})
    """The difference in each training seed."""

    @property
    def decided(self) -> bool:
        """Whether either family is ahead."""
        return self.verdict in (AHEAD, BEHIND)

    @property
    def flipped(self) -> Difference:
        """Family b less family a."""
        other = {AHEAD: BEHIND, BEHIND: AHEAD}.get(self.verdict or "", self.verdict)
        by_seed = {seed: -value for seed, value in self.by_seed.items()}
        return Difference(
            self.b, self.a, -self.estimate, other, self.p, (self.arms[1], self.arms[0]), self.size, by_seed
        )


class Claim(NamedTuple):
    """A statement, the estimate that decides it, and the estimate's sign if it holds (None if not said)."""

    text: str
    estimate: Estimate
    expected: int | None
    by_seed: Mapping[str, float] = MappingProxyType({})
    """The estimate in each training seed."""


class KLPoint(NamedTuple):
    """One arm of the reward-against-KL figure; the distance to the base is a KL where the metric says so."""

    arm: str
    kl_weight: float | None
    metric: str
    unit: str
    distance: Estimate
    reward: Estimate


@dataclass(frozen=True)
class Plane:
    """Fronts and hypervolumes of a study on (x, diversity)."""

    x: str
    fronts: Mapping[str, tuple[str, ...]]
    hypervolume: Mapping[str, Estimate]
    differences: tuple[Difference, ...]
    reference: tuple[float, float]
    normalization: tuple[float, float]


@dataclass(frozen=True)
class Study:
    """Arms that are compared with one another: one reward, one K, the same prompts and noise."""

    name: str
    reward: str
    held_out: str | None
    diversity: str
    k: int | None
    """None for an adapter that was made elsewhere, as are training seeds."""
    train_seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    planes: Mapping[str, Plane]
    """By the metric on x. The proxy's always; others where front.json has them."""
    reward_vs_kl: tuple[KLPoint, ...]
    claims: tuple[Claim, ...]
    trained_with: str = ""
    """Other settings of its trainings in words, where studies differ in them."""
    trainings: Mapping[str, int] = field(default_factory=dict)
    """How many trainings each family pays for."""
    leading: bool = True
    """Whether its comparisons are the report's; not where it is one training seed of a mean."""

    @property
    def title(self) -> str:
        """The study in words."""
        if self.k is None:
            return f"{self.name}, {self.training}, by {self.reward} reward"
        return ", ".join(filter(None, (f"{self.reward} reward", f"K = {self.k}", self.trained_with, self.training)))

    @property
    def training(self) -> str:
        """The training seeds in words."""
        if not self.train_seeds:
            return "an adapter from elsewhere"
        seeds = ", ".join(map(str, self.train_seeds))
        return f"mean of training seeds {seeds}" if len(self.train_seeds) > 1 else f"training seed {seeds}"

    @property
    def scope(self) -> str:
        """Of which adapters a claim holds, in words; empty where there are seeds enough to speak of others."""
        if len(self.train_seeds) >= LEAST_SEEDS:
            return ""
        return "for these two adapters" if len(self.train_seeds) == 2 else "for this adapter"

    @property
    def slug(self) -> str:
        """The name, fit for a file name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)

    @property
    def has_kl(self) -> bool:
        """Whether rewards are set against a KL in nats, not against a path length, which is none."""
        return any(point.metric == "kl_to_base" for point in self.reward_vs_kl)

    @property
    def plane(self) -> Plane:
        """The plane of the reward that was trained on."""
        return self.planes[self.reward]

    @cached_property
    def by_name(self) -> dict[str, Arm]:
        """Arms by name."""
        return {arm.name: arm for arm in self.arms}

    def metric_of(self, role: str) -> str | None:
        """The metric in one of ROLES, None where the study has no plane for it."""
        metrics = {"proxy": self.reward, "held-out reward": self.held_out, "gold": "gold"}
        return metrics[role] if metrics[role] in self.planes else None

    def role_of(self, metric: str) -> str:
        """A metric's role in this study in words; its own name if it has none, and where nothing is known to have been
        trained on it."""
        roles = ROLES if self.train_seeds else ROLES[1:]
        return next((role for role in roles if self.metric_of(role) == metric), metric_name(metric))

    def size(self, family: str) -> int:
        """How many arms count to a family, base, tuned and broken ones not counted; all sound arms for "all"."""
        return sum((family == "all" or arm.family in members(family)) and not arm.broken for arm in self.arms)

    def family(self, family: str) -> str:
        """A family in words, as it stands beside the study's others."""
        return family_name(family, self.families)

    def counted(self, family: str) -> str:
        """The same, with the number of trainings that it pays for."""
        return counted(self.family(family), self.trainings.get(family))

    @property
    def families(self) -> list[str]:
        """Families with arms here, in the order in which they are shown."""
        present = {arm.family for arm in self.arms}
        return [family for family in FAMILIES if family in present]


@dataclass(frozen=True)
class Run:
    """All that a report needs from a run directory."""

    directory: Path
    config_text: str
    config: Mapping[str, Any]
    arms: tuple[Arm, ...]
    cost: Mapping[str, Any]
    check: Mapping[str, Any] | None
    command: str | None
    versions: Mapping[str, str] | None
    level: float
    n_bootstrap: int
    seed: int
    prompts: int
    prompts_told: str | None
    """How many prompts train, how many judge and how many do both, as a sentence; None where that is not recorded."""
    seeds: int
    studies: tuple[Study, ...]
    curves: Mapping[str, list[dict[str, float]]] = field(repr=False)
    """Adapter's key -> validations in the order of their steps."""
    comparisons: int = 0
    """Over how many comparisons the verdicts are adjusted."""
    no_interval: str | None = None
    """Why there is no interval, in words."""

    @property
    def percent(self) -> str:
        """The intervals' level in words, for example 95 %."""
        return f"{100 * self.level:g} %"

    @property
    def path_note(self) -> str:
        """On how many prompts distances to the base were measured, in words, where those are not all; else empty."""
        prompts = (self.config.get("evaluate") or {}).get("path_prompts")
        if prompts is None or prompts >= self.prompts:
            return ""
        return f"Distances to the base are means over the first {prompts} prompts."

    @property
    def stopped(self) -> dict[str, str]:
        """Where and why a guard stopped a training, in words, by its adapter."""
        told = {arm.adapter_key: arm.settings.get("stopped") for arm in self.arms if len(arm.members) == 1}
        return {key: text for key, text in told.items() if key and text}

    @cached_property
    def by_name(self) -> dict[str, Arm]:
        """All arms by name."""
        return {arm.name: arm for arm in self.arms}

    def mean_of(self, study: Study) -> Study | None:
        """The study that averages this one with others that differ in the training seed alone."""
        setting = (study.reward, study.k, study.trained_with)
        for other in self.studies if study.train_seeds else ():
            same = (other.reward, other.k, other.trained_with) == setting
            if same and set(other.train_seeds) > set(study.train_seeds):
                return other
        return None


def sample(arms: Sequence[Arm]) -> str:
    """How many images, prompts and seeds stand behind these arms."""
    prompts, seeds = (spread([getattr(arm, name) for arm in arms]) for name in ("prompts", "seeds"))
    trainings = max(len(arm.members) for arm in arms)
    averaged = f" × {trainings} training seeds; the base {min(arm.n for arm in arms)}" if trainings > 1 else ""
    n = max(arm.n for arm in arms) if averaged else spread([arm.n for arm in arms])
    return f"n = {n} images an arm ({prompts} prompts × {seeds} seeds{averaged})"


def spread(values: Sequence[int]) -> str:
    """One number, or from the least to the greatest."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
