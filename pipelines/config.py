"""The configuration of a run: frozen, typed, checked at construction; made of a preset, a YAML file and overrides."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PRESETS = Path(__file__).parent / "presets"
CONFIG_FILE = "config.yaml"


class ConfigError(ValueError):
    """The configuration, or the run directory that it names, is wrong; the message is one line that names the fix."""


def number(
    default: Any, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, **mark: bool
) -> Any:
    """A field whose value (each value, for a list) is in [low, high] and greater than `above`; None is let through."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, **mark})


def choice(default: Any, *options: Any, **mark: bool) -> Any:
    return field(default=default, metadata={"options": options, **mark})


# How a run is carried out, or what is computed anew each time: these may change between a run and its resumption.
EXECUTION = {"execution": True}
# What the key of an adapter says: runs of `train` that differ in these alone live side by side in one run directory.
IN_KEY = {"in_key": True}


class Section:
    """Checks every field of a configuration section against its metadata."""

    def __post_init__(self) -> None:
        section = type(self).__name__.lower()
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            for single in value if isinstance(value, tuple) else (value,):
                _check_value(f"{section}.{item.name}", single, item.metadata)


def _check_value(key: str, value: Any, rule: Mapping[str, Any]) -> None:
    if "options" in rule and value not in rule["options"]:
        raise ConfigError(f"{key} is {value!r}: give one of {', '.join(map(str, rule['options']))}")
    if "low" not in rule or isinstance(value, (str, bool)) or value is None:
        return
    low, high, above = rule["low"], rule["high"], rule["above"]
    if math.isfinite(value) and low <= value <= high and value > above:
        return
    bounds = [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"at least {low:g}"] if low > -math.inf else []
    bounds += [f"at most {high:g}"] if high < math.inf else []
    raise ConfigError(f"{key} is {value}: give a number {' and '.join(bounds) or 'that is finite'}")


@dataclass(frozen=True)
class Run(Section):
    name: str = "run"
    """The run's name: its directory under `storage`, and what a rerun resumes."""
    storage: str = field(default="~/aig-runs", metadata=EXECUTION)
    """The folder of all runs."""
    seed: int = number(0, 0)
    """The run's seed: with it, a prompt and a seed index fix the noise of an evaluated image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ConfigError(f"run.name is {self.name!r}: give a plain name without slashes, as in run.name=first")
        if "://" in self.storage:
            raise ConfigError(
                f"run.storage is {self.storage!r}: give a local folder; remote storage is not supported yet"
            )


@dataclass(frozen=True)
class Model(Section):
    name: str = "tiny"
    """`tiny`, the embedded model, a hub id, or the path of a diffusers folder of a known family."""
    revision: str | None = None
    """A hub model's branch, tag or commit."""
    variant: str | None = None
    """A variant of the weights' files, as `fp16`."""
    device: str = choice("auto", "auto", "cpu", "cuda", **EXECUTION)
    """Where the model runs; auto is the GPU where there is one."""
    dtype: str = choice("float32", "float32", "bfloat16", "float16")
    """Of the frozen weights; an adapter that is trained stays in float32."""
    height: int | None = number(None, 8)
    """Of the images, in pixels; null is the size that the model was made for."""
    width: int | None = number(None, 8)
    """Of the images, in pixels; null is the size that the model was made for."""
    scheduler: str | None = choice(None, None, "ddim", "euler", "dpm", "sde-dpm", "flow")
    """Another scheduler with the model's noise schedule; null is the model's own."""
    steps: int | None = number(None, 1)
    """Denoising steps; null takes the model's own default, as do the two below."""
    guidance: float | None = number(None, 1)
    """Classifier-free guidance scale."""
    eta: float | None = number(None, 0, 1)
    """DDIM's noise: 0 is deterministic."""
    negative: str = ""
    """The negative prompt."""
    distilled: float | None = number(None, 0)
    """The guidance scale that a guidance-distilled model (FLUX.1-dev) reads as an input; null is its own."""


