"""The keys of the configuration: frozen, typed, checked at construction, each with its docstring."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import rivals, uris
from pipelines.config.errors import ConfigError
from pipelines.config.fields import EXECUTION, IN_KEY, NAMED, Section, bounds, check_bounds, choice, distinct, number

# The first noise seed index of validations and of searches; an evaluation counts from 0. No range reaches the next, so
# what selects adapters and schedules never sees an image that judges them.
VALIDATION_SEEDS, SEARCH_SEEDS = 1_000_000, 2_000_000


@dataclass(frozen=True)
class Run(Section):
    """The run's folder and seed, and who follows it."""

    name: str = field(default="run", metadata=EXECUTION)
    """Names the run: its folder under `storage`, and what a rerun resumes."""
    storage: str = field(default="~/aig-runs", metadata=EXECUTION)
    """The folder that holds all runs, or a URI that pyarrow knows, such as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.
    docs/cluster.md says how such a run is mirrored."""
    seed: int = number(0, 0)
    """Seed of the run: together with a prompt and a seed index it fixes the noise of an evaluated image."""
    tensorboard: bool = field(default=True, metadata=EXECUTION)
    """Log losses, validations and their images for TensorBoard: tensorboard --logdir RUN/tensorboard."""
    wandb: str | None = field(default=None, metadata=EXECUTION)
    """Weights & Biases project to send validations to, one run per training. Needs the package wandb."""
    mlflow: str | None = field(default=None, metadata=EXECUTION)
    """Tracking URI of an MLflow server or folder to send validations to, one run per training. Needs the package
    mlflow."""

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
    """`tiny` (the embedded model), a hub id, or the path of a diffusers folder of a known family."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """Variant of the weight files, such as `fp16`."""
    device: str = choice("auto", "auto", "cpu", "cuda", **EXECUTION)
    """Where the model runs; auto takes the GPU if there is one."""
    dtype: str = choice("float32", "float32", "bfloat16", "float16")
    """Type of the frozen weights and of the model's computations. Trained weights, their moments and their file are
    always float32. Training refuses float16, which would need a loss scaler."""
    height: int | None = number(None, 8)
    """Image height in pixels; null takes the size that the model was made for."""
    width: int | None = number(None, 8)
    """Image width in pixels; null takes the size that the model was made for."""
    scheduler: str | None = choice(None, None, "ddim", "euler", "dpm", "sde-dpm", "flow")
    """Use this scheduler with the model's noise schedule; null keeps the model's own."""
    steps: int | None = number(None, 1)
    """Denoising steps; null takes the model's default."""
    guidance: float | None = number(None, 1)
    """Classifier-free guidance scale; null takes the model's default."""
    eta: float | None = number(None, 0, 1)
    """Noise of DDIM, 0 for deterministic sampling; null takes the model's default."""
    negative: str = ""
    """The negative prompt."""
    distilled: float | None = number(None, 0)
    """Guidance scale that a guidance-distilled model (FLUX.1-dev) takes as an input; null takes its default."""


@dataclass(frozen=True)
class Rewards(Section):
    """Rewards of your own, and how they compute."""

    define: dict[str, Any] = field(default_factory=dict, hash=False)
    """Your own names for rewards, usable wherever a reward is named: {my-hps: {name: hpsv2.1, weights: FILE}}. A
    weighted sum is a text or a list of such mappings."""
    dtype: str = choice("float32", "float32", "bfloat16")
    """Type in which the trained reward computes. Reported scores are always computed in float32."""
    rounding: bool = False
    """Train on images rounded to 8 bits and resized as in a report: training scores equal reported ones, and gradients
    pass straight through."""

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


# The columns that hold the embedded world's judges.
RESERVED = ("gold", "gold_a", "gold_b")


