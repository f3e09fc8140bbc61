"""What a training worker does: ordinary torch code that calls `aig.draft`, reports to Ray Train and writes files."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from torch import nn

from aig import adapters, memory, rewards
from aig.draft import DraftConfig, draw, train_step
from aig.metrics import per_prompt, vendi_score
from aig.models import Model, Sampling
from aig.sampler import Arm, Grid, sample_arms
from pipelines import layout, progress, study
from pipelines.config import Config
from pipelines.layout import RunFiles
from pipelines.scoring import ACCURACIES, GOLD, Scores, rounded

BETAS = (0.9, 0.999)  # Adam's, as published
STATE = "state.pt"
ADAPTER = "tuned"


def run(config: Config) -> None:
    """Train the adapter of `config.train` as one worker of a Ray Train run, from its last checkpoint if it has one."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings = config.train
    torch.set_num_threads(settings.threads)
    training = Training(config, watched=rank == 0)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            training.restore(Path(folder) / STATE)
    training.begin()
    while training.step < settings.steps:
        training.advance(rank, world)
        ends = training.step == settings.steps
        training.keep()
        validates = ends or training.step % settings.validate_every == 0
        if validates:
            training.validate()
        if ends or training.step % settings.checkpoint_every == 0:
            training.report(saving=True)
        elif validates:
            training.report(saving=False)
    training.keep()