@dataclass(frozen=True)
class Train(Section):
    reward: str = field(default="fragile", metadata=IN_KEY)
    """The reward to ascend, by name or as `package.module:callable`."""
    kl_weight: float = number(0.0, 0, **IN_KEY)
    """Weight of the KL penalty, in units of the reward."""
    k: int = number(1, 1, **IN_KEY)
    """DRaFT-K: the last sampling steps that the gradient goes through."""
    seed: int = number(0, 0, **IN_KEY)
    """Seed of this training: LoRA initialization, prompts and noise."""
    kl: str = choice("eps_mse", "eps_mse", "path")
    """Which KL penalty: the published mean squared difference, or the path KL in nats."""
    lv: int = number(1, 1)
    """DRaFT-LV: how often the last step's noise is drawn anew; 1 is plain DRaFT."""
    prompts: int | str | tuple[str, ...] = number(48, 1)
    """How many of the embedded world's captions to train on, a list of prompts, or a text file with one a line."""
    steps: int = number(100, 1)
    """Optimizer steps."""
    batch: int = number(12, 1)
    """Images a step, over all workers."""
    rollout_batch: int | None = number(None, 1, **EXECUTION)
    """Rows of one forward without gradient, at most; null takes the model's own."""
    micro_batch: int = number(12, 1, **EXECUTION)
    """Images whose graph is held at once."""
    lr: float = number(1e-3, above=0)
    """Adam's learning rate, constant."""
    weight_decay: float = number(5e-4, 0)
    """Adam's weight decay (L2)."""
    optimizer: str = choice("adam", "adam", "adam-fused", "adam8bit")
    """Adam; in one kernel; or with moments of 8 bits, which needs a GPU and bitsandbytes."""
    autocast: str | None = choice(None, None, "bfloat16")
    """Precision of the forward passes of a training step, where the weights are float32."""
    checkpointing: tuple[str, ...] = choice((), "denoiser", "vae", "reward", **EXECUTION)
    """Whose activations are computed again in the backward pass instead of being held."""
    vae_tiling: bool = False
    """Decode large images in overlapping tiles: less memory, slightly other images."""
    compile: bool = False
    """Compile the denoiser's repeated blocks with torch.compile: worth its minute in long trainings on a GPU."""
    clip: float = number(1.0, above=0)
    """The gradient's largest norm."""
    rank: int = number(8, 1)
    """LoRA rank."""
    alpha: float = number(8.0, above=0)
    """LoRA alpha; the adapter's contribution is scaled by alpha / rank."""
    targets: str = choice("everywhere", "attention", "everywhere")
    """Which layers get a LoRA: attention alone, or feed-forward and convolutions too."""
    snapshot_every: int = number(20, 1)
    """Steps between kept snapshots: the early stops."""
    validate_every: int = number(20, 1)
    """Steps between validations: the points of the training curves."""
    validate_prompts: int = number(8, 1)
    """Prompts of a validation, the first of the training prompts."""
    validate_seeds: int = number(4, 2)
    """Images a prompt of a validation; diversity needs two."""
    checkpoint_every: int = number(20, 1, **EXECUTION)
    """Steps between checkpoints: what a crash costs at most."""
    max_failures: int = number(3, -1, **EXECUTION)
    """How often a dead worker is replaced; -1 is without limit."""
    num_workers: int = number(1, 1, **EXECUTION)
    """Data-parallel training workers."""
    cpus_per_worker: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs that a worker holds."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads of a worker."""