@dataclass(frozen=True)
class Train(Section):
    """How an adapter is trained."""

    reward: str = field(default="fragile", metadata=IN_KEY)
    """The reward to maximize: a name, `package.module:callable`, or a weighted sum such as `0.5*pickscore +
    0.5*hpsv2.1`, whose terms are z-scored by the base model's images."""
    kl_weight: float = number(0.0, 0, **IN_KEY)
    """Weight of the KL penalty, in units of the reward."""
    k: int = number(1, 1, **IN_KEY)
    """DRaFT-K: the gradient goes through the last K sampling steps."""
    seed: int = number(0, 0, **IN_KEY)
    """Seed of this training: LoRA initialization, prompts and noise."""
    kl: str = choice("eps_mse", "eps_mse", "path")
    """The KL penalty: eps_mse, the published mean squared difference, or path, the path KL in nats, which needs a
    sampler that adds noise in each of the last K steps."""
    kl_steps: str = choice("last", "last", "early", "all", **IN_KEY)
    """The sampling steps that the KL penalizes: last, the last K, as published; early, those before them, which decide
    what an image shows; all. early and all draw one step per image, so that one more prediction is in the gradient."""
    reward_smoothing: float = number(0.0, 0)
    """Score noisy images in the loss, so that what only exact pixels earn counts less: the standard deviation of the
    Gaussian noise in pixels of [0, 1]; 0 for none. Validations and evaluations score images as they are."""
    smoothing_draws: int = number(1, 1)
    """Noisy copies of each image, over which the smoothed reward is a mean."""
    lv: int = number(1, 1)
    """DRaFT-LV: draw the last step's noise this many times; 1 is plain DRaFT."""
    prompts: int | str | tuple[str, ...] = number(32, 1)
    """A list of prompts; a file of them (text with one per line; .tsv, .csv, .jsonl or .parquet with a column prompt,
    caption or text; .json); or how many of the embedded world's 32 training captions to take. Any other model needs a
    list or a file."""
    steps: int = number(100, 1)
    """Optimizer steps."""
    batch: int = number(12, 1)
    """Images per step, over all workers."""
    rollout_batch: int | None = number(None, 1, **EXECUTION)
    """Most rows in one forward without gradient; null takes the model's own limit."""
    micro_batch: int = number(12, 1, **EXECUTION)
    """Images whose graph is in memory at once."""
    lr: float = number(1e-3, above=0)
    """Learning rate, constant."""
    weight_decay: float = number(5e-4, 0)
    """Weight decay: each AdamW step takes lr * weight_decay of a weight off it."""
    optimizer: str = choice("adamw", "adamw", "adamw-fused", "adamw-8bit", "adam-l2")
    """adamw decouples the decay, as published; adamw-fused is the same in one kernel; adamw-8bit keeps its moments in 8
    bits and needs a GPU and bitsandbytes; adam-l2 adds the decay to the gradient, as L2 regularization."""
    ema: float | None = number(None, above=0)
    """Decay, below 1, of an exponential moving average (EMA) of the tuned weights; null for none. The average is then
    what is validated, saved (snapshots and the best adapter too), held by a guard and evaluated. As published, its
    start still weighs decay^n after n steps: 0.67 for 0.9999 after 4,000."""
    autocast: str | None = choice(None, None, "bfloat16")
    """Precision of denoiser and decoder in a training step with float32 weights. Rewards compute in rewards.dtype."""
    checkpointing: tuple[str, ...] = choice((), "denoiser", "vae", "reward", **EXECUTION)
    """Recompute these parts' activations in the backward pass instead of keeping them."""
    vae_tiling: bool = False
    """Decode large images in overlapping tiles: less memory, slightly different images."""
    compile: bool = False
    """Compile the denoiser's repeated blocks with torch.compile: worth its minute in long trainings on a GPU."""
    clip: float = number(1.0, above=0)
    """Largest norm of the gradient."""
    on_nan: str = choice("stop", "stop", "skip")
    """If an image's score is NaN: stop and name the image, or skip the image and count it."""
    method: str = choice("lora", "lora", "full")
    """What is tuned: a LoRA, or every weight of the denoiser, as a second set beside the frozen base."""
    offload: bool = field(default=False, metadata=EXECUTION)
    """Full fine-tuning only: keep the base's weights on the CPU. Slower if the base is evaluated too, as for KL."""
    rank: int = number(8, 1)
    """LoRA rank."""
    alpha: float = number(8.0, above=0)
    """LoRA alpha; the adapter's contribution is scaled by alpha / rank."""
    targets: str = choice("everywhere", "attention", "everywhere")
    """Layers that get a LoRA: attention only, or feed-forward layers and convolutions too."""
    snapshot_every: int = number(20, 1)
    """Steps between the snapshots that are kept: the early stops."""
    validate_every: int = number(20, 1)
    """Steps between validations: the points of the training curves."""
    validate_prompts: int = number(8, 1)
    """Prompts of a validation: the first of the training prompts."""
    validate_seeds: int = number(4, 2, SEARCH_SEEDS - VALIDATION_SEEDS)
    """Images per prompt in a validation, at least two for diversity. No evaluation uses their noise."""
    checkpoint_every: int = number(20, 1, **EXECUTION)
    """Steps between checkpoints: the most that a crash costs."""
    max_failures: int = number(3, -1, **EXECUTION)
    """How often a dead worker is replaced; -1 for no limit. A failure that any worker would repeat (a NaN score, a
    setting that does not fit) ends the training at once."""
    num_workers: int | tuple[int, ...] = number(1, 1, **EXECUTION)
    """Data-parallel training workers. [least, most] takes as many as the cluster has room for, and goes on with fewer
    or more as nodes come and go; the adapter is the same to rounding."""
    cpus_per_worker: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs per worker."""
    gpus_per_worker: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs per worker; 0 runs it on CPUs."""
    node: str | None = field(default=None, metadata=EXECUTION)
    """Custom Ray resource that only the workers' nodes have (`train` in cluster.yaml); null for any node."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads per worker."""
    memory_per_worker: float | None = number(None, above=0, **EXECUTION)
    """GiB of main memory that Ray reserves per worker; null reserves none."""
    parallel: str = choice("auto", "auto", "ddp", "fsdp", **EXECUTION)
    """How several workers share the work. ddp: each holds all weights, gradients are summed. fsdp: weights, gradients
    and moments are sharded, for full fine-tuning only. auto: fsdp for full fine-tuning, ddp for a LoRA."""
    num_to_keep: int = number(2, 1, **EXECUTION)
    """Checkpoints to keep; with two, one remains if a crash spoils the last."""
    keep_best: bool = field(default=False, metadata=EXECUTION)
    """Also keep, as KEY@best, the adapter of the validation with the best held-out reward."""
    explosion: float | None = number(1000.0, above=1)
    """A step has exploded if its gradient's norm, over clip, is this many times the median of the last steps, or if its
    loss lies above their median by this many of its usual deviations; on_nan then applies as for a NaN. null never
    calls it so."""
    stop_held_out: float | None = number(None, 0)
    """Stop once the held-out reward has fallen by more than this, in its own units, below its best validation."""
    stop_diversity: float | None = number(None, 0, 1, above=0)
    """Stop once diversity falls below this share of the base's, both as validated."""
    stop_kl: float | None = number(None, above=0)
    """Stop once the path KL to the base exceeds this many nats per image. Only stochastic sampling has one."""
    stop_path: float | None = number(None, above=0)
    """Stop once the path length to the base (eps_mse) exceeds this; with any sampling."""
    stop_patience: int = number(1, 1)
    """Stop after this many validations in a row beyond one of these limits; the adapter is then that of the last
    validation within all of them."""
    label: str = field(default="", metadata=IN_KEY)
    """A word in the adapter's name, before its seed. A sweep puts there what else it varies, as in lr0.0003-r16."""

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
    def drawn_kl(self) -> str:
        """kl_steps if the loss has a KL at drawn steps, else empty."""
        return self.kl_steps if self.kl_steps != "last" and self.kl_weight > 0 else ""

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by what they bound."""
        limits = {name: getattr(self, f"stop_{name}") for name in LIMITED}
        return {name: limit for name, limit in limits.items() if limit is not None}


# Optimizer names in the configurations of earlier runs; the first was the default.
ONCE_L2 = ("adam", "adam-fused", "adam8bit")

# What the keys `train.stop_*` bound, beside stop_patience.
LIMITED = ("held_out", "diversity", "kl", "path")


@dataclass(frozen=True)
class Sweep(Section):
    """Which adapters a sweep trains."""

    rewards: tuple[str, ...] = ("fragile",)
    """Rewards to train on."""
    ks: tuple[int, ...] = number((1,), 1)
    """Values of DRaFT's K."""
    kl_weights: tuple[float, ...] = number((0.0, 1.0, 10.0), 0)
    """KL weights."""
    early_kl_weights: tuple[float, ...] = number((), above=0)
    """KL weights of additional trainings with train.kl_steps=early."""
    train_seeds: tuple[int, ...] = number((0,), 0)
    """Training seeds. Each is a study of its own, and their mean is one more."""
    max_concurrent: int = number(3, 1, **EXECUTION)
    """Most trainings at once; fewer if the cluster has less room."""
    lrs: tuple[float, ...] = number((), above=0)
    """Learning rates, each a study of its own; [] takes train.lr."""
    ranks: tuple[int, ...] = number((), 1)
    """LoRA ranks, each a study of its own; [] takes train.rank. The scale train.alpha / train.rank is kept."""
    search: str = choice("grid", "grid", "random", "optuna")
    """grid trains every combination; random draws `trials` of them, and optuna draws them by Optuna's multi-objective
    TPE. A search also trains train.* with KL weight 0 for every reward and K, to compare its trials with."""
    trials: int = number(16, 1, **EXECUTION)
    """Trials that a search draws. Raise it, and the same command goes on."""
    generation: int = number(4, 1)
    """Trials that Optuna draws together before it learns their outcome. A random search draws all at once."""
    lr_range: tuple[float, ...] | None = number(None, above=0)
    """[low, high]: a search draws learning rates from it, uniformly in the logarithm; null draws among lrs."""
    kl_range: tuple[float, ...] | None = number(None, above=0)
    """[low, high]: a search draws KL weights from it, uniformly in the logarithm; null draws among kl_weights."""
    objectives: tuple[str, ...] = choice(("reward", "diversity"), "reward", "held_out", "gold", "diversity")
    """What Optuna maximizes, as validated for a trial's adapter; if a guard stopped the trial, for the adapter that it
    kept."""
    seed: int = number(0, 0)
    """Seed of a search: it draws the same trials again if those before had the same outcome."""
    scheduler: str = choice("none", "none", "asha", **EXECUTION)
    """asha stops trials that fall behind others at the same step. A trial that it stops is no arm."""
    proxy: str = choice("held_out", "reward", "held_out", "gold", "diversity", **EXECUTION)
    """What ASHA compares trials by, as validated."""
    grace: int = number(1, 1, **EXECUTION)
    """Validations that ASHA leaves every trial."""
    reduction: float = number(3.0, above=1, **EXECUTION)
    """ASHA lets 1 / reduction of the trials go on, and decides at steps that grow by this factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct("sweep", self, ("rewards", "ks", "kl_weights", "early_kl_weights", "train_seeds"))
        distinct("sweep", self, ("lrs", "ranks", "objectives"))
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
        if self.early_kl_weights:
            raise ConfigError(
                f"sweep.early_kl_weights is {list(self.early_kl_weights)}, and a search draws no steps: set "
                "train.kl_steps=early for all of its trials, or sweep.search=grid"
            )
        for key in ("lr_range", "kl_range"):
            ends = getattr(self, key)
            if ends is not None and (len(ends) != 2 or ends[0] >= ends[1]):
                raise ConfigError(f"sweep.{key} is {list(ends)}: give [low, high], as in [0.0001, 0.01]")
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
    """A list of prompts, a file of them as for train.prompts, or how many of the embedded world's 16 held-out captions
    to take, which no number for train.prompts includes. Any other model needs a list or a file; the command says how
    many of them were trained on."""
    seeds: int = number(8, 2, VALIDATION_SEEDS)
    """Images per prompt and arm. Every arm starts from the same noise."""
    rewards: tuple[str, ...] = ("fragile", "robust")
    """Rewards that score every image, beside the terms of weighted sums. The first that was not trained on is the
    held-out reward."""
    gold: str | None = "gold"
    """The reward that stands for the truth and is never trained on; null for none."""
    features: str | dict[str, Any] = field(default="world", hash=False)
    """Feature extractor of the diversity metrics: a name, `package.module:callable`, or a mapping such as {name:
    dinov2, weights: FOLDER}."""
    lora_scales: tuple[float, ...] = number((0.25, 0.5, 0.75), 0, rivals.MOST)
    """LoRA scales of the unregularized adapter; above 1 they go beyond it."""
    schedules: tuple[str, ...] = ("linear", "power:2", "power:4", "step:0.6", "constant:0.5")
    """Schedules of the unregularized adapter: AIG's; your own as package.module:callable from progress to weight; and,
    each a family of its own, one weight at every step (constant:W: DeRaDiff, above 1 RLG), a weight that anneals beyond
    1 (ramp:U,W) and one model a step (coin:SCHEDULE, Diffusion Blend)."""
    kl_schedules: tuple[str, ...] = ()
    """Schedules of the sweep's other adapters: the KL-regularized ones (the published protocol sweeps AIG for every KL
    weight), and those that a search drew."""
    spaces: tuple[str, ...] = choice(("prediction",), "prediction", "weight")
    """Where a schedule that varies acts, an arm in each: prediction mixes two predictions, as published; weight scales
    the LoRA from step to step, for one prediction. A coin and a constant weight are of predictions alone."""
    early_stops: tuple[int, ...] | None = number(None, 1)
    """Training steps whose snapshots are arms; null takes every snapshot, [] none."""
    path_prompts: int | None = number(None, 0)
    """Prompts on which the distance to the base is measured, at the cost of more predictions; null takes all."""
    group: int = number(8, 1)
    """Images of one prompt and arm that are drawn together. A file of the dataset holds such a group of every arm."""
    groups_at_once: int = number(2, 1, **EXECUTION)
    """Groups that a generator draws together: more of them fill a forward better, fewer lose less in an
    interruption."""
    block: int | None = number(None, 1)
    """Pad every forward to a multiple of this many rows, so that an image has the same bits in any group. null takes
    the model's own: 1, for bits that may differ, if a row is expensive."""
    max_rows: int | None = number(None, 1, **EXECUTION)
    """Most rows in one forward; null takes the model's own limit."""
    generators: int | tuple[int, ...] | None = number(2, 1, **EXECUTION)
    """Generator actors: a number; [least, most] for a pool that grows and shrinks with the cluster; or null for as many
    as its CPUs, GPUs and memory allow."""
    generator_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs per generator."""
    generator_gpus: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs per generator, possibly a fraction; 0 runs it on CPUs."""
    scorers: int | tuple[int, ...] = number(1, 1, **EXECUTION)
    """Scorer actors: a number, or [least, most] for a pool that grows when images wait to be scored."""
    scorer_cpus: float = number(0.5, above=0, **EXECUTION)
    """Ray CPUs per scorer."""
    scorer_gpus: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs per scorer, possibly a fraction; 0 runs it on CPUs."""
    node: str | None = field(default=None, metadata=EXECUTION)
    """Custom Ray resource that only the actors' nodes have (`spot` in cluster.yaml); null for any node."""
    score_batch: int = number(32, 1, **EXECUTION)
    """Most images that a scorer scores at once."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads per actor."""
    adapters: tuple[str, ...] = field(default=(), metadata=NAMED)
    """Adapters from elsewhere, each as NAME=PATH of a LoRA file or of a folder that holds one. Each is a study: the
    base, its LoRA scales and its schedules. The run keeps a copy."""
    max_failed: float = number(0.0, 0, 1, **EXECUTION)
    """Share of the groups that may fail, each tried twice, before the exit code says so. Their prompts are left out for
    all arms in any case."""
    failures_in_a_row: int = number(8, 1, **EXECUTION)
    """Groups that may fail in a row before the evaluation ends: by then the prompts are not to blame."""
    kl_lora_scales: tuple[float, ...] = number((), 0, rivals.MOST)
    """LoRA scales of the sweep's other adapters, as kl_schedules."""
    best_of: tuple[int, ...] = number((), 2)
    """Best-of-n: of n images that the base draws per prompt and seed, keep the one that the study's own reward ranks
    highest; costs n - 1 more images of the base per kept one, once for all studies."""
    guidance: tuple[str | float, ...] = ()
    """Other guidance scales of the base and of the unregularized adapter, SCALE or, with guidance in an interval of
    progress alone (arXiv 2404.07724), SCALE@BEGIN-END, as 5 or 7@0.2-0.8."""
    autoguidance: tuple[str, ...] = ()
    """The unregularized adapter against snapshots of its training at weights above 1 (arXiv 2406.02507), STEP=WEIGHT,
    as 40=2."""
    soups: tuple[str, ...] = ()
    """Averaged adapters, rewarded soups (arXiv 2306.04488), ADAPTER=WEIGHT|ADAPTER=WEIGHT, as
    fragile-k1-kl0=0.5|robust-k1-kl0=0.5: trained adapters without -sSEED, each with its study's own seed, and those of
    evaluate.adapters. A soup is in the study of its first adapter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct("evaluate", self, ("rewards", "lora_scales", "schedules", "kl_schedules", "early_stops", "prompts"))
        distinct("evaluate", self, ("kl_lora_scales", "spaces", "best_of"))
        if not self.spaces:
            raise ConfigError("evaluate.spaces is []: give prediction, weight or both")
        check_bounds("evaluate.generators", self.generators)
        check_bounds("evaluate.scorers", self.scorers)
        if max(self.best_of, default=1) * self.seeds > VALIDATION_SEEDS:
            raise ConfigError(
                f"evaluate.best_of: {max(self.best_of)} times {self.seeds} seeds reach those that validate a training, "
                f"from {VALIDATION_SEEDS} on: take fewer"
            )
        for key in rivals.FORMS:
            rivals.check(key, getattr(self, key))
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
    """Subsets of the prompts behind the intervals of measures of whole image sets; 0 for no intervals."""
    subset_images: int = number(2048, 1, **EXECUTION)
    """Most images of an arm in such a subset, preferably more than the features have dimensions; half of the prompts if
    those have fewer."""
    tiles_from: int = number(50_000, 1, **EXECUTION)
    """With this many images per arm or more, Ray finds nearest neighbours in tiles; the result is the same."""
    tile: int = number(4096, 1, **EXECUTION)
    """Images on each side of a tile."""
    tile_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs per tile."""
    threads: int = number(1, 1, **EXECUTION)
    """Torch threads outside Ray; with few images more threads are slower."""
    min_precision: float = number(0.05, 0, 1, **EXECUTION)
    """Warn beside an arm whose precision against the base is lower. It stays on fronts, since another style has little
    precision too."""
    max_constant: float = number(0.01, 0, 1, **EXECUTION)
    """An arm with a larger share of images of one flat colour is broken, and on no front. An arm with a pixel that is
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
    """Intervals of means and of their differences: studentized ones hold for skewed data too, percentile ones are
    narrower."""
    reference: dict[str, Any] = field(default_factory=dict, hash=False, metadata=EXECUTION)
    """Where hypervolumes start, by metric, as in {vendi: 1, pickscore: 18}; by default at the least of the arms'
    means."""
    scale: dict[str, Any] = field(default_factory=dict, hash=False, metadata=EXECUTION)
    """What counts as 1 in a hypervolume, by metric, as in {vendi: 2}; by default the range of the arms' means."""

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
        """These settings as the arguments of a bootstrap."""
        return {"n": self.bootstrap, "method": self.interval, "level": self.level, "seed": self.seed}


