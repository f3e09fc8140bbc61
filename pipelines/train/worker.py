"""A training worker: ordinary torch code that calls `aig.draft`, reports to Ray Train and writes files."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor

from aig import adapters, memory
from aig.adapters import sharding
from aig.draft import draw, over_kept, train_step
from aig.ema import Ema
from pipelines.config import Config, ConfigError
from pipelines.rewards import names as reward_names
from pipelines.runs.directory import RunDir
from pipelines.study import limits, models, trainings
from pipelines.study import statistics as reward_statistics
from pipelines.study.limits import Stop
from pipelines.study.prompts import TRAIN, resolve_prompts
from pipelines.train import checkpoints, heartbeat, parallel, records, validation
from pipelines.train.guard import Guard
from pipelines.train.objective import ADAPTER, attach, draft_config
from pipelines.train.tracking import Tracker
from pipelines.train.validation import scores_of

BETAS = (0.9, 0.999)  # AdamW's, as published
EMPTY_STEPS = 10  # steps in a row without a gradient that end a training, whatever train.on_nan says


def run(config: Config) -> None:
    """Train the adapter of `config.train` as one worker of a Ray Train run, from its last checkpoint, if any."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.train.threads)
    training = Training(config, rank == 0, parallel.strategy(config.train, world), world)
    resume(training)
    try:
        proceed(training, rank, world)
    finally:
        training.finish()


def proceed(training: Training, rank: int, world: int) -> None:
    """Train from the current step to the end."""
    settings = training.config.train
    training.begin()
    while not training.ended:
        training.advance(rank, world)
        validates = training.ended or training.step % settings.validate_every == 0
        if validates:
            training.validate()
            training.guard.judge(training.step, training.curve if rank == 0 else None, world)
        training.keep()
        if training.ended or training.step % settings.checkpoint_every == 0:
            training.report(saving=True)
        elif validates:
            training.report(saving=False)
    training.keep()


def resume(training: Training) -> None:
    """Go on from the newest whole checkpoint in storage; the first worker finds it and removes what a crash left."""
    storage = training.files.checkpoints(training.key)
    found, warnings = None, []
    if training.scores is not None:
        checkpoints.clean_saves(training.files.adapters, training.key)  # first: every worker looks at what is saved
        found, warnings = checkpoints.newest(training.files, storage)
    name = broadcast_from_rank_zero(found.name if found else None)
    chosen = storage / name if name is not None else None
    if chosen is not None:
        with checkpoints.local_copy(training.files, chosen) as folder:
            training.restore(folder / checkpoints.STATE)
    if training.scores is not None:
        if warnings:
            place = {"step": training.step, "steps": training.config.train.steps}
            training.status.update({**place, "warnings": warnings}, force=True)
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, timeout_s=10)
        listed = {Path(each.checkpoint.path).name for each in reported}
        checkpoints.clean(training.files, storage, chosen, listed, training.config.train.num_to_keep)


