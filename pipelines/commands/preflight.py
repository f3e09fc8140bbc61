"""Check before any Ray process starts what may be wrong with a configuration beyond its ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import diffusers
import torch
import transformers

from aig import adapters, rewards, schedules
from aig.metrics import features
from aig.models import Model
from aig.sampler import Grid
from pipelines.config import Config, ConfigError, Train
from pipelines.config import given as _named
from pipelines.evaluate import external
from pipelines.rewards import names as reward_names
from pipelines.runs.directory import RunDir
from pipelines.study import arms, limits, models, rivals, statistics
from pipelines.study import trainings as planned
from pipelines.study.prompts import EVALUATE, TRAIN, check_prompts, resolve_prompts
from pipelines.study.trials import Trials
from pipelines.train import parallel, records, tracking
from pipelines.train.objective import draft_config


def check_training(config: Config, *, sweep: bool) -> Model:
    """Load and try out what `config.train`, or every training of the sweep, needs; return the model.

    ConfigError names what is wrong and the fix.
    """
    if sweep and not planned.trainings(config):
        raise ConfigError("sweep.rewards is []: there is nothing to train; give the rewards to train on")
    tracking.check(config)
    check_prompts(config, TRAIN, EVALUATE)
    model = _model(config)
    wanted = planned.trainings(config) if sweep else [config.train]
    if sweep and config.sweep.search != "grid":
        largest = 1.0 if config.sweep.kl_range else max(config.sweep.kl_weights)
        wanted += [replace(train, kl_weight=largest) for train in wanted if largest > 0]
    for train in wanted:
        key = "sweep.rewards" if sweep else "train.reward"
        with _named(key):
            reward_names.check(config, train.reward, trained=True)
        with _named("train"):
            sampling = draft_config(replace(config, train=train), model).sampling
        limits.check(train, Grid(model, sampling).has_path_kl, reward_names.held_out(config, train.reward))
    for train in wanted:
        _check_parallel(replace(config, train=train))
    with _named(TRAIN):
        model.encode(resolve_prompts(config, TRAIN))
    _check_scores(config)
    if sweep:
        _check_compared(config)
    _check_adapters(config, wanted)
    return model


def _check_parallel(config: Config) -> None:
    """Refuse values that do not go together with train.parallel and train.num_workers."""
    train = config.train
    most = train.workers[1]
    if most > train.batch:
        raise ConfigError(f"train.num_workers is {most} and train.batch {train.batch}: give each worker an image")
    if train.keep_best and reward_names.held_out(config, train.reward) is None:
        raise ConfigError(
            "train.keep_best is true and evaluate.rewards has no reward that is not trained on: add one, or leave it "
            "off"
        )
    if train.parallel == "fsdp" and train.method != "full":
        raise ConfigError(
            "train.parallel is fsdp, which shards what full fine-tuning trains; a LoRA is small: take auto or ddp"
        )
    if most == 1 or parallel.strategy(train, most) != "fsdp":
        return
    for key, bad, fix in (
        ("on_nan", "skip", "its workers have to make the same forwards: take stop"),
        ("optimizer", "adamw-8bit", "bitsandbytes cannot hold sharded moments: take adamw"),
        ("compile", True, "compiled blocks would be made anew around the sharded weights: leave it off"),
    ):
        if getattr(train, key) == bad:
            raise ConfigError(
                f"train.{key} is {bad} and the {most} workers of full fine-tuning are sharded (fsdp): {fix}, or take "
                "train.parallel=ddp"
            )


def check_evaluation(config: Config, model: Model | None = None, *, trained: bool) -> Model:
    """Load and try out what the evaluation needs, with `trained` the adapters too; return the model.

    ConfigError names what is wrong and the fix.
    """
    evaluate = config.evaluate
    for key in ("schedules", "kl_schedules"):
        for text in getattr(evaluate, key):
            with _named(f"evaluate.{key}"):
                schedules.parse(text)
    trials = Trials.of(config)
    studies = arms.studies(trials)
    arms.check_arms(studies)
    rivals.check_soups(trials)
    check_prompts(config, *prompt_keys(config))
    model = model or _model(config)
    sampling = models.resolve_sampling(config, model.defaults)
    grid = Grid(model, sampling)
    rivals.check_guidance(config, sampling)
    for key in ("schedules", "kl_schedules"):
        for text in getattr(evaluate, key):
            with _named(f"evaluate.{key}"):
                if (schedule := schedules.parse(text)).fit is None:
                    grid.weights(schedule)
    external.check(config, model.denoiser)
    for text in evaluate.soups:
        there = [name for name in rivals.averaged(text) if name in planned.external(config)]
        if there:
            with _named("evaluate.soups"):
                adapters.soup(model.denoiser, text, dict.fromkeys(there, 1.0))
    _check_spaces(config, model)
    with _named(EVALUATE):
        model.encode(resolve_prompts(config, EVALUATE))
    _check_scores(config)
    if trained:
        trials.check_drawn()
        for name in dict.fromkeys(name for arm in arms.drawn_arms(studies) for name in rivals.saved(arm.arm)):
            if name not in planned.external(config):
                models.adapter_digest(config, name)
        _check_adapters(config, trials.trainings)
    return model


def _check_spaces(config: Config, model: Model) -> None:
    """Refuse weight space for adapters that are no LoRA; those from elsewhere are on the model."""
    if "weight" not in config.evaluate.spaces:
        return
    full = [name for name in planned.external(config) if adapters.is_copy(model.denoiser, name)]
    trained = config.train.method == "full" and planned.trainings(config)
    if full or trained:
        what = "train.method is full" if trained else f"the adapter {full[0]!r} is a full copy of the denoiser"
        raise ConfigError(
            f"evaluate.spaces is {list(config.evaluate.spaces)}, and {what}: weight space changes a LoRA's scale from "
            "step to step, and there is none; give evaluate.spaces=[prediction]"
        )


def prompt_keys(config: Config) -> tuple[str, ...]:
    """The keys of the prompts that an evaluation needs. Adapters from elsewhere need no training prompts, unless sums
    are z-scored by images of them."""
    with _named("evaluate.rewards"):
        trained = bool(planned.trainings(config)) or bool(statistics.columns(config).sums)
    return (TRAIN, EVALUATE) if trained else (EVALUATE,)


def check_study(config: Config) -> Model:
    """Check both, for a run whose adapters are not trained yet; return the model."""
    return check_evaluation(config, check_training(config, sweep=True), trained=False)


def check_weights(config: Config, model: Model) -> Iterator[str]:
    """Load each reward of the run, one at a time, and score an image of the model's size; yields a line for each.

    Missing weights are downloaded. ConfigError if weights cannot be had or do not fit, or if a score is not finite.
    """
    columns = statistics.columns(config)
    gold = reward_names.gold(config)
    for name, spec in {**columns.parts, **({} if gold is None else {gold.column: gold})}.items():
        height, width = model.image_size
        image = torch.linspace(0, 255, width).to(torch.uint8).expand(1, 3, height, width)
        with _named("check --weights"):
            score = float(rewards.report(rewards.load(spec), image, ["a red star"])[0])
        if not math.isfinite(score):
            raise ConfigError(
                f"reward {name!r} loads, and scores an image {score}: its weights are damaged; get others"
            )
        yield f"Reward {name!r} loads, and scores a grey ramp {score:.4g}."


def _model(config: Config) -> Model:
    # Their progress bars and notes would come between our lines.
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    with _named("model.name"):
        try:
            model = models.load_model(config)
        except (OSError, RuntimeError) as error:  # diffusers and torch, for files that are cut off or do not fit
            raise ConfigError(
                f"model.name: {config.model.name} cannot be loaded ({error}): its weights are corrupt or do not fit; "
                "save the pipeline again, or give another model"
            ) from error
    with _named("model"):
        Grid(model, models.resolve_sampling(config, model.defaults))
    return model


def _check_scores(config: Config) -> None:
    evaluate = config.evaluate
    with _named("evaluate.rewards"):
        for name in reward_names.scored(config):
            reward_names.check(config, name)
        reward_names.columns(config, reward_names.scored(config))
    if evaluate.gold is not None:
        with _named("evaluate.gold"):
            reward_names.check(config, evaluate.gold)
            reward_names.gold(config)
    with _named("evaluate.features"):
        features.load(evaluate.features)


def _check_compared(config: Config) -> None:
    """A search and ASHA must compare all trials by one and the same measure."""
    sweep = config.sweep
    asked = {"sweep.objectives": sweep.objectives if sweep.search == "optuna" else ()}
    asked["sweep.proxy"] = (sweep.proxy,) if sweep.scheduler != "none" else ()
    held_out = {reward_names.held_out(config, reward) for reward in sweep.rewards}
    for key, names in asked.items():
        if "reward" in names and len(sweep.rewards) > 1:
            raise ConfigError(
                f"{key} has 'reward', and sweep.rewards has {len(sweep.rewards)}, which are on different scales: take "
                "one reward, or compare by 'gold' or 'held_out'"
            )
        if "held_out" in names and (len(held_out) > 1 or None in held_out):
            raise ConfigError(
                f"{key} has 'held_out', and not every trial has the same one: put a reward that none of sweep.rewards "
                "shares first in evaluate.rewards"
            )
        if "gold" in names and config.evaluate.gold is None:
            raise ConfigError(f"{key} has 'gold', and evaluate.gold names none: set it, or leave 'gold' out")


def _check_adapters(config: Config, trainings: Sequence[Train]) -> None:
    """Adapters that exist must be those of this configuration."""
    files = RunDir.of(config)
    for train in trainings:
        single = replace(config, train=train)
        for name, step in planned.adapter_folders(single):
            folder = files.adapters / name
            if not (folder / adapters.RECORD).exists():
                continue
            found, wanted = records.adapter_record(folder), records.training_record(single, train, step)
            if not records.same_record(found, wanted):
                difference = records.difference(found, wanted)
                raise ConfigError(
                    f"{files.shown(folder)}: this adapter was made {difference}: choose another run.name and "
                    "keep it (--adapter NAME=FOLDER evaluates it there), or delete the folder to train it again"
                )