@dataclass(frozen=True)
class Sweep(Section):
    rewards: tuple[str, ...] = ("fragile",)
    """Rewards to train on."""
    ks: tuple[int, ...] = number((1,), 1)
    """DRaFT's K."""
    kl_weights: tuple[float, ...] = number((0.0, 1.0, 10.0), 0)
    """KL weights."""
    train_seeds: tuple[int, ...] = number((0,), 0)
    """Training seeds; each is a study of its own, and their mean is one more."""
    max_concurrent: int = number(3, 1, **EXECUTION)
    """Trainings at once, at most; fewer where the cluster has less room."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _distinct("sweep", self, ("rewards", "ks", "kl_weights", "train_seeds"))
        if 0 not in self.kl_weights:
            raise ConfigError(
                f"sweep.kl_weights is {list(self.kl_weights)}: include 0, the adapter that other arms need"
            )


@dataclass(frozen=True)
class Evaluate(Section):
    prompts: int | str | tuple[str, ...] = number(16, 2)
    """How many of the embedded world's captions to draw, a list of prompts, or a text file with one a line."""
    seeds: int = number(8, 2)
    """Images a prompt and arm; every arm has the same noise."""
    rewards: tuple[str, ...] = ("fragile", "robust")
    """Rewards that score every image; the first that was not trained on is the held-out one."""
    gold: str | None = "gold"
    """The reward that stands for the truth, never trained on, or null."""
    features: str | dict[str, Any] = field(default="world", hash=False)
    """The feature extractor of the diversity metrics: a name, `package.module:callable`, or a mapping as in
    {name: dinov2, weights: FOLDER}."""
    lora_scales: tuple[float, ...] = number((0.25, 0.5, 0.75), 0, 1)
    """LoRA scales of the unregularized adapter."""
    schedules: tuple[str, ...] = ("linear", "power:2", "power:4", "step:0.6", "constant:0.5")
    """AIG schedules of the unregularized adapter."""
    kl_schedules: tuple[str, ...] = ()
    """AIG schedules of the KL-regularized adapters too."""
    early_stops: tuple[int, ...] | None = number(None, 1)
    """Training steps whose snapshots are arms; null takes every snapshot, [] none."""
    path_prompts: int | None = number(None, 0)
    """On how many prompts to measure the distance to the base, at the cost of more predictions; null is all."""
    group: int = number(8, 1)
    """Images of one prompt and arm that are made together; a file of the dataset holds them for all arms."""
    groups_at_once: int = number(2, 1, **EXECUTION)
    """Such groups that a generator draws together: more fill a forward better, fewer lose less to an interruption."""
    block: int | None = number(None, 1)
    """Rows of every forward are a multiple of this, so that an image has the same bits in any group; null takes the
    model's own, which is 1, for bits that may differ, where a row is dear."""
    max_rows: int | None = number(None, 1, **EXECUTION)
    """Rows of one forward at most; null takes the model's own."""
    generators: int = number(2, 1, **EXECUTION)
    """Generator actors."""
    generator_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs that a generator holds."""
    scorers: int = number(1, 1, **EXECUTION)
    """Scorer actors."""
    scorer_cpus: float = number(0.5, above=0, **EXECUTION)
    """Ray CPUs that a scorer holds."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads of an actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _distinct("evaluate", self, ("rewards", "lora_scales", "schedules", "kl_schedules", "early_stops", "prompts"))


@dataclass(frozen=True)
class Front(Section):
    diversity: str = choice("vendi", "vendi", "pairwise", **EXECUTION)
    """The diversity axis: within-prompt Vendi score, or mean pairwise cosine distance."""
    bootstrap: int = number(1000, 10, **EXECUTION)
    """Bootstrap replicates, which resample prompts."""
    level: float = number(0.95, 0.5, 0.999, **EXECUTION)
    """Confidence level of the intervals."""
    seed: int = number(0, 0, **EXECUTION)
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class Ray(Section):
    address: str | None = field(default=None, metadata=EXECUTION)
    """A cluster's address, `local` for a new one; null takes RAY_ADDRESS or this machine's cluster, or starts one."""
    num_cpus: int | None = number(None, 1, **EXECUTION)
    """Logical CPUs of a local cluster; null takes the machine's, at least 4."""
    object_store_mb: int = number(300, 80, **EXECUTION)
    """Object store of a local cluster."""
    dashboard: bool = field(default=False, metadata=EXECUTION)
    """Whether a local cluster has a dashboard."""