class Training:
    """The state of one training: model, adapter, optimizer, step. The first worker also measures and writes files."""

    def __init__(self, config: Config, is_first: bool, mode: str = parallel.ALONE, world: int = 1) -> None:
        settings = config.train
        self.mode = mode
        self.config, self.files, self.key = config, RunDir.of(config), trainings.adapter_key(settings)
        fetch_inputs(self.files, self.key)
        self.model = models.load_model(config)
        self.draft = draft_config(config, self.model)
        self.prompts = resolve_prompts(config, TRAIN)
        memory.prepare(self.model, settings.checkpointing, settings.vae_tiling, settings.compile)
        statistics = reward_statistics.sum_statistics(config)
        self.reward = reward_names.load_trained(config, self.model.device, statistics or {})
        denoiser = self.model.denoiser
        attach(settings, denoiser)
        self.parameters = adapters.parameters(denoiser, ADAPTER)
        if mode == parallel.FSDP:
            self.parameters = sharding.shard(denoiser, ADAPTER, sharding.mesh_of(denoiser, world))
        self.optimizer = memory.make_optimizer(
            settings.optimizer, self.parameters, settings.lr, BETAS, settings.weight_decay
        )
        self.ema = None if settings.ema is None else Ema(self.parameters, settings.ema)
        self.scores = scores_of(config, self.model.device, statistics) if is_first else None
        self.step, self.seconds, self.skipped = 0, 0.0, 0.0
        self.sums: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        place = {"pid": os.getpid(), "host": socket.gethostname()}
        self.status = heartbeat.StatusFile(self.files, self.files.progress / f"{self.key}.json", **place)
        self.begun = time.monotonic()
        self.empty = 0
        self.guard = Guard(settings, self.parameters if self.ema is None else self.ema.means)
        self.tracker: Tracker | None = None
        self.pace = heartbeat.Pace()

    @property
    def ended(self) -> bool:
        return self.step >= self.config.train.steps or self.guard.stop is not None

    def advance(self, rank: int, world: int) -> None:
        """One optimizer step on this worker's share of the global batch."""
        settings = self.config.train
        prompts, seeds = draw(self.prompts, settings.seed, self.step, settings.batch)
        rows, padding = parallel.share(self.mode, rank, world, settings.batch)
        self.optimizer.zero_grad()
        self.sums = train_step(
            self.model, self.reward, ADAPTER, [prompts[row] for row in rows], [seeds[row] for row in rows], self.draft,
            seed=settings.seed, total=settings.batch, padding=padding,
        )  # fmt: skip
        self.sums = parallel.add_up(self.mode, self.parameters, self.sums)
        self.sums = over_kept(self.parameters, self.sums, settings.batch)
        self.skipped += self.sums["skipped"]
        norm = parallel.clip(self.parameters, settings.clip)
        self.update(float(norm))
        self.step += 1
        self.show_step(float(norm))

    def update(self, norm: float) -> None:
        """Step the optimizer on the whole batch's gradient; skip if no finite gradient remains, or it exploded.

        Raises FloatingPointError instead if train.on_nan = stop, and after `EMPTY_STEPS` skipped steps in a row.
        """
        settings = self.config.train
        whole = math.isfinite(norm) and self.sums["skipped"] < settings.batch
        wrong = self.guard.explosions.check(self.sums["loss"], norm) if whole else "no finite gradient"
        if wrong is None:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
            self.empty = 0
            return
        self.empty += 1
        if settings.on_nan == "stop" or self.empty >= EMPTY_STEPS:
            prompts, seeds = draw(self.prompts, settings.seed, self.step, settings.batch)
            before = f", and the {self.empty - 1} before it were no better" if self.empty > 1 else ""
            skip = ", or leave such steps out in another run with train.on_nan=skip" * (settings.on_nan == "stop")
            raise FloatingPointError(
                f"step {self.step} has {wrong}{before}; its first image: {prompts[0]!r} with noise seed {seeds[0]}, "
                f"its prompts: {_some(prompts)}. Lower train.lr or raise the KL weight{skip}"
            )
        # No image of the batch counts.
        self.skipped += settings.batch - self.sums["skipped"]

    def show_step(self, norm: float) -> None:
        """Write the last step to the status file and the trackers."""
        self.pace.stepped(self.step)
        if self.scores is None:
            return
        sums = {name: self.sums[name] for name in ("loss", "reward")}
        pace = {"rate": self.pace.rate, "batch": self.config.train.batch}
        place = {"step": self.step, "steps": self.config.train.steps}
        self.status.update({**place, **pace, **sums, "skipped": self.skipped})
        if self.tracker is not None:
            numbers = {"loss": self.sums["loss"], "reward": self.sums["reward"], "kl": self.sums["kl"]}
            self.tracker.step(self.step, {**numbers, "gradient": norm, "skipped": self.skipped})

    def begin(self) -> None:
        """Start the curve, with a point at step 0, or go on with it; every worker has to call it."""
        if self.scores is not None:
            self.tracker = Tracker(self.config, records.training_record(self.config, self.config.train, 0), self.step)
            if self.guard.stop is None and trainings.stopped(self.config) is not None:
                self.files.forget(self.files.adapters / self.key)  # what this training came to is found anew
            if self.step == 0:
                self.files.forget(self.files.validation / self.key)
            else:
                write_curve(self.files, self.key, self.curve)
        if self.step == 0:
            self.validate()
            self.guard.hold(0)
        self.pace.stepped(self.step)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the context the denoiser has the adapter to validate and save, whole in every worker: with train.ema
        the average. Every worker has to enter it."""
        averaged = nullcontext() if self.ema is None else self.ema.in_place()
        with averaged, sharding.whole(self.model.denoiser):
            yield

    def keep(self) -> None:
        """Save the adapter if this step is a snapshot or the last; after a guard's stop, the one that it held.

        Every worker has to call it.
        """
        if self.guard.stop is not None:
            self.settle(self.guard.stop)
            return
        names = [name for name, step in trainings.adapter_folders(self.config) if step == self.step]
        if not names:
            return
        with self.kept():
            for name in names:
                if self.scores is not None and not records.is_saved(self.config, self.files.adapters / name, self.step):
                    self.save(name, self.step, {})

    def save(self, name: str, step: int, more: dict[str, Any]) -> None:
        """Save the current adapter as that of a step; call it within `kept`."""
        record = records.training_record(self.config, self.config.train, step)
        made_with: dict[str, Any] = {
            "versions": {package: version(package) for package in ("torch", "diffusers", "peft")},
            "skipped": self.skipped,
            "reward_statistics": getattr(self.reward, "statistics", None),
        }
        saved = adapters.save(self.model.denoiser, ADAPTER, self.files.adapters / name, {**record, **made_with, **more})
        self.files.push_whole(saved)

    def settle(self, stop: Stop) -> None:
        """Save the adapter that the guard held as the last and remove later snapshots; every worker has to call it."""
        step = self.guard.put_back()
        with self.kept():
            if self.scores is None:
                return
            if not records.is_finished(self.config):
                self.save(self.key, step, {"stopped": asdict(stop)})
        for later in trainings.snapshot_steps(self.config):
            if later > step:
                self.files.forget(self.files.adapters / f"{self.key}@{later}")
        self.status.update({"stopped": limits.describe_stop({"step": step, "stopped": asdict(stop)})}, force=True)

    def finish(self) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def validate(self) -> None:
        """Add a point, from fixed prompts and noise, to the training's curve, with a picture; save the best adapter.

        Every worker has to call it; the first one does it.
        """
        with self.kept():
            if self.scores is None:
                return
            found = validation.validate(self.config, self.model, self.scores, self.draft.sampling, self.step)
            held_out = found.row["held_out"]
            if self.config.train.keep_best and self.is_best(held_out):
                self.save(trainings.best_folder(self.config.train), self.step, {"held_out": held_out})
        loss = self.sums.get("loss")
        row = found.row | {"step": self.step, "loss": loss if loss is not None and math.isfinite(loss) else None}
        row |= {"skipped": self.skipped, "seconds": round(self.elapsed(), 1)}
        self.curve = [*(r for r in self.curve if r["step"] != self.step), row]
        write_curve(self.files, self.key, self.curve)
        picture = self.files.validation / self.key / f"step-{self.step:06d}.png"
        found.write(self.files, picture)
        if self.tracker is not None:
            self.tracker.validation(self.step, validation.metrics(row), picture)
        shown = {name: row.get(name) for name in ("path", "kl_to_base", "diversity", "held_out")}
        place = {"step": self.step, "steps": self.config.train.steps}
        self.status.update({**place, **shown, "validated": self.step}, force=True)

    def is_best(self, held_out: float) -> bool:
        """Whether no earlier validation after step 0 has as high a held-out reward."""
        return self.step > 0 and all(held_out > row["held_out"] for row in self.curve if 0 < row["step"] < self.step)

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.begun

    def report(self, saving: bool) -> None:
        """Report metrics to Ray Train and, with `saving`, a checkpoint; every worker has to call it."""
        metrics = {
            **validation.metrics(self.standing()),
            "step": self.step,
            "loss": self.sums["loss"],
            "batch_reward": self.sums["reward"],
        }
        checkpoint = None
        state = self.state() if saving and (self.scores is not None or self.mode == parallel.FSDP) else None
        if state is not None and self.scores is not None:
            folder = checkpoints.scratch()
            torch.save(state, folder / checkpoints.STATE)
            checkpoints.seal(folder, self.step)
            checkpoint = Checkpoint.from_directory(folder)
        # In the background: reports wait for each other, so this one would wait for the previous upload.
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def standing(self) -> dict[str, Any]:
        """The adapter's last validation; after a guard's stop, that of the adapter that it held.

        Empty on all workers but the first.
        """
        held = self.guard.held if self.guard.stop is not None else None
        return trainings.validated(self.curve, self.step if held is None else held["step"])

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on, with any number of workers; with fsdp every worker has to call it."""
        record = records.training_record(self.config, self.config.train, self.step)
        return {
            "parameters": [sharding.full(parameter.detach()) for parameter in self.parameters],
            "optimizer": _map(self.optimizer.state_dict(), sharding.full),
            "ema": [] if self.ema is None else [sharding.full(mean) for mean in self.ema.means],
            "step": self.step,
            "seconds": self.elapsed(),
            "skipped": self.skipped,
            "empty": self.empty,
            "curve": json.dumps(self.curve),
            "record": json.dumps(record),
            "guard": self.guard.state(),
        }

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, unless an earlier snapshot is gone: then the training starts anew.

        ConfigError if another version, model or reward made the checkpoint: its work must not be overwritten.
        """
        state = torch.load(path, map_location="cpu", mmap=self.mode == parallel.FSDP, weights_only=True)
        expected = records.training_record(self.config, self.config.train, state["step"])
        earlier = [(n, s) for n, s in trainings.adapter_folders(self.config) if s < state["step"]]
        made = json.loads(state["record"])
        if not records.same_record(made, expected):
            raise ConfigError(
                f"the interrupted training {self.key} in {self.files.shown(self.files.checkpoints(self.key))} was made "
                f"{records.difference(made, expected)}: choose another run.name, or delete the folder to train anew"
            )
        if not all(records.is_saved(self.config, self.files.adapters / name, step) for name, step in earlier):
            return
        curve = json.loads(state["curve"])
        if self.config.train.keep_best and len(curve) > 1 and not records.has_best(self.config):
            return
        if not self.guard.restore(state["guard"], curve):
            return
        means = [] if self.ema is None else self.ema.means
        with torch.no_grad():
            for tensors, kept in ((self.parameters, state["parameters"]), (means, state["ema"])):
                for tensor, saved in zip(tensors, kept, strict=True):
                    tensor.copy_(sharding.like(saved, tensor))
        for index, moments in state["optimizer"]["state"].items():
            for name, saved in moments.items():
                whole = isinstance(saved, Tensor) and saved.shape == self.parameters[index].shape
                moments[name] = sharding.like(saved, self.parameters[index]) if whole else saved
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.empty, self.curve = state["empty"], curve


def fetch_inputs(files: RunDir, key: str) -> None:
    """For a run in a store: pull the training's own files and the shared ones that a worker reads."""
    files.pull(files.root, files.reward_statistics.name)
    files.pull(files.adapters, key, f"{key}@*")
    files.pull(files.tracking / f"{key}.json")


def write_curve(files: RunDir, key: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the curve's rows as JSON lines, whole or not at all."""
    with files.whole(files.curves / f"{key}.jsonl") as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _some(prompts: Sequence[str], shown: int = 4) -> str:
    """The first distinct prompts of a batch and the number of others."""
    distinct = list(dict.fromkeys(prompts))
    more = f" and {len(distinct) - shown} more" if len(distinct) > shown else ""
    return ", ".join(map(repr, distinct[:shown])) + more


def _map(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of nested dicts and lists."""
    if isinstance(tree, dict):
        return {key: _map(value, function) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map(value, function) for value in tree]
    return function(tree) if isinstance(tree, Tensor) else tree
