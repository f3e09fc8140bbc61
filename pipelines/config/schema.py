"""The keys of the configuration: frozen, typed, checked at construction, each with its docstring."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import uris
from pipelines.config.errors import ConfigError as ConfigError
from pipelines.config.fields import EXECUTION, IN_KEY, NAMED, Section, bounds, check_bounds, choice, distinct, number

# Noise seed indices from which validations and searches count theirs; an evaluation counts from 0. None reaches the
# next one's, so that what selects adapters and schedules never sees an image that judges them.
VALIDATION_SEEDS, SEARCH_SEEDS = 1_000_000, 2_000_000


@dataclass(frozen=True)
class Run(Section):
    """The run's folder and seed, and who follows it."""

    name: str = field(default="run", metadata=EXECUTION)
    """The run's name: its directory under `storage`, and what a rerun resumes."""
    storage: str = field(default="~/aig-runs", metadata=EXECUTION)
    """The folder of all runs, or the URI of one that pyarrow knows, as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX: see
    docs/cluster.md, of how a run is mirrored then."""
    seed: int = number(0, 0)
    """The run's seed: with it, a prompt and a seed index fix the noise of an evaluated image."""
    tensorboard: bool = field(default=True, metadata=EXECUTION)
    """Write losses, validations and their images for TensorBoard: tensorboard --logdir RUN/tensorboard."""
    wandb: str | None = field(default=None, metadata=EXECUTION)
    """A project of Weights & Biases that validations go to, a run there for each training; needs the package wandb."""
    mlflow: str | None = field(default=None, metadata=EXECUTION)
    """The tracking URI of an MLflow server or folder that validations go to, likewise; needs the package mlflow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ConfigError(f"run.name is {self.name!r}: give a plain name without slashes, as in run.name=first")
        wrong = uris.wrong_with(self.storage) if uris.is_uri(self.storage) else None
        if wrong:
            raise ConfigError(f"run.storage is {uris.censored(self.storage)!r}: {wrong}")


@dataclass(frozen=True)
class Model(Section):
    """The model, and how images are sampled from it."""

    name: str = "tiny"
    """`tiny`, the embedded model, a hub id, or the path of a diffusers folder of a known family."""
    revision: str | None = None
    """A hub model's branch, tag or commit."""
    variant: str | None = None
    """A variant of the weights' files, as `fp16`."""
    device: str = choice("auto", "auto", "cpu", "cuda", **EXECUTION)
    """Where the model runs; auto is the GPU where there is one."""
    dtype: str = choice("float32", "float32", "bfloat16", "float16")
    """Of the frozen weights, and what the model computes in; what is trained, its moments and its file are float32
    whatever this is. No training takes float16, which would need a loss scaler."""
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
class Rewards(Section):
    """Rewards of your own, and how they compute."""

    define: dict[str, Any] = field(default_factory=dict, hash=False)
    """Names of your own for rewards, usable wherever one is named: {my-hps: {name: hpsv2.1, weights: FILE}}, or a
    weighted sum in words or as a list of such mappings."""
    dtype: str = choice("float32", "float32", "bfloat16")
    """What the trained reward computes in; scores that are reported are always computed in float32."""
    rounding: bool = False
    """Train on images rounded to 8 bits, and resized as a report's are: equal scores, gradients straight through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, meant in self.define.items():
            if not isinstance(name, str) or re.search(r"[*+:]", name) or not name.strip() or name in RESERVED:
                raise ConfigError(
                    f"rewards.define: {name!r} cannot be a name: give a text without '*', '+' and ':' that is none of "
                    f"{', '.join(RESERVED)}"
                )
            if not isinstance(meant, (str, dict, list)) or not meant:
                raise ConfigError(
                    f"rewards.define: {name} is {meant!r}: give a mapping as in {{name: hpsv2.1, weights: FILE}}, or a "
                    "weighted sum as in '0.5*pickscore + 0.5*hpsv2.1'"
                )


# Columns of these names hold the embedded world's judges.
RESERVED = ("gold", "gold_a", "gold_b")


@dataclass(frozen=True)
class Train(Section):
    """How an adapter is trained."""

    reward: str = field(default="fragile", metadata=IN_KEY)
    """The reward to ascend: a name, `package.module:callable`, or a weighted sum as `0.5*pickscore + 0.5*hpsv2.1`,
    whose terms are z-scored by the base model's images."""
    kl_weight: float = number(0.0, 0, **IN_KEY)
    """Weight of the KL penalty, in units of the reward."""
    k: int = number(1, 1, **IN_KEY)
    """DRaFT-K: the last sampling steps that the gradient goes through."""
    seed: int = number(0, 0, **IN_KEY)
    """Seed of this training: LoRA initialization, prompts and noise."""
    kl: str = choice("eps_mse", "eps_mse", "path")
    """Which KL penalty: the published mean squared difference, or the path KL in nats, which needs a sampler that adds
    noise in each of the last K steps."""
    lv: int = number(1, 1)
    """DRaFT-LV: how often the last step's noise is drawn anew; 1 is plain DRaFT."""
    prompts: int | str | tuple[str, ...] = number(32, 1)
    """A list of prompts, a file of them (text with one per line; .tsv, .csv, .jsonl or .parquet with a column prompt,
    caption or text; .json), or how many of the embedded world's 32 training captions. A model of your own, or of the
    hub, needs a list or a file."""
    steps: int = number(100, 1)
    """Optimizer steps."""
    batch: int = number(12, 1)
    """Images a step, over all workers."""
    rollout_batch: int | None = number(None, 1, **EXECUTION)
    """Rows of one forward without gradient, at most; null takes the model's own."""
    micro_batch: int = number(12, 1, **EXECUTION)
    """Images whose graph is held at once."""
    lr: float = number(1e-3, above=0)
    """The optimizer's learning rate, constant."""
    weight_decay: float = number(5e-4, 0)
    """Weight decay; each step of AdamW takes lr * weight_decay of a weight off it."""
    optimizer: str = choice("adamw", "adamw", "adamw-fused", "adamw-8bit", "adam-l2")
    """AdamW, with decoupled weight decay as published; the same in one kernel; with moments of 8 bits, which needs a
    GPU and bitsandbytes; or Adam with the decay added to the gradient, as L2 regularization."""
    ema: float | None = number(None, above=0)
    """Decay, under 1, of an exponential moving average (EMA) of the tuned weights: it is then what is validated, saved
    (snapshots and the best one too), held by a guard and evaluated. As published, its start still weighs decay^n after
    n steps: 0.67 of 0.9999 after 4,000. Null is without."""
    autocast: str | None = choice(None, None, "bfloat16")
    """Precision of the denoiser and the decoder in a training step, where the weights are float32; rewards compute in
    rewards.dtype."""
    checkpointing: tuple[str, ...] = choice((), "denoiser", "vae", "reward", **EXECUTION)
    """Whose activations are computed again in the backward pass instead of being held."""
    vae_tiling: bool = False
    """Decode large images in overlapping tiles: less memory, slightly other images."""
    compile: bool = False
    """Compile the denoiser's repeated blocks with torch.compile: worth its minute in long trainings on a GPU."""
    clip: float = number(1.0, above=0)
    """The gradient's largest norm."""
    on_nan: str = choice("stop", "stop", "skip")
    """What happens where an image's score is NaN: stop, naming the image, or skip it and count it."""
    method: str = choice("lora", "lora", "full")
    """What is tuned: a LoRA, or every weight of the denoiser, as a second set beside the frozen base."""
    offload: bool = field(default=False, metadata=EXECUTION)
    """Of full fine-tuning: keep the base's weights on the CPU; slower where the base is evaluated too, as for KL."""
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
    validate_seeds: int = number(4, 2, SEARCH_SEEDS - VALIDATION_SEEDS)
    """Images a prompt of a validation, with noise that no evaluation has; diversity needs two."""
    checkpoint_every: int = number(20, 1, **EXECUTION)
    """Steps between checkpoints: what a crash costs at most."""
    max_failures: int = number(3, -1, **EXECUTION)
    """How often a dead worker is replaced; -1 is without limit. One that fails as any other would (a score that is NaN,
    a setting that does not fit) ends the training at once."""
    num_workers: int | tuple[int, ...] = number(1, 1, **EXECUTION)
    """Data-parallel training workers; [least, most] takes as many as the cluster has room for, and goes on with fewer
    or more when nodes come and go. The adapter is the same to rounding."""
    cpus_per_worker: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs that a worker holds."""
    gpus_per_worker: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs that a worker holds; without any it runs on CPUs."""
    node: str | None = field(default=None, metadata=EXECUTION)
    """A custom resource of Ray (`train` in cluster.yaml) that only the workers' nodes have; null is any node."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads of a worker."""
    memory_per_worker: float | None = number(None, above=0, **EXECUTION)
    """GiB of main memory that Ray sets aside for a worker; null sets nothing aside."""
    parallel: str = choice("auto", "auto", "ddp", "fsdp", **EXECUTION)
    """How several workers share the work: ddp, each with all weights, adds up gradients; fsdp shards weights, gradients
    and moments, of full fine-tuning alone; auto is fsdp for full fine-tuning and ddp for a LoRA."""
    num_to_keep: int = number(2, 1, **EXECUTION)
    """Checkpoints that are kept; with two there is one before a last that a crash has spoiled."""
    keep_best: bool = field(default=False, metadata=EXECUTION)
    """Keep the adapter of the validation with the best held-out reward too, as KEY@best."""
    explosion: float | None = number(1000.0, above=1)
    """A step whose gradient's norm, over clip, is so many times its median over the last steps, or whose loss lies
    above its median by so many of its usual deviations, has exploded: on_nan says what then, as where it is NaN. Null
    is never."""
    stop_held_out: float | None = number(None, 0)
    """Stop where the held-out reward has fallen by more than this, in its own units, under its best validation."""
    stop_diversity: float | None = number(None, 0, 1, above=0)
    """Stop where diversity is under this share of the base's, both as validated."""
    stop_kl: float | None = number(None, above=0)
    """Stop where the path KL to the base is over this, in nats an image; only stochastic sampling has one."""
    stop_path: float | None = number(None, above=0)
    """Stop where the path length to the base (eps_mse) is over this; with any sampling."""
    stop_patience: int = number(1, 1)
    """Validations in a row beyond one of these limits that stop a training; its adapter is that of the last one within
    all of them."""
    label: str = field(default="", metadata=IN_KEY)
    """A word in the adapter's name, before its seed; a sweep says there what else it varies, as in lr0.0003-r16."""

    def __post_init__(self) -> None:
        if self.optimizer in ONCE_L2:
            raise ConfigError(
                f"train.optimizer is {self.optimizer!r}, which added the weight decay to the gradient (L2) and is no "
                "longer there: take adamw, which decouples it as published and makes other adapters, or adam-l2"
            )
        super().__post_init__()
        if self.ema is not None and self.ema >= 1:
            raise ConfigError(f"train.ema is {self.ema:g}: give a number below 1, as in 0.9999, or null for no average")
        check_bounds("train.num_workers", self.num_workers)
        if not re.fullmatch(r"[A-Za-z0-9._-]*", self.label):
            raise ConfigError(f"train.label is {self.label!r}: give letters, digits, '.', '_' and '-' alone")

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most workers."""
        return bounds(self.num_workers)

    @property
    def limits(self) -> dict[str, float]:
        """The limits stop_* that are set, by what they bound."""
        bounds = {name: getattr(self, f"stop_{name}") for name in LIMITED}
        return {name: bound for name, bound in bounds.items() if bound is not None}


# Names of optimizers in earlier runs' configurations, of which the first was the default.
ONCE_L2 = ("adam", "adam-fused", "adam8bit")

# What `train.stop_*` bounds; but for the patience, a key each.
LIMITED = ("held_out", "diversity", "kl", "path")


@dataclass(frozen=True)
class Sweep(Section):
    """Which adapters a sweep trains."""

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
    lrs: tuple[float, ...] = number((), above=0)
    """Learning rates, each a study of its own; [] takes train.lr."""
    ranks: tuple[int, ...] = number((), 1)
    """LoRA ranks, each a study of its own; [] takes train.rank. The scale train.alpha / train.rank is kept."""
    search: str = choice("grid", "grid", "random", "optuna")
    """Train every combination; or `trials` of them that are drawn at random, or by Optuna's multi-objective TPE. A
    search also trains train.* with KL weight 0, for every reward and K: what its trials are compared with."""
    trials: int = number(16, 1, **EXECUTION)
    """Trials that a search draws; with a greater number the same command goes on."""
    generation: int = number(4, 1)
    """Trials that Optuna draws together, before it learns what they came to; a random search draws all at once."""
    lr_range: tuple[float, ...] | None = number(None, above=0)
    """[low, high]: a search draws learning rates between, uniformly in their logarithm; null draws among lrs."""
    kl_range: tuple[float, ...] | None = number(None, above=0)
    """[low, high]: a search draws KL weights between, uniformly in their logarithm; null draws among kl_weights."""
    objectives: tuple[str, ...] = choice(("reward", "diversity"), "reward", "held_out", "gold", "diversity")
    """What Optuna maximizes, as the validation of a trial's adapter has it: where a guard has stopped it, of the one
    that was kept."""
    seed: int = number(0, 0)
    """Seed of a search: the same draws the same trials, where the same came of those before."""
    scheduler: str = choice("none", "none", "asha", **EXECUTION)
    """Whether ASHA stops trials that fall behind others at the same step. What it stops is no arm."""
    proxy: str = choice("held_out", "reward", "held_out", "gold", "diversity", **EXECUTION)
    """What ASHA compares trials by, as their validations have it."""
    grace: int = number(1, 1, **EXECUTION)
    """Validations that ASHA leaves every trial."""
    reduction: float = number(3.0, above=1, **EXECUTION)
    """The share of the trials that ASHA lets go on, 1 / reduction, and the ratio of the steps at which it decides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct("sweep", self, ("rewards", "ks", "kl_weights", "train_seeds", "lrs", "ranks", "objectives"))
        if self.search == "grid":
            self._check_grid()
        else:
            self._check_search()

    def _check_grid(self) -> None:
        if 0 not in self.kl_weights:
            raise ConfigError(
                f"sweep.kl_weights is {list(self.kl_weights)}: include 0, the adapter that other arms need"
            )
        for key in ("lr_range", "kl_range"):
            if getattr(self, key) is not None:
                raise ConfigError(f"sweep.{key} is for a search: set sweep.search=optuna, or random")

    def _check_search(self) -> None:
        for key in ("lr_range", "kl_range"):
            found = getattr(self, key)
            if found is not None and (len(found) != 2 or found[0] >= found[1]):
                raise ConfigError(f"sweep.{key} is {list(found)}: give [low, high], as in [0.0001, 0.01]")
        if self.lrs and self.lr_range is not None:
            raise ConfigError("sweep.lrs and sweep.lr_range both say where learning rates come from: give one of them")
        if len(self.train_seeds) != 1:
            raise ConfigError(
                f"sweep.train_seeds is {list(self.train_seeds)}: a search draws settings and not seeds; give one, and "
                "confirm what it finds by a grid over several"
            )
        if len(self.objectives) < 2:
            raise ConfigError(f"sweep.objectives is {list(self.objectives)}: give at least two")


