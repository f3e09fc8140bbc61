"""The results of a run: what `front` computes and writes to `front.json`, and all that others read of it.

Front           the run: settings of its statistics, and its studies
  StudyResult   a training setting, and the arms compared within it
    Arm         how it samples, what its adapter was trained with, what was measured of it
    Plane       a reward against diversity: fronts, hypervolumes, and
      Difference  of two families' hypervolumes, with a verdict
    Claim       what tuning does to a metric
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from aig.pareto import LEAST_SEEDS, no_interval
from pipelines.front.families import FAMILIES, counted, family_name, members, short_name
from pipelines.front.names import COMPARED, DISTANCES, GOLD, ROLES, VERBS, metric_name
from pipelines.runs.directory import FRONT_FORMAT
from pipelines.show.estimates import UNKNOWN, Estimate, Number

Direction = Literal["up", "down"]
Verdict = Literal["ahead", "behind", "undecided"]
AHEAD, BEHIND, UNDECIDED = "ahead", "behind", "undecided"


def verdict_of(value: float, p: float, level: float) -> Verdict | None:
    """The verdict on a difference by its adjusted p-value; None if that is unknown."""
    if math.isnan(p):
        return None
    return UNDECIDED if p >= 1 - level else AHEAD if value > 0 else BEHIND


@dataclass(frozen=True)
class Arm:
    """One arm of a study."""

    name: str
    label: str
    family: str
    id: str
    adapter: str | None
    lora_scale: float
    schedule: str
    reward: str | None
    """What its adapter was trained on, as are the settings that follow; what chooses, of best-of-n; None for the
    base."""
    k: int | None
    kl_weight: float | None
    lr: float | None
    rank: int | None
    train_seed: int | None
    step: int | None
    members: tuple[str, ...]
    """The arms that it averages, one per training seed; empty unless it is a mean."""
    stopped: str | None
    """Why a guard stopped its training."""
    images: int
    front_probability: Number
    """The share of resamples in which it is optimal on the plane of the study's reward."""
    broken: str | None
    """How its images are unsound; such an arm is shown, marked, and is on no front."""
    warning: str | None
    """What to know of images that are sound; the arm takes part in every comparison."""
    metrics: Mapping[str, Estimate] = field(repr=False)
    """As `measure` wrote them."""
    kl_steps: str | None = None
    """None unless its training's KL is at drawn steps."""
    space: str = "prediction"
    """How it samples, as these four of `aig.Arm`: where the schedule acts."""
    guidance: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    against: str | None = None
    candidates: tuple[str, ...] = ()
    """The arms, in no study but for the base, among whose images best-of-n chooses; it has none of its own."""
    auto: str | None = None
    """The schedule as configured, if its weight followed from the adapter's path length."""

    @property
    def draws(self) -> int:
        """How many images are drawn for each that it keeps, at the base's cost each if there are several."""
        return max(1, len(self.candidates))

    @property
    def title(self) -> str:
        """The label, with a mark if the arm is broken or warned of."""
        return self.label + " (broken)" * bool(self.broken) + " (!)" * bool(self.warning)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the arms that have this one's images: itself, or the members of a mean."""
        return self.members or (self.name,)

    @property
    def training(self) -> str | None:
        """Key of its training: the adapter without the step at which a snapshot was taken."""
        return self.adapter and self.adapter.split("@")[0]

    @property
    def is_end(self) -> bool:
        """Whether every family reaches it: the base or the tuned model."""
        return self.family in ("base", "tuned")

    def metric(self, name: str | None) -> Estimate:
        """The metric's estimate; unknown if it was not measured."""
        return self.metrics.get(name or "", UNKNOWN)