class Training:
    """The state of one training: model, adapter, optimizer, step; the first worker also measures and writes files."""

    def __init__(self, config: Config, watched: bool) -> None:
        settings = config.train
        self.config, self.files, self.key = config, RunFiles(config.directory), layout.adapter_key(settings)
        self.model = study.load_model(config)
        sampling = study.resolve_sampling(config, self.model.defaults)
        self.sampling = replace(sampling, max_rows=settings.rollout_batch or sampling.max_rows)
        self.draft = draft_config(config, self.model)
        self.prompts = study.resolve_prompts(settings.prompts, "train.prompts")
        memory.prepare(self.model, settings.checkpointing, settings.vae_tiling, settings.compile)
        reward = rewards.load(settings.reward, self.model.device)
        self.reward = memory.checkpointed(reward) if "reward" in settings.checkpointing else reward
        denoiser = self.model.denoiser
        adapters.attach(denoiser, ADAPTER, settings.rank, settings.alpha, settings.targets, settings.seed)
        self.parameters = adapters.parameters(denoiser, ADAPTER)
        self.optimizer = memory.make_optimizer(
            settings.optimizer, self.parameters, settings.lr, BETAS, settings.weight_decay
        )
        self.scores = scores_of(config, self.model.device) if watched else None
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.status = progress.StatusFile(self.files.progress / f"{self.key}.json", pid=os.getpid())
        self.begun = time.monotonic()
        self.rate = 0.0

    def advance(self, rank: int, world: int) -> None:
        """One optimizer step on this worker's share of the global batch."""
        settings, begun = self.config.train, time.monotonic()
        prompts, seeds = draw(self.prompts, settings.seed, self.step, settings.batch)
        self.optimizer.zero_grad()
        self.sums = train_step(
            self.model, self.reward, ADAPTER, prompts[rank::world], seeds[rank::world], self.draft,
            seed=settings.seed, total=settings.batch,
        )  # fmt: skip
        if world > 1:
            self.sums = add_up(self.parameters, self.sums)
        nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        self.optimizer.step()
        self.step += 1
        elapsed = time.monotonic() - begun
        self.rate = elapsed if not self.rate else 0.9 * self.rate + 0.1 * elapsed
        if self.scores is not None:
            place = {"step": self.step, "steps": settings.steps, "rate": self.rate}
            self.status.update({**place, "loss": self.sums["loss"], "reward": self.sums["reward"]})

    def begin(self) -> None:
        """Pick up the curve where the training starts, with a point at step 0."""
        if self.scores is None:
            return
        path = self.files.curves / f"{self.key}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.curve = [row for row in rows if row["step"] <= self.step]
        if self.step == 0 and not self.curve:
            self.validate()

    def keep(self) -> None:
        """Save the adapter where this step is a snapshot or the last."""
        if self.scores is None:
            return
        for name, step in layout.adapter_folders(self.config):
            if step == self.step and not study.is_saved(self.config, self.files.adapters / name, step):
                record = study.training_record(self.config, self.config.train, step)
                made_with = {"versions": {package: version(package) for package in ("torch", "diffusers", "peft")}}
                folder = self.files.adapters / name
                adapters.save(self.model.denoiser, ADAPTER, folder, {**record, **made_with})

    def validate(self) -> None:
        """One more point of the training curves, from fixed prompts and noise."""
        if self.scores is None:
            return
        row = validate(self.config, self.model, self.scores, self.sampling, self.step)
        row |= {"step": self.step, "loss": self.sums.get("loss"), "seconds": round(self.elapsed(), 1)}
        self.curve = [*(r for r in self.curve if r["step"] != self.step), row]
        path = self.files.curves / f"{self.key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(json.dumps(r) + "\n" for r in self.curve))
        part.replace(path)
        place = {"step": self.step, "steps": self.config.train.steps}
        self.status.update({**place, "path": row["path"], "diversity": row["diversity"]}, force=True)

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.begun

    def report(self, saving: bool) -> None:
        """Metrics to Ray Train and, with `saving`, a checkpoint; every worker has to call it."""
        latest = self.curve[-1] if self.curve else {}
        metrics = {**latest, "step": self.step, "loss": self.sums["loss"], "batch_reward": self.sums["reward"]}
        if not saving or self.scores is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(self.state(), Path(folder) / STATE)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    def state(self) -> dict[str, Any]:
        record = study.training_record(self.config, self.config.train, self.step)
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.elapsed(),
            "record": json.dumps(record),
        }

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, unless another configuration made it or a snapshot from before it is gone."""
        state = torch.load(path, weights_only=True)
        wanted = study.training_record(self.config, self.config.train, state["step"])
        earlier = [(n, s) for n, s in layout.adapter_folders(self.config) if s < state["step"]]
        if json.loads(state["record"]) != wanted or not all(
            study.is_saved(self.config, self.files.adapters / name, step) for name, step in earlier
        ):
            return
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def draft_config(config: Config, model: Model) -> DraftConfig:
    """The objective of `config.train` on this model; ValueError where the two do not go together."""
    settings = config.train
    sampling = study.resolve_sampling(config, model.defaults)
    sampling = replace(sampling, max_rows=settings.rollout_batch or sampling.max_rows)
    micro_batch = min(settings.micro_batch, settings.batch)
    return DraftConfig(
        sampling, settings.k, settings.lv, settings.kl_weight, settings.kl, micro_batch, settings.autocast
    )


def scores_of(config: Config, device: torch.device) -> Scores:
    """The scores of a validation: those of the evaluation, and the trained reward."""
    names = dict.fromkeys([*study.scored_rewards(config), config.train.reward])
    return Scores(list(names), config.evaluate.gold, config.evaluate.features, device)


@torch.no_grad()
def validate(config: Config, model: Model, scores: Scores, sampling: Sampling, step: int) -> dict[str, float | None]:
    """Mean scores, within-prompt diversity and distances to the base of the adapter as it is."""
    settings = config.train
    chosen = study.resolve_prompts(settings.prompts, "train.prompts")[: settings.validate_prompts]
    prompts = [prompt for prompt in chosen for _ in range(settings.validate_seeds)]
    seeds = list(range(settings.validate_seeds)) * len(chosen)
    # At step 0 the adapter is still the base: its distance is 0 without being measured.
    samples = sample_arms(
        model, prompts, seeds, [Arm(ADAPTER, ADAPTER)], config.run.seed, sampling, measure_path=step > 0
    )
    distances = {"path": samples.path} | ({"kl_to_base": samples.kl} if Grid(model, sampling).has_path_kl else {})
    found = scores(rounded(model.decode(samples.latents[ADAPTER])), prompts)
    means = {name: float(column.mean()) for name, column in found.items() if name != "features"}
    other = study.held_out(config, settings.reward)
    judged = [means[name] for name in ACCURACIES[:2] if name in means]
    return {
        "reward": means[layout.slug(settings.reward)],
        "held_out": means[layout.slug(other)] if other else None,
        "gold": means.get(GOLD),
        "accuracy": sum(judged) / len(judged) if judged else None,
        "diversity": float(per_prompt(vendi_score, found["features"], prompts).mean()),
        **{name: float(column[ADAPTER].mean()) if step > 0 else 0.0 for name, column in distances.items()},
    }


def add_up(parameters: Sequence[nn.Parameter], sums: dict[str, float]) -> dict[str, float]:
    """The gradients and sums of all workers, added up in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    packed = torch.cat([gradient.flatten() for gradient in gradients] + [torch.tensor(list(sums.values()))])
    dist.all_reduce(packed)
    parts = packed.split([gradient.numel() for gradient in gradients] + [len(sums)])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view_as(gradient))
    return dict(zip(sums, parts[-1].tolist(), strict=True))
