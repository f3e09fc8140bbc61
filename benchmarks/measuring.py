"""`python -m pipelines measure` on a run of 10^6 images that were never drawn: its time, and what it holds in memory.

    python -m benchmarks.measuring                                        # 50 arms x 1,000 prompts x 20 seeds
    python -m benchmarks.measuring --arms 500 --prompts 100 measure.subsets=4

The run has made-up scores and features: all that drawing the images would have left but the images. The more an arm is
tuned, the more reward it has, and the less spread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from aig import adapters, models
from benchmarks.watching import watch
from pipelines import config as configuration
from pipelines.evaluate import generate
from pipelines.runs import identity as runs_identity
from pipelines.runs.directory import IMAGES_FORMAT, RunDir
from pipelines.study.resolved import resolve, resolve_images

REWARDS, GOLD = ("fragile", "robust"), "gold"


def settings(place: Path, arms: int, prompts: int, seeds: int, more: Sequence[str] = ()) -> configuration.Config:
    """A run of one adapter under a base, a tuned and a constant arm for each of the rest."""
    texts = place / "prompts.txt"
    texts.write_text("".join(f"prompt {i}\n" for i in range(prompts)))
    constants = [f"constant:{(i + 1) / (arms - 1):.4f}" for i in range(arms - 2)]
    return configuration.load("smoke", None, [
        f"run.storage={place}", "sweep.kl_weights=[0]", f"evaluate.prompts={texts}", f"evaluate.seeds={seeds}",
        f"evaluate.group={seeds}", f"evaluate.schedules={json.dumps(constants)}", "evaluate.lora_scales=[]",
        "evaluate.early_stops=[]", "evaluate.path_prompts=0", f"evaluate.rewards={json.dumps(REWARDS)}",
        "evaluate.gold=robust", *more,
    ])  # fmt: skip


def build(found: configuration.Config, dimension: int) -> int:
    """Write the run's directory; returns its number of images."""
    files, arms = RunDir.of(found), resolve(found).arms
    runs_identity.claim_directory(found)
    for name in {arm.arm.adapter for arm in arms if arm.arm.adapter}:
        (files.adapters / name).mkdir(parents=True)
        save_file({name: torch.zeros(1)}, files.adapters / name / adapters.WEIGHTS)
    tuned = np.linspace(0, 1, len(arms), dtype=np.float32)[:, None]  # (arms, 1)
    images = 0
    for unit in generate.units(resolve_images(found, models.load(found.model.name).defaults)):
        rng, seeds = np.random.default_rng(unit.prompt_id), len(unit.seeds)
        centre, noise = rng.normal(size=dimension), rng.normal(size=(seeds, dimension))
        features = centre + (1 - 0.5 * tuned[..., None]) * noise + 0.1 * rng.normal(size=(len(arms), seeds, dimension))
        reward = centre[0] + noise[:, 0] + 2 * tuned  # (arms, seeds)
        columns = dict.fromkeys(REWARDS, reward) | {GOLD: -reward, "pixel_std": np.full_like(reward, 0.2)}
        listed = ([each for each in by_arm for _ in unit.seeds] for by_arm in (arms, unit.origins))
        identity = generate.identity_columns(*listed, unit.prompt_id, unit.prompt, [*unit.seeds] * len(arms))
        table = pa.table({
            **identity,
            **{name: pa.array(values.ravel(), pa.float32()) for name, values in columns.items()},
            "features": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel(), pa.float32()), dimension),
        })  # fmt: skip
        about = {"cost": json.dumps({"predictions": 1, "separate": 2, "published": 2}), "format": str(IMAGES_FORMAT)}
        files.write_parquet(files.images / generate.PART.format(unit=unit.name), table.replace_schema_metadata(about))
        images += len(table)
    return images


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measuring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"arms": 50, "prompts": 1000, "seeds": 20, "dimension": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the run")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        found = settings(Path(place), given.arms, given.prompts, given.seeds, given.overrides)
        images = build(found, given.dimension)
        disk = sum(path.stat().st_size for path in RunDir.of(found).images.iterdir()) / 1e6
        command = [sys.executable, "-m", "pipelines", "measure", str(found.directory)]
        used = watch(command, found.directory, RunDir.of(found).metrics.name, 1)
    print(
        f"measured {images:,} images of {given.arms} arms, {given.dimension} features each ({disk:,.0f} MB of "
        f"parquet): {used.wall:.0f} s, {used.whole:.0f} s of CPU time; at most {used.own:,.0f} MB of memory, "
        f"{used.resident:,.0f} MB with the mapped file"
    )


if __name__ == "__main__":
    main()
