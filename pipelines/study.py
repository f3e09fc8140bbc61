"""What a run compares: prompts, studies and arms, and the record that tells whether an adapter is the wanted one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from aig import adapters, models, schedules
from aig.models import LatentModel
from aig.sampler import Arm, Sampling
from aig.world.scenes import all_prompts
from pipelines import rewarding
from pipelines.config import Config, ConfigError, Train
from pipelines.layout import RunFiles, adapter_folders, adapter_key, read_prompts, slug, snapshot_steps

FAMILIES = ("base", "tuned", "kl", "lora", "aig", "early", "mix")


@dataclass(frozen=True)
class StudyArm:
    """An arm and what it stands for in its study."""

    arm: Arm
    family: str
    label: str
    reward: str | None = None
    k: int | None = None
    kl_weight: float | None = None
    train_seed: int | None = None
    step: int | None = None
    members: tuple[str, ...] = ()
    """Of a mean over training seeds: the arms that it is the mean of. It has no images of its own."""

    def to_dict(self) -> dict[str, Any]:
        about = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "arm"}
        return {**asdict(self.arm), "id": self.arm.id, **about, "members": list(self.members)}


@dataclass(frozen=True)
class Study:
    """One training setting (reward, K, training seeds) and every arm that is compared within it, the base first."""

    name: str
    reward: str
    k: int
    train_seeds: tuple[int, ...]
    arms: tuple[StudyArm, ...] = field(repr=False)

    def one(self, family: str) -> StudyArm:
        """The only arm of its family: the base, or the tuned one."""
        return next(arm for arm in self.arms if arm.family == family)


def early_stops(config: Config) -> list[int]:
    """The snapshots that are arms; ConfigError for one that no training keeps."""
    kept = snapshot_steps(config)
    wanted = config.evaluate.early_stops
    if wanted is None:
        return kept
    for step in wanted:
        if step not in kept:
            raise ConfigError(f"evaluate.early_stops: there is no snapshot of step {step}: choose among {kept}")
    return list(wanted)


def resolve_prompts(wanted: int | str | tuple[str, ...], key: str) -> list[str]:
    """A list of prompts as given, a file's lines, or so many of the embedded world's captions."""
    if isinstance(wanted, str):
        return read_prompts(wanted, key)
    if not isinstance(wanted, int):
        return list(wanted)
    known = all_prompts()
    if wanted > len(known):
        raise ConfigError(
            f"{key} is {wanted}: the embedded world has {len(known)} captions; give fewer, or a list of prompts"
        )
    return known[:wanted]


def scored_rewards(config: Config) -> list[str]:
    """The rewards that score images: those asked for and those trained on."""
    return list(dict.fromkeys([*config.evaluate.rewards, *config.sweep.rewards]))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(config: Config) -> LatentModel:
    """The model of `config.model`, for its image size, where it says."""
    wanted = config.model
    model = models.load(wanted.name, device(config), DTYPES[wanted.dtype], wanted.revision, wanted.variant)
    return sized(model, config)


def sized(model: LatentModel, config: Config) -> LatentModel:
    """The model for the image size that `config.model` asks for, or for its own."""
    wanted = config.model
    if wanted.height is None and wanted.width is None:
        return model
    height, width = model.image_size
    return model.sized(wanted.height or height, wanted.width or width)


def device(config: Config) -> torch.device:
    """The device that `config.model` asks for; ConfigError where there is none."""
    wanted = config.model.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is 'cuda', and torch finds no GPU here: take model.device=auto or cpu")
    return torch.device(wanted)


def resolve_sampling(config: Config, defaults: Sampling) -> Sampling:
    """The model's own sampling with what the configuration sets."""
    keys = ("steps", "guidance", "eta", "scheduler", "negative", "distilled")
    asked = {key: getattr(config.model, key) for key in keys} | {"block": config.evaluate.block}
    return replace(defaults, **{key: value for key, value in asked.items() if value not in (None, "")})


def studies(config: Config) -> list[Study]:
    """Every study of the run, each with all its arms."""
    sweep = config.sweep
    return [
        Study(f"{slug(reward)}-k{k}-s{seed}", reward, k, (seed,), tuple(_study_arms(config, reward, k, seed)))
        for reward, k, seed in product(sweep.rewards, sweep.ks, sweep.train_seeds)
    ]


def mean_studies(config: Config) -> list[Study]:
    """The studies that differ in their training seed alone, arm by arm as one mean; none where there is one seed."""
    groups: dict[tuple[str, int], list[Study]] = {}
    for single in studies(config):
        groups.setdefault((single.reward, single.k), []).append(single)
    return [_mean_study(group) for group in groups.values() if len(group) > 1]


