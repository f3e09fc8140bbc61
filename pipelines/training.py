"""What a training worker does: ordinary torch code that calls `aig.draft`, reports to Ray Train and writes files."""

from __future__ import annotations

import json
import math
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from torch import Tensor, nn

from aig import adapters, memory
from aig.draft import DraftConfig, draw, over_kept, train_step
from aig.metrics import per_prompt, vendi_score
from aig.models import Model, Sampling
from aig.sampler import Arm, Grid, sample_arms, to_uint8
from pipelines import layout, normalization, progress, rewarding, study
from pipelines.config import Config, Train
from pipelines.layout import RunFiles
from pipelines.rewarding import Statistics
from pipelines.scoring import ACCURACIES, GOLD, Scores

BETAS = (0.9, 0.999)  # Adam's, as published
EMPTY_STEPS = 10  # so many steps in a row without a gradient, and a training is stopped whatever train.on_nan says
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
        statistics = normalization.of_sums(config)
        self.reward = rewarding.load_trained(config, self.model.device, statistics or {})
        denoiser = self.model.denoiser
        attach(settings, denoiser)
        self.parameters = adapters.parameters(denoiser, ADAPTER)
        self.optimizer = memory.make_optimizer(
            settings.optimizer, self.parameters, settings.lr, BETAS, settings.weight_decay
        )
        self.scores = scores_of(config, self.model.device, statistics) if watched else None
        self.step, self.seconds, self.skipped = 0, 0.0, 0.0
        self.sums: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        place = {"pid": os.getpid(), "host": socket.gethostname()}
        self.status = progress.StatusFile(self.files.progress / f"{self.key}.json", **place)
        self.begun = time.monotonic()
        self.rate = 0.0
        self.empty = 0

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
        self.sums = over_kept(self.parameters, self.sums, settings.batch)
        self.skipped += self.sums["skipped"]
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        self.update(bool(norm.isfinite()))
        self.step += 1
        elapsed = time.monotonic() - begun
        self.rate = elapsed if not self.rate else 0.9 * self.rate + 0.1 * elapsed
        if self.scores is not None:
            place = {"step": self.step, "steps": settings.steps, "rate": self.rate}
            sums = {name: self.sums[name] for name in ("loss", "reward")}
            self.status.update({**place, **sums, "skipped": self.skipped})

    def update(self, finite: bool) -> None:
        """The optimizer's step, on the whole batch's gradient; none where nothing is left of it.

        Raises FloatingPointError where that is so and train.on_nan = stop, or has been for `EMPTY_STEPS` in a row.
        """
        settings = self.config.train
        if finite and self.sums["skipped"] < settings.batch:
            self.optimizer.step()
            self.empty = 0
            return
        self.empty += 1
        if settings.on_nan == "stop" or self.empty >= EMPTY_STEPS:
            prompts, seeds = draw(self.prompts, settings.seed, self.step, settings.batch)
            before = f", nor had the {self.empty - 1} before it" if self.empty > 1 else ""
            raise FloatingPointError(
                f"step {self.step} has no finite gradient{before} (its first image: {prompts[0]!r} with noise seed "
                f"{seeds[0]}): lower train.lr or raise the KL weight"
            )
        if not finite:  # scores were finite, and their gradient was not: none of the batch counts
            self.skipped += settings.batch - self.sums["skipped"]

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
                made_with: dict[str, Any] = {
                    "versions": {package: version(package) for package in ("torch", "diffusers", "peft")},
                    "skipped": self.skipped,
                    "reward_statistics": getattr(self.reward, "statistics", None),
                }
                folder = self.files.adapters / name
                adapters.save(self.model.denoiser, ADAPTER, folder, {**record, **made_with})

    def validate(self) -> None:
        """One more point of the training curves, from fixed prompts and noise."""
        if self.scores is None:
            return
        row = validate(self.config, self.model, self.scores, self.sampling, self.step)
        loss = self.sums.get("loss")
        row |= {"step": self.step, "loss": loss if loss is not None and math.isfinite(loss) else None}
        row |= {"skipped": self.skipped, "seconds": round(self.elapsed(), 1)}
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
            "skipped": self.skipped,
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
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state.get("skipped", 0.0)


def attach(settings: Train, denoiser: nn.Module) -> None:
    """Put what `config.train` tunes into the denoiser: a LoRA, or a whole second set of its weights."""
    if settings.method == "full":
        adapters.full(denoiser, ADAPTER, settings.offload)
    else:
        adapters.attach(denoiser, ADAPTER, settings.rank, settings.alpha, settings.targets, settings.seed)


