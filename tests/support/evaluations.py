"""An evaluation that needs no training, whole by plain calls of its actors' classes; and its actors' processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil
import pyarrow as pa
import torch
from pipeline_toys import overrides

from aig import adapters, models
from aig.models import TinyModel
from aig.world.tiny import build_pipeline
from pipelines.config import Config
from pipelines.evaluate import external, generate, scorers
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study.resolved import resolve_images


def save_lora(model: Path, path: Path) -> Path:
    """An untrained model's folder at `model`, and a LoRA for it that does something, as one file of nobody's run."""
    build_pipeline(0).save_pretrained(model)
    denoiser = models.load(str(model)).denoiser
    adapters.attach(denoiser, "x", 2, 2.0, "attention")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters(denoiser, "x"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = adapters.save(denoiser, "x", path.with_suffix(""), {})
    shutil.move(folder / adapters.WEIGHTS, path)
    shutil.rmtree(folder)
    return path


def arguments(model: Path, lora: Path, storage: Path, **more: object) -> list[str]:
    """Of `evaluate`: a reward refuses stars, each group is a task of its own, and every arm is of the LoRA."""
    rewards = "['pipeline_toys:bright', 'pipeline_toys:refusing']"
    settings = {
        "sweep__rewards": "[]", "evaluate__adapters": json.dumps([f"mine={lora}"]), "evaluate__rewards": rewards,
        "evaluate__prompts": 24, "evaluate__groups_at_once": 1, "model__steps": 6, "train__reward": "fragile",
    }  # fmt: skip
    return ["--preset", "smoke", *overrides(model, storage, **{**settings, **more})]


def by_hand(found: Config) -> dict[str, bytes]:
    """Every file of the images dataset that can be made, by name, drawn and scored in this process, without Ray."""
    identity.claim_directory(found)
    external.import_adapters(found)
    study = resolve_images(found, TinyModel.defaults)
    generator, scorer = generate.Generator(study), scorers.Scorer(generate.Evaluation(study))
    for unit in generate.units(study):
        scorer(generator(pa.Table.from_pylist([unit.row()])))
    return files(found)


def files(found: Config) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in RunDir.of(found).images.iterdir()}


def actors(kind: str) -> list[psutil.Process]:
    """The processes of a pool of ours, below this process; none yet where they are still being started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()).startswith(f"ray::MapWorker(MapBatches({kind}))"):
                found.append(process)
        except psutil.Error:
            continue
    return found