@dataclass(frozen=True)
class Evaluate(Section):
    """Which images are drawn, and what scores them."""

    prompts: int | str | tuple[str, ...] = number(16, 2)
    """A list of prompts or a file of them, as train.prompts, or how many of the embedded world's 16 held-out captions,
    which no number of train.prompts has. Any other model needs a list or a file; how many of them were trained on is
    told."""
    seeds: int = number(8, 2, VALIDATION_SEEDS)
    """Images a prompt and arm; every arm has the same noise."""
    rewards: tuple[str, ...] = ("fragile", "robust")
    """Rewards that score every image, and the terms of weighted sums; the first that was not trained on is the held-out
    one."""
    gold: str | None = "gold"
    """The reward that stands for the truth, never trained on, or null."""
    features: str | dict[str, Any] = field(default="world", hash=False)
    """The feature extractor of the diversity metrics: a name, `package.module:callable`, or a mapping as in
    {name: dinov2, weights: FOLDER}."""
    lora_scales: tuple[float, ...] = number((0.25, 0.5, 0.75), 0, 1)
    """LoRA scales of the unregularized adapter."""
    schedules: tuple[str, ...] = ("linear", "power:2", "power:4", "step:0.6", "constant:0.5")
    """Schedules of the unregularized adapter: AIG's, and fixed mixes (constant:W, DeRaDiff), a family of their own."""
    kl_schedules: tuple[str, ...] = ()
    """Schedules of the sweep's other adapters too: KL-regularized ones (the published protocol sweeps AIG for every KL
    weight), and those that a search drew."""
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
    generators: int | tuple[int, ...] | None = number(2, 1, **EXECUTION)
    """Generator actors: a number, [least, most] for a pool that grows and shrinks with the cluster, or null for one
    that takes what CPUs, GPUs and memory there are."""
    generator_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs that a generator holds."""
    generator_gpus: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs that a generator holds, or a share of one; without any it runs on CPUs."""
    scorers: int | tuple[int, ...] = number(1, 1, **EXECUTION)
    """Scorer actors: a number, or [least, most] for a pool that grows where scorers are what is waited for."""
    scorer_cpus: float = number(0.5, above=0, **EXECUTION)
    """Ray CPUs that a scorer holds."""
    scorer_gpus: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs that a scorer holds, or a share of one; without any it runs on CPUs."""
    node: str | None = field(default=None, metadata=EXECUTION)
    """A custom resource of Ray (`spot` in cluster.yaml) that only the actors' nodes have; null is any node."""
    score_batch: int = number(32, 1, **EXECUTION)
    """Images that a scorer scores at once, at most."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads of an actor."""
    adapters: tuple[str, ...] = field(default=(), metadata=NAMED)
    """Adapters that were made elsewhere, each as NAME=PATH of a LoRA file or a folder that holds one: a study each, of
    the base, its LoRA scales and its schedules. The run keeps a copy of each."""
    max_failed: float = number(0.0, 0, 1, **EXECUTION)
    """Share of the groups that may fail, each tried twice, before the evaluation's exit code says so; their prompts are
    left out for all arms in any case."""
    failures_in_a_row: int = number(8, 1, **EXECUTION)
    """After so many failed groups, none finished between them, the evaluation ends: that is no matter of prompts."""
    kl_lora_scales: tuple[float, ...] = number((), 0, 1)
    """LoRA scales of the sweep's other adapters too, as kl_schedules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct("evaluate", self, ("rewards", "lora_scales", "schedules", "kl_schedules", "early_stops", "prompts"))
        distinct("evaluate", self, ("kl_lora_scales",))
        check_bounds("evaluate.generators", self.generators)
        check_bounds("evaluate.scorers", self.scorers)
        _check_adapters(self)


def _check_adapters(evaluate: Evaluate) -> None:
    names = [text.partition("=")[0] for text in evaluate.adapters]
    for name, text in zip(names, evaluate.adapters, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == "base" or not text.partition("=")[2]:
            raise ConfigError(
                f"evaluate.adapters: {text!r} is not NAME=PATH with a plain name other than 'base': write "
                "mine=lora.safetensors"
            )
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ConfigError(
            f"evaluate.adapters: two adapters are called {double!r}: give each a name of its own, NAME=PATH"
        )
    if names and not evaluate.rewards:
        raise ConfigError("evaluate.rewards is []: adapters from elsewhere are placed by the first of them; give one")


@dataclass(frozen=True)
class Measure(Section):
    """How the images are measured."""

    subsets: int = number(32, 0, **EXECUTION)
    """Subsets of the prompts behind the intervals of measures of whole sets of images; 0 for no intervals."""
    subset_images: int = number(2048, 1, **EXECUTION)
    """Images of an arm in such a subset at most, better more than features have dimensions; half of the prompts where
    those have fewer."""
    tiles_from: int = number(50_000, 1, **EXECUTION)
    """From so many images an arm on, nearest neighbours are found by Ray in tiles; the result is the same."""
    tile: int = number(4096, 1, **EXECUTION)
    """Images on each side of a tile."""
    tile_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs of a tile."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads outside Ray: for a few images more are slower."""
    min_precision: float = number(0.05, 0, 1, **EXECUTION)
    """An arm with less precision against the base has a warning beside it; it stays on fronts, since another style has
    little precision too."""
    max_constant: float = number(0.01, 0, 1, **EXECUTION)
    """An arm with a larger share of images of one flat colour is broken, and is on no front; one with a pixel that is
    not finite always is."""