@dataclass(frozen=True)
class Difference:
    """Hypervolume of family a less that of family b, at equal size."""

    a: str
    b: str
    estimate: Estimate
    by_seed: Mapping[int, Number] = field(default_factory=dict)
    """The difference in each training seed."""
    p: Number = math.nan
    p_adjusted: Number = math.nan
    """For all comparisons of the run, by Holm's method."""
    verdict: Verdict | None = None
    """Of a; None if the difference is not among the run's comparisons."""
    arms: tuple[int, int] = (0, 0)
    """How many arms a and b have of their own."""
    size: int = 0
    """At how many arms they were compared."""

    @property
    def decided(self) -> bool:
        """Whether either family is ahead."""
        return self.verdict in (AHEAD, BEHIND)

    @property
    def sizes(self) -> str:
        """How many arms were compared, and of how many, in words."""
        a, b = self.arms
        arms = f"{a} arm{'s' * (a != 1)}"
        return f"{arms} each" if a == b else f"{arms} against {b}, compared at {self.size} each"

    @property
    def sizes_short(self) -> str:
        """The same as numbers: "4|1 at 1"."""
        return "|".join(map(str, self.arms)) + f" at {self.size}"

    @property
    def flipped(self) -> Difference:
        """Family b less family a."""
        opposite: dict[Verdict | None, Verdict] = {AHEAD: BEHIND, BEHIND: AHEAD}
        return replace(
            self, a=self.b, b=self.a, estimate=-self.estimate, arms=self.arms[::-1],
            by_seed={seed: -value for seed, value in self.by_seed.items()},
            verdict=opposite.get(self.verdict, self.verdict),
        )  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """That tuning moves a metric in a direction, with the estimate that decides it."""

    metric: str
    direction: Direction
    against: Literal["base", "peak"]
    """What the tuned model is compared with: the base, or the best snapshot along its training."""
    estimate: Estimate
    """The tuned model less that."""
    by_seed: Mapping[int, Number] = field(default_factory=dict)
    """The same in each training seed."""

    @property
    def holds(self) -> bool:
        """Whether the interval lies on the claimed side of zero."""
        return self.estimate.sign == (1 if self.direction == "up" else -1)


@dataclass(frozen=True)
class Plane:
    """A study's arms by a reward on x and diversity on y, both up."""

    x: str
    y: str
    reference: tuple[float, float]
    """Where hypervolumes start."""
    scale: tuple[float, float]
    """The units that they are in."""
    points: Mapping[str, tuple[Estimate, Estimate]] = field(repr=False)
    """Each arm's place by name, (x, y)."""
    fronts: Mapping[str, tuple[str, ...]]
    """Each family's optimal arms by name, by x; those among all arms under "all"."""
    hypervolume: Mapping[str, Estimate]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class StudyResult:
    """Arms that are compared with one another: one reward, one K, the same prompts and noise."""

    name: str
    reward: str
    """The proxy, trained on; for an adapter from elsewhere the first reward that scores images."""
    held_out: str | None
    k: int | None
    """None for an adapter from elsewhere."""
    train_seeds: tuple[int, ...]
    """Empty for an adapter from elsewhere."""
    varied: Mapping[str, float]
    """Other settings of its trainings that the run's studies differ in."""
    leading: bool
    """Whether its comparisons count: not if it is one training seed of a mean."""
    trainings: Mapping[str, int]
    """How many trainings each family pays for."""
    arms: tuple[Arm, ...]
    dominance: tuple[tuple[float, ...], ...] = field(repr=False)
    """The probability that the arm of the row dominates that of the column on the plane of the reward."""
    planes: Mapping[str, Plane]
    """By the reward on x, the study's own first."""
    claims: tuple[Claim, ...]

    @property
    def trained(self) -> bool:
        """Whether the run trained its adapters."""
        return bool(self.train_seeds)

    @property
    def plane(self) -> Plane:
        """The plane of the study's reward."""
        return self.planes[self.reward]

    @property
    def diversity(self) -> str:
        """The metric on y."""
        return self.plane.y

    @cached_property
    def by_name(self) -> dict[str, Arm]:
        """Arms by name."""
        return {arm.name: arm for arm in self.arms}

    @property
    def distance(self) -> str | None:
        """The distance to the base that was measured: the KL if sampling has one."""
        return next((name for name in DISTANCES if any(name in arm.metrics for arm in self.arms)), None)

    @property
    def slug(self) -> str:
        """The name, fit for a file name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)

    @property
    def families(self) -> list[str]:
        """Families with arms here, in the order in which they are shown."""
        present = {arm.family for arm in self.arms}
        return [family for family in FAMILIES if family in present]

    def size(self, family: str) -> int:
        """How many sound arms a comparison counts to a family, without base and tuned; all sound arms for "all"."""
        return sum((family == "all" or arm.family in members(family)) and not arm.broken for arm in self.arms)

    def metric_of(self, role: str) -> str | None:
        """The metric in one of ROLES; None if the study has no plane for it."""
        metric = (self.reward, self.held_out, GOLD)[ROLES.index(role)]
        return metric if metric in self.planes else None

    def role_of(self, metric: str) -> str:
        """A metric's role in this study, else its name in words; without training there is no proxy."""
        roles = ROLES if self.trained else ROLES[1:]
        return next((role for role in roles if self.metric_of(role) == metric), metric_name(metric))

    def family(self, family: str) -> str:
        """A family in words, as it stands beside the study's others."""
        return family_name(family, self.families)

    def short(self, family: str) -> str:
        """The same in few words."""
        return short_name(family, self.families)

    def counted(self, family: str, short: bool = False) -> str:
        """A family in words, or in few, with the number of trainings that it pays for."""
        return counted(self.short(family) if short else self.family(family), self.trainings.get(family))

    def statement(self, claim: Claim, denial: str = "", difference: bool = True) -> str:
        """A claim in words: "gold falls under its peak along training (tuned − peak)"; with a denial ("does not") the
        opposite."""
        names = {self.held_out: "held-out reward", self.diversity: "diversity"}
        names |= {self.reward: "proxy reward"} if self.trained else {}
        asserted, denied = VERBS[claim.direction]
        words, shown = COMPARED[claim.against]
        verb = f"{denial} {denied}" if denial else asserted
        parts = (names.get(claim.metric, metric_name(claim.metric)), verb, words, shown if difference else "")
        return " ".join(filter(None, parts))

    @property
    def title(self) -> str:
        """The study in words."""
        if self.k is None:
            return f"{self.name}, {self.training}, by {self.reward} reward"
        names = {"lr": "learning rate"}
        varied = [f"{names.get(name, name)} {value:g}" for name, value in self.varied.items()]
        return ", ".join([f"{self.reward} reward", f"K = {self.k}", *varied, self.training])

    @property
    def training(self) -> str:
        """The training seeds in words."""
        if not self.trained:
            return "an adapter from elsewhere"
        seeds = ", ".join(map(str, self.train_seeds))
        return f"mean of training seeds {seeds}" if len(self.train_seeds) > 1 else f"training seed {seeds}"

    @property
    def scope(self) -> str:
        """Which adapters a claim holds for; empty if there are seeds enough to speak of others."""
        if len(self.train_seeds) >= LEAST_SEEDS:
            return ""
        return "for these two adapters" if len(self.train_seeds) == 2 else "for this adapter"