def _mean_study(group: list[Study]) -> Study:
    first = group[0]
    name = f"{slug(first.reward)}-k{first.k}"
    arms = []
    for places in zip(*(single.arms for single in group), strict=True):
        arm = places[0]
        if arm.family != "base":
            members = tuple(place.arm.name for place in places)
            setting, _, way = arm.arm.name.rpartition(f"-s{first.train_seeds[0]}")
            mean = replace(arm.arm, name=f"{setting}-mean{way}")
            arm = replace(arm, arm=mean, train_seed=None, members=members)
        arms.append(arm)
    return Study(name, first.reward, first.k, tuple(s for single in group for s in single.train_seeds), tuple(arms))


def all_arms(config: Config) -> list[StudyArm]:
    """The arms that have images: those of all studies, the base once."""
    return list({arm.arm.name: arm for single in studies(config) for arm in single.arms}.values())


def mean_arms(config: Config) -> list[StudyArm]:
    """The arms that are means over training seeds."""
    return [arm for study in mean_studies(config) for arm in study.arms if arm.members]


def _study_arms(config: Config, reward: str, k: int, seed: int) -> Iterator[StudyArm]:
    evaluate = config.evaluate
    yield StudyArm(Arm("base", None, 1.0, "base"), "base", "base")
    for weight in sorted(config.sweep.kl_weights):
        key = adapter_key(replace(config.train, reward=reward, k=k, kl_weight=weight, seed=seed))
        steps = config.train.steps
        common = {"reward": reward, "k": k, "kl_weight": weight, "train_seed": seed}
        tuned = weight == 0
        label = "tuned" if tuned else f"KL {weight:g}"
        yield StudyArm(Arm(key, key), "tuned" if tuned else "kl", label, **common, step=steps)
        for text in evaluate.schedules if tuned else evaluate.kl_schedules:
            schedule = schedules.parse(text)
            name = schedule.label or schedules.format_name(schedule)
            mixed = f"AIG {name}" if tuned else f"{label} + AIG {name}"
            arm = Arm(f"{key}+{name}", key, 1.0, schedules.format_name(schedule))
            yield StudyArm(arm, "aig" if tuned else "mix", mixed, **common, step=steps)
        if not tuned:
            continue
        scaled = "LoRA" if config.train.method == "lora" else "tuning"
        for scale in evaluate.lora_scales:
            yield StudyArm(Arm(f"{key}x{scale:g}", key, scale), "lora", f"{scaled} ×{scale:g}", **common, step=steps)
        for step in early_stops(config):
            stop = f"{key}@{step}"
            yield StudyArm(Arm(stop, stop), "early", f"stop at {step}", **common, step=step)


def training_record(config: Config, train: Train, step: int) -> dict[str, Any]:
    """What made an adapter, as JSON holds it: it decides whether one that is there is the one that is wanted."""
    settings: dict[str, Any] = {key: getattr(train, key) for key in RECORDED}
    settings["prompts"] = resolve_prompts(train.prompts, "train.prompts")
    if train.method != "lora":  # nor has a LoRA's record a method
        settings = {key: value for key, value in settings.items() if key not in OF_LORA} | {"method": train.method}
    # Only where they say more than the name does: records are compared, and older ones have no such keys.
    if config.rewards.define:
        settings["terms"] = [asdict(term) for term in rewarding.terms(config, train.reward)]
    if config.rewards.dtype != "float32":
        settings["reward_dtype"] = config.rewards.dtype
    if config.rewards.rounding:
        settings["reward_rounding"] = True
    model = {key: value for key, value in asdict(config.model).items() if key != "device"}
    model["fingerprint"] = fingerprint(config.model.name, config.model.revision, config.model.variant)
    return json.loads(json.dumps({"step": step, "train": settings, "model": model}))


# The settings of a training that make its adapter; the others decide how it is carried out and watched.
RECORDED = (
    "reward", "kl_weight", "k", "seed", "kl", "lv", "batch", "lr", "weight_decay", "clip", "rank", "alpha", "targets",
    "optimizer", "autocast", "vae_tiling", "compile",
)  # fmt: skip


OF_LORA = ("rank", "alpha", "targets")


def is_saved(config: Config, folder: Path, step: int) -> bool:
    """Whether an adapter is there that `config.train` made by this step."""
    if not (folder / adapters.RECORD).exists():
        return False
    return same_record(adapters.read_record(folder), training_record(config, config.train, step))


def is_finished(config: Config) -> bool:
    """Whether the training `config.train` has left its adapter, every snapshot and its curve."""
    files = RunFiles(config.directory)
    return (files.curves / f"{adapter_key(config.train)}.jsonl").exists() and all(
        is_saved(config, files.adapters / name, step) for name, step in adapter_folders(config)
    )


def same_record(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a saved adapter's record is the wanted one; what it holds beside, as versions, does not count."""
    return all(found.get(key) == value for key, value in wanted.items())


@lru_cache
def fingerprint(model: str, revision: str | None = None, variant: str | None = None) -> str:
    """A hash of a model's files by names, sizes and both ends of their content: other weights differ there, too."""
    folder = models.resolve(model, revision, variant)
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode() + head + file.read(ENDS))
    return digest.hexdigest()


ENDS = 2**20  # bytes