@dataclass(frozen=True)
class Front(Section):
    """The Pareto fronts and their intervals."""

    diversity: str = choice("vendi", "vendi", "pairwise", **EXECUTION)
    """The diversity axis: within-prompt Vendi score, or mean pairwise cosine distance."""
    bootstrap: int = number(1000, 10, **EXECUTION)
    """Bootstrap replicates, which resample prompts."""
    level: float = number(0.95, 0.5, 0.999, **EXECUTION)
    """Confidence level of each interval, and of all verdicts of a report together."""
    seed: int = number(0, 0, **EXECUTION)
    """Seed of the bootstrap."""
    interval: str = choice("studentized", "studentized", "percentile", **EXECUTION)
    """Intervals of means and their differences: studentized ones hold for skewed data too; percentiles are narrower."""
    reference: dict[str, Any] = field(default_factory=dict, hash=False, metadata=EXECUTION)
    """Where hypervolumes start, by metric, as in {vendi: 1, pickscore: 18}; else at the least of the arms' means."""
    scale: dict[str, Any] = field(default_factory=dict, hash=False, metadata=EXECUTION)
    """What counts as 1 in a hypervolume, by metric, as in {vendi: 2}; else the range of the arms' means."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("reference", -math.inf), ("scale", 0.0)):
            for metric, value in getattr(self, key).items():
                known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                if not known or value <= least:
                    raise ConfigError(
                        f"front.{key}: {metric} is {value!r}: give a {'positive ' if least == 0 else ''}number"
                    )

    @property
    def resampling(self) -> dict[str, Any]:
        """The arguments of a bootstrap that these settings are."""
        return {"n": self.bootstrap, "method": self.interval, "level": self.level, "seed": self.seed}


@dataclass(frozen=True)
class Search(Section):
    """The search for schedules of one adapter."""

    name: str | None = field(default=None, metadata=EXECUTION)
    """The search's name, of its folder and its schedules; null takes the adapter's. It keeps its settings."""
    adapter: str | None = field(default=None, metadata=EXECUTION)
    """The adapter to search schedules for, one of the run's; null takes the sweep's first unregularized one."""
    families: tuple[str, ...] = choice(
        ("power", "step", "constant", "monotone", "free"), "power", "step", "constant", "monotone", "free", **EXECUTION
    )
    """Families of schedules; monotone and free are piecewise linear with four knots, free ones may fall again."""
    places: tuple[float, ...] | None = number(None, 0, 1, **EXECUTION)
    """The four knots' progress u, as in [0, 0.3, 0.7, 1]; null searches the inner two."""
    sampler: str = choice("tpe", "nsga2", "tpe", "random", "grid", **EXECUTION)
    """Who proposes candidates: Optuna's NSGA-II, multi-objective TPE or random sampler, or evenly spaced curves."""
    trials: int = number(96, 1, **EXECUTION)
    """Candidates; with a greater number the same command goes on."""
    generation: int = number(16, 2, **EXECUTION)
    """Candidates that are proposed, and drawn together, before the sampler learns what they came to."""
    objectives: tuple[str, ...] = choice(
        ("reward", "diversity"), "reward", "held_out", "gold", "diversity", **EXECUTION
    )
    """What to maximize, at least two: the adapter's reward, the held-out one, gold, front.diversity. Gold is reported
    in any case and steers the search only where it is named here."""
    prompts: int | str | tuple[str, ...] = number(8, 2, **EXECUTION)
    """The search set: a list of prompts, a file of them, or how many of the embedded world's training captions."""
    held_out: int | str | tuple[str, ...] = number(16, 2, **EXECUTION)
    """The held-out set, which validates what was found: likewise, a number counting the world's held-out captions."""
    seeds: int = number(4, 2, VALIDATION_SEEDS, **EXECUTION)
    """Images a prompt and candidate, with noise that no evaluation and no validation has."""
    held_out_seeds: int = number(8, 2, VALIDATION_SEEDS, **EXECUTION)
    """Images a held-out prompt and schedule."""
    keep: int = number(4, 1, **EXECUTION)
    """Schedules to validate and to keep, at most: those that add most hypervolume on the search set."""
    seed: int = number(0, 0, **EXECUTION)
    """Seed of the sampler."""
    prompts_at_once: int = number(2, 1, **EXECUTION)
    """Prompts that a worker draws together, for a whole generation."""
    workers: int = number(2, 1, **EXECUTION)
    """Workers, each with the model and the scores; fewer where the cluster has less room."""
    worker_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs that a worker holds."""
    worker_gpus: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs that a worker holds, or a share of one; without any it draws and scores on CPUs."""
    node: str | None = field(default=None, metadata=EXECUTION)
    """A custom resource of Ray (`spot` in cluster.yaml) that only the workers' nodes have; null is any node."""

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct("search", self, ("families", "objectives", "prompts", "held_out"))
        if len(self.objectives) < 2 or not self.families:
            raise ConfigError(
                f"search.objectives is {list(self.objectives)} and search.families {list(self.families)}: give at "
                "least two objectives and one family"
            )
        if self.places is not None and (len(self.places) != 4 or list(self.places) != sorted(set(self.places))):
            raise ConfigError(
                f"search.places is {list(self.places)}: give four rising numbers from 0 to 1, as in [0, 0.3, 0.7, 1]"
            )
        if self.name is not None and (self.name != Path(self.name).name or self.name.startswith(".")):
            raise ConfigError(f"search.name is {self.name!r}: give a plain name without slashes")