SECTIONS: dict[str, type[Section]] = {
    "run": Run, "model": Model, "train": Train, "sweep": Sweep, "evaluate": Evaluate, "front": Front, "ray": Ray,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that a command of the pipeline needs to know."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    sweep: Sweep = field(default_factory=Sweep)
    evaluate: Evaluate = field(default_factory=Evaluate)
    front: Front = field(default_factory=Front)
    ray: Ray = field(default_factory=Ray)

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.run.storage).expanduser().absolute() / self.run.name


def load(preset: str | None = None, file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """A preset, with what a YAML file sets over it, and `section.key=value` overrides over both.

    ConfigError names what is wrong and the fix.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if preset is not None:
        _merge(values, _read_yaml(_preset_path(preset)), f"preset {preset}")
    if file is not None:
        _merge(values, _read_yaml(Path(file).expanduser()), str(file))
    for text in overrides:
        _merge(values, _parse_override(text), text)
    return Config(**{name: SECTIONS[name](**given) for name, given in values.items()})  # type: ignore[arg-type]


def presets() -> list[str]:
    """The names of the presets that come with the program."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Plain lists, dicts and scalars, as they stand in a YAML file."""
    return {
        name: {key: list(v) if isinstance(v, tuple) else v for key, v in section.items()}
        for name, section in dataclasses.asdict(config).items()
    }


def from_dict(values: Mapping[str, Any]) -> Config:
    """The configuration that `to_dict` gave."""
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    _merge(merged, values, CONFIG_FILE)
    return Config(**{name: SECTIONS[name](**given) for name, given in merged.items()})  # type: ignore[arg-type]


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=120)


def check_directory(config: Config) -> Path:
    """The run's directory, which is new, empty or this run's own, and can be written; nothing is written yet.

    ConfigError where it is something else.
    """
    path = config.directory
    made = path / CONFIG_FILE
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file: choose another run.name or run.storage")
        if made.exists():
            _check_same_run(config, made)
        elif path.exists() and any(entry.name not in OWN_FILES for entry in path.iterdir()):
            raise ConfigError(
                f"{path} is not empty and holds no {CONFIG_FILE} of ours: choose another run.name or run.storage"
            )
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the run directory ({error.strerror}): choose another run.storage"
        ) from error
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot write there ({there} is not a writable folder): choose another run.storage")
    return path


def describe() -> dict[str, tuple[str, str]]:
    """Every key with its default, as YAML on one line, and its meaning: the docstring under its field."""
    described = {}
    for node in ast.parse(Path(__file__).read_text()).body:
        if not isinstance(node, ast.ClassDef) or node.name.lower() not in SECTIONS:
            continue
        section = SECTIONS[node.name.lower()]()
        for item, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(doc, ast.Expr):
                value = yaml.safe_dump(_plain(getattr(section, item.target.id)), default_flow_style=True, width=1000)
                meaning = " ".join(ast.literal_eval(doc.value).split())
                described[f"{node.name.lower()}.{item.target.id}"] = (value.removesuffix("...\n").strip(), meaning)
    return described


def claim_directory(config: Config) -> Path:
    """Make the run's directory, after `check_directory`, and write its `config.yaml`."""
    path = check_directory(config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        part = path / f".{CONFIG_FILE}.part"
        part.write_text(to_yaml(config))
        part.replace(path / CONFIG_FILE)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot write the run directory ({error.strerror}): choose another run.storage"
        ) from error
    return path


LOCK_FILE = ".lock"
# What a first start that was killed may leave before there is a configuration.
OWN_FILES = (f".{CONFIG_FILE}.part", LOCK_FILE)


def _check_same_run(config: Config, made: Path) -> None:
    try:
        existing = from_dict(_read_yaml(made))
    except ConfigError as error:
        raise ConfigError(
            f"{made.parent} belongs to another version or program ({error}): choose another run.name"
        ) from error
    differing = [
        f"{key} = {_plain(theirs)}, not {_plain(ours)}"
        for (key, theirs), (_, ours) in zip(_identity(existing), _identity(config), strict=True)
        if theirs != ours
    ]
    if differing:
        raise ConfigError(
            f"run {config.run.name!r} in {made.parent.parent} was made with {'; '.join(differing)}: "
            "choose another run.name, or give the same configuration to resume it"
        )