@dataclass(frozen=True)
class Search(Section):
    """The search for schedules of one adapter."""

    name: str | None = field(default=None, metadata=EXECUTION)
    """Name of the search, of its folder and its schedules; null takes the adapter's. A search keeps its settings."""
    adapter: str | None = field(default=None, metadata=EXECUTION)
    """The run's adapter to search schedules for; null takes the sweep's first unregularized one."""
    families: tuple[str, ...] = choice(
        ("power", "step", "constant", "monotone", "free"),
        "power", "step", "constant", "monotone", "free", "ramp", "scaled", **EXECUTION,
    )  # fmt: skip
    """Families of schedules. monotone and free are piecewise linear with four knots; free ones may fall again. ramp and
    scaled (F*power:P) end at weights up to 16, beyond the tuned model; the others stay within 1."""
    places: tuple[float, ...] | None = number(None, 0, 1, **EXECUTION)
    """Progress u of the four knots, as in [0, 0.3, 0.7, 1]; null searches the inner two."""
    sampler: str = choice("tpe", "nsga2", "tpe", "random", "grid", **EXECUTION)
    """What proposes candidates: Optuna's NSGA-II, multi-objective TPE or random sampler, or a grid of evenly spaced
    curves."""
    trials: int = number(96, 1, **EXECUTION)
    """Candidates. Raise it, and the same command goes on."""
    generation: int = number(16, 2, **EXECUTION)
    """Candidates that are proposed and drawn together before the sampler learns their outcome."""
    objectives: tuple[str, ...] = choice(
        ("reward", "diversity"), "reward", "held_out", "gold", "diversity", **EXECUTION
    )
    """What to maximize, at least two: the adapter's reward, the held-out one, gold, front.diversity. Gold is always
    reported, and steers the search only if it is named here."""
    prompts: int | str | tuple[str, ...] = number(8, 2, **EXECUTION)
    """The search set: a list of prompts, a file of them, or how many of the embedded world's training captions to
    take."""
    held_out: int | str | tuple[str, ...] = number(16, 2, **EXECUTION)
    """The held-out set, which validates the best candidates: likewise, but a number counts the world's held-out
    captions."""
    seeds: int = number(4, 2, VALIDATION_SEEDS, **EXECUTION)
    """Images per prompt and candidate. No evaluation and no validation uses their noise."""
    held_out_seeds: int = number(8, 2, VALIDATION_SEEDS, **EXECUTION)
    """Images per held-out prompt and schedule."""
    keep: int = number(4, 1, **EXECUTION)
    """Most schedules to validate and keep: those that add most hypervolume on the search set."""
    seed: int = number(0, 0, **EXECUTION)
    """Seed of the sampler."""
    prompts_at_once: int = number(2, 1, **EXECUTION)
    """Prompts that a worker draws together, for a whole generation."""
    workers: int = number(2, 1, **EXECUTION)
    """Workers, each with the model and the scorers; fewer if the cluster has less room."""
    worker_cpus: float = number(1.0, above=0, **EXECUTION)
    """Ray CPUs per worker."""
    worker_gpus: float = number(0.0, 0, **EXECUTION)
    """Ray GPUs per worker, possibly a fraction; 0 draws and scores on CPUs."""
    node: str | None = field(default=None, metadata=EXECUTION)
    """Custom Ray resource that only the workers' nodes have (`spot` in cluster.yaml); null for any node."""

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
    """Address of a cluster, or `local` to start one; null takes RAY_ADDRESS or this machine's cluster, else starts
    one."""
    num_cpus: int | None = number(None, 1, **EXECUTION)
    """Logical CPUs of a local cluster; null takes the machine's, at least 4."""
    object_store_mb: int = number(300, 80, **EXECUTION)
    """MB of a local cluster's object store."""
    dashboard: bool = field(default=False, metadata=EXECUTION)
    """Whether a local cluster has a dashboard."""
    grows_to: dict[str, Any] | None = field(default=None, hash=False, metadata=EXECUTION)
    """What a running, autoscaling cluster may grow to, as in {CPU: 64, GPU: 8, spot: 8}; null takes what `ray up` left
    on the head, else what is there."""

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
    """All keys of a run, by section."""

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
