"""What a run compares: studies, and the arms of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from aig import digests, schedules
from aig.sampler import Arm
from pipelines.config import Config, ConfigError, Train, given
from pipelines.study import lengths, limits, rivals
from pipelines.study.trainings import adapter_key, external, seedless_key
from pipelines.study.trials import Group, Trials, early_stops, setting_name


@dataclass(frozen=True)
class StudyArm:
    """An arm and its role in its study."""

    arm: Arm
    family: str
    """One of `pipelines.front.families`."""
    label: str
    reward: str | None = None
    """What its adapter was trained on; of best-of-n what chooses."""
    k: int | None = None
    kl_weight: float | None = None
    kl_steps: str | None = None
    """None unless its KL is at drawn steps."""
    lr: float | None = None
    rank: int | None = None
    """None unless the adapter is a LoRA."""
    train_seed: int | None = None
    step: int | None = None
    members: tuple[str, ...] = ()
    """The arms that a mean over training seeds averages; it has no images of its own."""
    stopped: str | None = None
    """In words, if a guard stopped the training of its adapter."""
    candidates: tuple[Arm, ...] = ()
    """What best-of-n chooses among for each prompt and seed index, by `reward`; it has no images of its own."""
    auto: str | None = None
    """The schedule as configured, if its weight follows from the adapter; the arm's own is complete once measured."""

    @cached_property
    def id(self) -> str:
        """The arm's id, which travels to the actors with it; an `auto` weight may come to that of another arm."""
        return self.arm.id if self.auto is None else digests.of_texts([self.arm.id, self.auto])

    def to_dict(self) -> dict[str, Any]:
        about = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "arm"}
        names = {"members": list(self.members), "candidates": [arm.name for arm in self.candidates]}
        how = asdict(self.arm)
        del how["seed_offset"]  # which none has that is listed
        return {**how, "id": self.id, **about, **names}


@dataclass(frozen=True)
class Study:
    """One training setting (reward, K, learning rate, rank, seeds) and every arm compared within it, the base first.

    An adapter from elsewhere is a setting too. Its training is unknown: the first reward that scores images stands in
    for the one that it was trained on.
    """

    name: str
    reward: str
    k: int | None
    train_seeds: tuple[int, ...]
    arms: tuple[StudyArm, ...] = field(repr=False)
    tuned: Train | None = None
    """The training of the tuned arm (of a mean the first seed's); None for an adapter from elsewhere."""

    @property
    def trained(self) -> bool:
        """Whether the run trained its adapters."""
        return bool(self.train_seeds)

    def by_seed(self, arms: Sequence[StudyArm]) -> list[list[str]]:
        """The names of these arms in each training seed: a mean's members, or the arms' own names."""
        seeds = max((len(arm.members) for arm in self.arms), default=0)
        return [[arm.members[s] if arm.members else arm.arm.name for arm in arms] for s in range(max(1, seeds))]

    def one(self, family: str) -> StudyArm:
        """The only arm of a family: the base or the tuned one."""
        return next(arm for arm in self.arms if arm.family == family)

    def trainings(self, arms: Iterable[int]) -> int:
        """How many trainings per seed these arms take; a snapshot comes with its training."""
        saved = [name for a in arms for name in rivals.saved(self.arms[a].arm)]
        return len({name.partition("@")[0] for name in saved})


def studies(trials: Trials) -> list[Study]:
    """Every study of a run: the sweep's, then those of adapters from elsewhere."""
    config = trials.config
    trained = [
        Study(
            group.name, group.tuned.reward, group.tuned.k, (group.tuned.seed,), tuple(_arms(trials, group)), group.tuned
        )
        for group in trials.groups()
    ]
    return trained + [
        Study(name, config.evaluate.rewards[0], None, (), tuple(_external_arms(trials, name)))
        for name in external(config)
    ]


def check_arms(singles: Sequence[Study]) -> None:
    """ConfigError if there is no arm, or two have one name or would be the same images."""
    if not singles:
        raise ConfigError(
            "sweep.rewards and evaluate.adapters are both []: give rewards to train on, or an adapter, as in "
            "--adapter mine=lora.safetensors"
        )
    arms = [arm for study in singles for arm in study.arms if arm.arm.adapter is not None]
    for what, names in (("studies", [study.name for study in singles]), ("arms", [arm.arm.name for arm in arms])):
        double = next((name for name in names if names.count(name) > 1), None)
        if double:
            raise ConfigError(
                f"two {what} are called {double!r}: give each LoRA scale and schedule once, and adapters from "
                "elsewhere names of their own"
            )
    does: dict[str, str] = {}
    for arm in arms:
        if does.setdefault(arm.id, arm.arm.name) != arm.arm.name:
            raise ConfigError(
                f"the arms {does[arm.id]!r} and {arm.arm.name!r} would be the same images: give each schedule once, "
                "and no LoRA scale of 1"
            )


