"""The evaluation through Ray Data against a bare loop over the same actors' calls, one thread each.

Both draw, score and write the same units. The bare loop has no other process to start; what Ray takes to start is shown
apart from the steady rate, which counts from the first unit's file to the last one's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import torch

from aig import adapters, models
from pipelines import cluster, config, generate, layout, scoring, study
from pipelines.layout import RunFiles

OVERRIDES = [
    "run.name=bench", "sweep.kl_weights=[0]", "train.steps=20", "evaluate.prompts=12", "evaluate.seeds=8",
    "evaluate.path_prompts=0", "ray.address=local",
]  # fmt: skip


def run_configuration(storage: Path, generators: int, overrides: Sequence[str] = ()) -> config.Config:
    """An evaluation of 12 units of 8 seeds, ten arms, in a run directory of its own, whose adapters are random."""
    given = [*OVERRIDES, f"run.storage={storage}", f"evaluate.generators={generators}", *overrides]
    found = config.load("demo", None, given)
    config.claim_directory(found)
    files, model = RunFiles(found.directory), models.load(found.model.name)
    torch.manual_seed(0)
    for train in layout.trainings(found):
        single = replace(found, train=train)
        adapters.attach(model.denoiser, "a", train.rank, train.alpha, train.targets)
        with torch.no_grad():
            for parameter in adapters.parameters(model.denoiser, "a"):
                parameter.add_(torch.randn_like(parameter) * 0.02)
        for name, step in layout.adapter_folders(single):
            adapters.save(model.denoiser, "a", files.adapters / name, study.training_record(single, train, step))
    return found


def bare_loop(found: config.Config) -> list[float]:
    """Times at which each unit's file was written."""
    defaults = models.load(found.model.name).defaults
    content = config.to_dict(found)
    generator, scorer = generate.Generator(content), scoring.Scorer(generate.Evaluation(content))
    times = []
    for unit in generate.units(found, defaults):
        row = {key: value for key, value in asdict(unit).items() if key != "name"}
        scorer(generator(pa.Table.from_pylist([{"unit": unit.name, **row}])))
        times.append(time.time())
    return times


def through_ray(found: config.Config) -> list[float]:
    """Times at which each unit's file was written."""
    defaults = models.load(found.model.name).defaults
    with cluster.connected(found.ray) as connection:
        generate.generate(found, lambda: connection, defaults)
    return sorted(path.stat().st_mtime for path in RunFiles(found.directory).images.glob("*.parquet"))


def pipeline(device: str) -> None:
    """Units a second of the bare loop, and through Ray Data with one generator and with two."""
    if device != "cpu":
        print("\nthe pipeline against the bare loop: on the CPU only")
        return
    runs = {"bare loop": (bare_loop, 1), "Ray Data, 1 generator": (through_ray, 1), "Ray Data, 2": (through_ray, 2)}
    print("\nevaluation, 12 units of 8 seeds and 10 arms, wall time, 1 thread an actor")
    print(f"  {'':<34}{'to the first':>14}{'in all':>9}{'units/s':>10}{'rate ratio':>12}")
    first_rate = None
    for name, (run, generators) in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            found = run_configuration(Path(folder), generators)
            begun = time.time()
            times = run(found)
            ended = time.time()
        rate = (len(times) - 1) / (times[-1] - times[0])
        first_rate = first_rate or rate
        print(f"  {name:<34}{times[0] - begun:>13.1f}s{ended - begun:>8.1f}s{rate:>10.3f}{rate / first_rate:>12.3f}")