@dataclass(frozen=True, kw_only=True)
class Front:
    """All results of a run."""

    format: int = FRONT_FORMAT
    diversity: str
    level: float
    n_bootstrap: int
    seed: int
    interval: str
    """How intervals of means are taken."""
    prompts: int
    prompt_lists: Mapping[str, int | str | None]
    """How many prompts train, validate and judge, as `pipelines.study.prompts` counts them."""
    seeds: int
    """Images per arm and prompt."""
    cost: Mapping[str, float]
    """Predictions per (prompt, seed): ours, and those of loops that share nothing; empty if not on record."""
    studies: tuple[StudyResult, ...]
    """Means over training seeds first."""

    @property
    def percent(self) -> str:
        """The intervals' level in words, for example 95 %."""
        return f"{100 * self.level:g} %"

    @property
    def no_interval(self) -> str | None:
        """Why there is no interval, in words."""
        return no_interval(self.prompts)

    @property
    def comparisons(self) -> int:
        """Over how many differences the verdicts are adjusted."""
        planes = [plane for study in self.studies for plane in study.planes.values()]
        return sum(difference.verdict is not None for plane in planes for difference in plane.differences)

    @cached_property
    def by_name(self) -> dict[str, Arm]:
        """Every arm by name; one that several studies share as the first of them has it."""
        arms: dict[str, Arm] = {}
        for study in self.studies:
            for arm in study.arms:
                arms.setdefault(arm.name, arm)
        return arms

    def mean_of(self, study: StudyResult) -> StudyResult | None:
        """The study that averages this one with others that differ in the training seed alone."""
        setting = (study.reward, study.k, study.varied)
        for other in self.studies if study.trained else ():
            if (other.reward, other.k, other.varied) == setting and set(other.train_seeds) > set(study.train_seeds):
                return other
        return None