@dataclass(frozen=True)
class Ray(Section):
    """The cluster."""

    address: str | None = field(default=None, metadata=EXECUTION)
    """A cluster's address, `local` for a new one; null takes RAY_ADDRESS or this machine's cluster, or starts one."""
    num_cpus: int | None = number(None, 1, **EXECUTION)
    """Logical CPUs of a local cluster; null takes the machine's, at least 4."""
    object_store_mb: int = number(300, 80, **EXECUTION)
    """Object store of a local cluster."""
    dashboard: bool = field(default=False, metadata=EXECUTION)
    """Whether a local cluster has a dashboard."""
    grows_to: dict[str, Any] | None = field(default=None, hash=False, metadata=EXECUTION)
    """What an autoscaling cluster that runs already may come to have, as in {CPU: 64, GPU: 8, spot: 8}; null takes what
    `ray up` left on the head, else what is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        amounts = (self.grows_to or {}).values()
        if not all(isinstance(amount, (int, float)) and amount >= 0 for amount in amounts):
            raise ConfigError(f"ray.grows_to is {self.grows_to}: give numbers by resource, as in {{CPU: 64, GPU: 8}}")


SECTIONS: dict[str, type[Section]] = {
    "run": Run, "model": Model, "rewards": Rewards, "train": Train, "sweep": Sweep, "evaluate": Evaluate,
    "measure": Measure, "front": Front, "search": Search, "ray": Ray,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that a command of the pipeline needs to know."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    rewards: Rewards = field(default_factory=Rewards)
    train: Train = field(default_factory=Train)
    sweep: Sweep = field(default_factory=Sweep)
    evaluate: Evaluate = field(default_factory=Evaluate)
    measure: Measure = field(default_factory=Measure)
    front: Front = field(default_factory=Front)
    search: Search = field(default_factory=Search)
    ray: Ray = field(default_factory=Ray)

    def __post_init__(self) -> None:
        if self.train.method == "full" and self.sweep.ranks:
            raise ConfigError(
                f"sweep.ranks is {list(self.sweep.ranks)}, and train.method=full has no rank: leave it []"
            )
        validation, steps = self.train.validate_every, self.train.steps
        if self.sweep.scheduler != "none" and self.sweep.grace * validation >= steps:
            raise ConfigError(
                f"sweep.grace is {self.sweep.grace}: with train.validate_every={validation} and train.steps={steps} "
                "nothing is left for ASHA to stop; lower one of the first two"
            )

    @property
    def directory(self) -> Path:
        """The run's directory; its mirror on this machine where run.storage is a URI."""
        return uris.local_folder(self.run.storage, self.run.name)