def mean_studies(singles: Sequence[Study]) -> list[Study]:
    """The mean over training seeds of each setting that has several."""
    settings: dict[str, list[Study]] = {}
    for single in singles:
        if single.tuned is not None:
            settings.setdefault(setting_name(single.tuned), []).append(single)
    return [_mean_study(name, group) for name, group in settings.items() if len(group) > 1]


def _mean_study(name: str, group: list[Study]) -> Study:
    """Average only arms that every seed has: a failed or stopped training lacks some."""
    first, seeds = group[0], tuple(seed for single in group for seed in single.train_seeds)
    rows = [{_of_mean(arm): arm for arm in single.arms} for single in group]
    arms = []
    for mean_name in rows[0]:
        places = [row[mean_name] for row in rows if mean_name in row]
        if len(places) < len(group):
            continue
        arm = places[0]
        if arm.arm.adapter is not None:
            members = tuple(place.arm.name for place in places)
            step = arm.step if len({place.step for place in places}) == 1 else None
            stopped = "; ".join(f"training seed {p.train_seed}: {p.stopped}" for p in places if p.stopped) or None
            mean = replace(arm.arm, name=mean_name, schedule=arm.auto or arm.arm.schedule)
            arm = replace(arm, arm=mean, train_seed=None, members=members, step=step, stopped=stopped)
        arms.append(arm)
    return Study(name, first.reward, first.k, seeds, tuple(arms), first.tuned)


def _of_mean(arm: StudyArm) -> str:
    """The name of the mean over training seeds that an arm belongs to."""
    setting, seed, way = arm.arm.name.rpartition(f"-s{arm.train_seed}")
    return f"{setting}-mean{way}" if seed else arm.arm.name


def drawn_arms(singles: Iterable[Study]) -> list[StudyArm]:
    """The arms that have images: those of all studies, and what best-of-n chooses among, each once."""
    arms = [arm for single in singles for arm in single.arms]
    candidates = [StudyArm(one, CANDIDATE, one.name) for arm in arms for one in arm.candidates]
    drawn: dict[str, StudyArm] = {}
    for arm in [*(arm for arm in arms if not arm.candidates), *candidates]:
        drawn.setdefault(arm.arm.name, arm)
    return list(drawn.values())


def _arms(trials: Trials, group: Group) -> Iterator[StudyArm]:
    yield BASE_ARM
    for train in (group.tuned, *group.others):
        yield from _adapter_arms(trials, group, train)
    yield from _base_arms(trials.config, group.tuned.reward)


def _adapter_arms(trials: Trials, group: Group, train: Train) -> Iterator[StudyArm]:
    evaluate, key = trials.config.evaluate, adapter_key(train)
    stop, tuned = trials.stopped.get(key), train == group.tuned
    steps = train.steps if stop is None else stop["step"]
    common: dict[str, Any] = {"reward": train.reward, "k": train.k, "kl_weight": train.kl_weight, "lr": train.lr}
    common |= {"rank": train.rank if train.method == "lora" else None, "train_seed": train.seed}
    common |= {"kl_steps": train.drawn_kl or None, "stopped": None if stop is None else limits.describe_stop(stop)}
    family, label = ("tuned", "tuned") if tuned else _differing(train, group.tuned)
    of, with_label = ("", "") if tuned else (f"{family.removeprefix('early_')}-", f"{label} + ")
    yield StudyArm(Arm(key, key), family, label, **common, step=steps)
    for arm, way, name, auto in guided(trials.config, key, "schedules" if tuned else "kl_schedules"):
        yield StudyArm(arm, of + way, with_label + name, **common, step=steps, auto=auto)
    scaled = "LoRA" if train.method == "lora" else "tuning"
    for scale in evaluate.lora_scales if tuned else evaluate.kl_lora_scales:
        arm, name = Arm(f"{key}x{scale:g}", key, scale), f"{scaled} ×{scale:g}"
        yield StudyArm(arm, f"{of}lora", with_label + name, **common, step=steps)
    for rival in rivals.soups(trials, seedless_key(train), train.seed):
        yield StudyArm(*rival, **common, step=steps)
    if not tuned:
        return
    for rival in (*rivals.guided(trials.config, key), *rivals.autoguided(trials.config, key, steps)):
        yield StudyArm(*rival, **common, step=steps)
    for step in early_stops(trials.config):
        stop_name = f"{key}@{step}"
        if step <= steps:
            yield StudyArm(Arm(stop_name, stop_name), "early", f"stop at {step}", **common, step=step)