def draft_config(config: Config, model: Model) -> DraftConfig:
    """The objective of `config.train` on this model; ValueError where the two do not go together."""
    settings = config.train
    sampling = study.resolve_sampling(config, model.defaults)
    sampling = replace(sampling, max_rows=settings.rollout_batch or sampling.max_rows)
    micro_batch = min(settings.micro_batch, settings.batch)
    return DraftConfig(
        sampling, settings.k, settings.lv, settings.kl_weight, settings.kl, micro_batch, settings.autocast,
        settings.on_nan,
    )  # fmt: skip


def scores_of(config: Config, device: torch.device, statistics: Statistics | None) -> Scores:
    """The scores of a validation: those of the evaluation, and the trained reward."""
    columns, gold = normalization.wanted(config), rewarding.gold(config)
    return Scores(columns, statistics, gold, config.evaluate.features, device)


@torch.no_grad()
def validate(config: Config, model: Model, scores: Scores, sampling: Sampling, step: int) -> dict[str, Any]:
    """Mean scores, within-prompt diversity and distances to the base of the adapter as it is.

    An image without a finite score raises FloatingPointError with its prompt and seed; with train.on_nan = skip it is
    left out of every mean, and counted.
    """
    settings = config.train
    chosen = study.resolve_prompts(settings.prompts, "train.prompts")[: settings.validate_prompts]
    prompts = [prompt for prompt in chosen for _ in range(settings.validate_seeds)]
    seeds = list(range(settings.validate_seeds)) * len(chosen)
    # At step 0 the adapter is still the base: its distance is 0 without being measured.
    samples = sample_arms(
        model, prompts, seeds, [Arm(ADAPTER, ADAPTER)], config.run.seed, sampling, measure_path=step > 0
    )
    distances = {"path": samples.path} | ({"kl_to_base": samples.kl} if Grid(model, sampling).has_path_kl else {})
    images = model.decode(samples.latents[ADAPTER])
    found = scores(to_uint8(images).permute(0, 3, 1, 2), prompts)
    vectors = found.pop("features")
    sound = images.isfinite().flatten(1).all(dim=1).cpu()  # (B,); as 8 bits they would all have a score
    for column in found.values():
        sound &= column.isfinite()
    kept = sound.nonzero().flatten().tolist()
    if len(kept) < len(prompts) and settings.on_nan == "stop":
        lost = int((~sound).nonzero()[0])
        raise FloatingPointError(
            f"the validation of step {step} has {len(prompts) - len(kept)} images without a finite score, first that "
            f"of {prompts[lost]!r} with seed {seeds[lost]}: lower train.lr, or leave such images out with "
            "train.on_nan=skip"
        )
    if not kept:
        raise FloatingPointError(f"the validation of step {step} has no image with a finite score: lower train.lr")
    means = {name: float(column[kept].mean()) for name, column in found.items()}
    other = rewarding.held_out(config, settings.reward)
    judged = [means[name] for name in ACCURACIES[:2] if name in means]
    return {
        "reward": means[layout.slug(settings.reward)],
        "held_out": means[layout.slug(other)] if other else None,
        "gold": means.get(GOLD),
        "accuracy": sum(judged) / len(judged) if judged else None,
        "diversity": _diversity(vectors[kept], [prompts[row] for row in kept]),
        **{name: float(column[ADAPTER][kept].mean()) if step > 0 else 0.0 for name, column in distances.items()},
        "scores": {name: mean for name, mean in means.items() if name not in ACCURACIES},
        "left_out": len(prompts) - len(kept),
    }


def _diversity(vectors: Tensor, prompts: list[str]) -> float | None:
    """Mean within-prompt Vendi score, over the prompts of which two images are left."""
    counts = Counter(prompts)
    rows = [row for row, prompt in enumerate(prompts) if counts[prompt] > 1]
    if not rows:
        return None
    return float(per_prompt(vendi_score, vectors[rows], [prompts[row] for row in rows]).mean())


def add_up(parameters: Sequence[nn.Parameter], sums: dict[str, float]) -> dict[str, float]:
    """The gradients and sums of all workers, added up in one message."""
    for parameter in parameters:
        if parameter.grad is None:  # this worker skipped all of its images
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    packed = torch.cat([gradient.flatten() for gradient in gradients] + [torch.tensor(list(sums.values()))])
    dist.all_reduce(packed)
    parts = packed.split([gradient.numel() for gradient in gradients] + [len(sums)])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view_as(gradient))
    return dict(zip(sums, parts[-1].tolist(), strict=True))