def _identity(config: Config) -> Iterator[tuple[str, Any]]:
    """The keys and values that decide what a run's files hold."""
    for name in SECTIONS:
        section = getattr(config, name)
        for item in dataclasses.fields(section):
            if not item.metadata.get("execution") and not item.metadata.get("in_key"):
                yield f"{name}.{item.name}", getattr(section, item.name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _preset_path(name: str) -> Path:
    if name not in presets():
        raise ConfigError(
            f"preset {name!r} is unknown{_nearest(name, presets())}: the presets are {', '.join(presets())}"
        )
    return PRESETS / f"{name}.yaml"


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot read this configuration ({getattr(error, 'strerror', error)}): check the path"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({_one_line(error)}): correct the file") from error


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"{text!r} is not an override: write section.key=value, as in train.steps=50")
    try:
        return {section: {name: yaml.safe_load(value)}}
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: the value is not valid YAML ({_one_line(error)})") from error


def _merge(into: dict[str, dict[str, Any]], given: Any, source: str) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: give a mapping of sections, as in 'train: {{steps: 50}}'")
    for name, values in given.items():
        if name not in SECTIONS:
            every = [*SECTIONS, *_keys()]
            raise ConfigError(
                f"{source}: unknown key {name!r}{_nearest(str(name), every)}: the sections are {', '.join(SECTIONS)}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: {name} is {values!r}: give a mapping of its keys")
        hints = typing.get_type_hints(SECTIONS[name])
        known = [item.name for item in dataclasses.fields(SECTIONS[name])]  # type: ignore[arg-type]
        for key, value in values.items():
            if key not in known:
                near = _nearest(f"{name}.{key}", [f"{name}.{k}" for k in known]) or _nearest(str(key), _keys())
                raise ConfigError(f"{source}: unknown key '{name}.{key}'{near}")
            into[name][key] = _coerce(f"{name}.{key}", value, hints[key])


def _keys() -> list[str]:
    return [f"{name}.{item.name}" for name, section in SECTIONS.items() for item in dataclasses.fields(section)]  # type: ignore[arg-type]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        # A key without its section: the section is what is missing.
        close = [key for key in known if key.partition(".")[2] == name][:1]
    return f"; did you mean {close[0]!r}?" if close else ""


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """The value as the field's type, without loss; ConfigError says which type is wanted."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for option in options:
        try:
            return _as_type(value, option)
        except TypeError:
            continue
    raise ConfigError(f"{key} is {value!r}: give {' or '.join(_type_name(option) for option in options)}")


def _as_type(value: Any, wanted: Any) -> Any:
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return tuple(_as_type(single, typing.get_args(wanted)[0]) for single in value)
    if typing.get_origin(wanted) is dict:
        wanted = dict
    if wanted is float or wanted is int:
        return _as_number(value, wanted)
    if not isinstance(value, wanted):
        raise TypeError
    return value


def _as_number(value: Any, wanted: type) -> Any:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            raise TypeError from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    if wanted is int and value != int(value if math.isfinite(value) else 0):
        raise TypeError
    return wanted(value)


def _type_name(wanted: Any) -> str:
    if typing.get_origin(wanted) is tuple:
        inner = {int: "whole numbers", float: "numbers", str: "texts"}[typing.get_args(wanted)[0]]
        return f"a list of {inner}, as in [a, b]" if inner == "texts" else f"a list of {inner}, as in [1, 2]"
    if typing.get_origin(wanted) is dict:
        return "a mapping, as in {name: ...}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}[wanted]


def _distinct(section: str, values: Any, keys: Sequence[str]) -> None:
    for key in keys:
        value = getattr(values, key)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ConfigError(f"{section}.{key} is {list(value)}: give each value once")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