def _differing(train: Train, tuned: Train) -> tuple[str, str]:
    """Family and label of an adapter: regularized by KL alone, or trained with other settings that a search drew."""
    label = f"KL {train.kl_weight:g}" + (f" ({train.drawn_kl})" if train.drawn_kl else "")
    label += f", lr {train.lr:g}" * (train.lr != tuned.lr) + f", rank {train.rank}" * (train.rank != tuned.rank)
    if (train.lr, train.rank) != (tuned.lr, tuned.rank):
        return "trial", label
    return "early_kl" if train.drawn_kl else "kl", label


def _external_arms(trials: Trials, name: str) -> Iterator[StudyArm]:
    config = trials.config
    yield BASE_ARM
    yield StudyArm(Arm(name, name), "tuned", "tuned")
    for arm, way, label, auto in guided(config, name, "schedules"):
        yield StudyArm(arm, way, label, auto=auto)
    for scale in config.evaluate.lora_scales:
        yield StudyArm(Arm(f"{name}x{scale:g}", name, scale), "lora", f"LoRA ×{scale:g}")
    for rival in (*rivals.soups(trials, name, None), *rivals.guided(config, name)):
        yield StudyArm(*rival)
    yield from _base_arms(config, config.evaluate.rewards[0])


def _base_arms(config: Config, reward: str) -> Iterator[StudyArm]:
    """Rivals that need no adapter, which all studies of a reward share."""
    for rival in rivals.guided(config, None):
        yield StudyArm(*rival)
    for rival, candidates in rivals.best_of(config, reward):
        yield StudyArm(*rival, reward, candidates=candidates)


CANDIDATE = "candidate"
"""The family of arms that are in no study: their images are only chosen among."""
BASE_ARM = StudyArm(Arm("base", None, 1.0, "base"), "base", "base")


LABELS = {"fixed": "fixed mix", "rlg": "RLG", "coin": "coin", "aig": "AIG", "beyond": "annealed"}


def guided(config: Config, adapter: str, key: str) -> Iterator[tuple[Arm, str, str, str | None]]:
    """The arms of the schedules of evaluate.KEY: each with its way (`pipelines.front.families.WAYS`), its label, and
    its schedule as configured if that has an `auto` weight, which is fitted if the adapter's path length is known."""
    for text in getattr(config.evaluate, key):
        with given(f"evaluate.{key}"):
            schedule = schedules.parse(text)
            way, level = _way(config, schedule)
            form = complete = schedules.format_name(schedule)
            if schedule.fit is not None and (length := lengths.read(config, adapter)) is not None:
                complete = schedules.format_name(schedules.fitted(schedule, length))
        name = schedule.label or form
        shown = schedule.label or (form.removeprefix("coin:") if level is None else f"{level:g}")
        for space in spaces(config, way):
            # No schedule's text or label ends so: after an @ it has a domain.
            suffix, mark, said = ("@weight", "w", " (weight space)") if space == "weight" else ("", "", "")
            arm = Arm(f"{adapter}+{name}{suffix}", adapter, 1.0, complete, space)
            yield arm, way + mark, f"{LABELS[way]} {shown}{said}", form if schedule.fit is not None else None


def spaces(config: Config, way: str) -> tuple[str, ...]:
    """Where a way's schedule acts: a constant weight is a LoRA scale in weight space, and a coin has two models."""
    return config.evaluate.spaces if way in ("aig", "beyond") else ("prediction",)


def _way(config: Config, schedule: schedules.Schedule) -> tuple[str, float | None]:
    """The way of a schedule, and its weight if that is the same at every step."""
    if schedule.coin:
        return "coin", None
    if schedule.fit is not None:
        return "beyond", None
    level = schedules.level(schedule)
    if level is not None:
        return "rlg" if level > 1 else "fixed", level
    return "beyond" if max(weights(config, schedule)) > 1 else "aig", None


FINE = 1000


def weights(config: Config, schedule: schedules.Schedule) -> list[float]:
    """The schedule's weights at the run's steps, without its model: at `FINE` steps if the number is the model's own,
    and in the time domain, whose steps the scheduler places."""
    steps = config.model.steps if config.model.steps and schedule.domain == "step" else FINE
    return schedules.weights(schedules.in_domain(schedule, "step"), range(steps), 1.0)
