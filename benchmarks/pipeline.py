"""The evaluation through Ray Data against plain loops, in CPU time of all their processes, one thread each.

The published arm set (base, tuned, linear, power:2, power:4, step:0.6) at T = 25 on the embedded world, four ways:

    bare loop        one process that draws, scores and writes the same groups of images with the same sampler
    Ray Data         `python -m pipelines evaluate` with one generator and one scorer
    separate loops   each arm alone, with one prediction where the weight is 0 or 1
    published loops  each arm alone, both models evaluated at every step, as the published script does

Each is run on few groups and on many, up to its last file: the difference is what a group costs, the rest what starting
costs. Measures and fronts, which are the same for all, come after and do not count.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from aig import adapters, models
from aig.sampler import Arm
from benchmarks.watching import Usage, watch
from pipelines import config as configuration
from pipelines.evaluate import generate, scorers
from pipelines.evaluate.pixels import PIXEL_STD
from pipelines.runs import identity
from pipelines.runs.directory import RunDir
from pipelines.study import trainings
from pipelines.study.arms import StudyArm
from pipelines.study.resolved import resolve_images
from pipelines.train import records

OVERRIDES = [
    "run.name=bench", "sweep.kl_weights=[0]", "train.steps=20", "evaluate.prompts=12", "evaluate.seeds=8",
    "evaluate.path_prompts=0", "evaluate.spaces=[prediction]", "ray.address=local",
]  # fmt: skip
PUBLISHED = [
    "model.steps=25", "evaluate.schedules=[linear, 'power:2', 'power:4', 'step:0.6']", "evaluate.lora_scales=[]",
    "evaluate.early_stops=[]", "evaluate.groups_at_once=1",
]  # fmt: skip
FEW, MANY = 4, 16
OF_IMAGES = ("image", PIXEL_STD, "path", "kl_to_base")  # lists of a unit with an entry an image


def run_configuration(storage: Path, generators: int, overrides: Sequence[str] = ()) -> configuration.Config:
    """An evaluation of 12 units of 8 seeds, ten arms, in a run directory of its own, whose adapters are random."""
    given = [*OVERRIDES, f"run.storage={storage}", f"evaluate.generators={generators}", *overrides]
    found = configuration.load("demo", None, given)
    identity.claim_directory(found)
    files, model = RunDir.of(found), models.load(found.model.name)
    torch.manual_seed(0)
    for train in trainings.trainings(found):
        single = replace(found, train=train)
        adapters.attach(model.denoiser, "a", train.rank, train.alpha, train.targets)
        with torch.no_grad():
            for parameter in adapters.parameters(model.denoiser, "a"):
                parameter.add_(torch.randn_like(parameter) * 0.02)
        for name, step in trainings.adapter_folders(single):
            adapters.save(model.denoiser, "a", files.adapters / name, records.training_record(single, train, step))
    return found


class Separate(generate.Generator):
    """Draws each arm alone, with one prediction where its weight is 0 or 1."""

    @torch.no_grad()
    def draw(self, rows: list[dict[str, Any]], measured: bool) -> list[dict[str, Any]]:
        whole, arms = [dict(row) for row in rows], self.arms
        for arm in self.drawn():
            self.arms = (arm,)
            for row, part in zip(whole, super().draw(rows, measured), strict=True):
                for name, value in part.items():
                    row[name] = row.get(name, []) + value if name in OF_IMAGES else value
        self.arms = arms
        return whole

    def drawn(self) -> Sequence[StudyArm]:
        return self.arms


class Published(Separate):
    """Draws each arm alone, with both predictions at every step."""

    def draw(self, rows: list[dict[str, Any]], measured: bool) -> list[dict[str, Any]]:
        return super().draw(rows, True)  # a measured path takes both predictions

    def drawn(self) -> Sequence[StudyArm]:
        adapter = next(arm.arm.adapter for arm in self.arms if arm.arm.adapter)
        return [replace(arm, arm=mixed(arm.arm, adapter)) for arm in self.arms]


def mixed(arm: Arm, adapter: str) -> Arm:
    """The arm with its weights nudged off 0 and 1, where one prediction would do."""
    nudged = {"base": "constant:1e-9", "tuned": "constant:0.999999999"}.get(arm.schedule, arm.schedule)
    return replace(arm, adapter=adapter, schedule=nudged)


def loop(path: Path, kind: type[generate.Generator]) -> None:
    """Draw, score and write every unit of a configuration, one after another."""
    found = configuration.load(file=path)
    torch.set_num_threads(1)
    study = resolve_images(found, models.load(found.model.name).defaults)
    generator, scorer = kind(study), scorers.Scorer(generate.Evaluation(study))
    for unit in generate.units(study):
        scorer(generator(pa.Table.from_pylist([unit.row()])))


def used(way: str, groups: int, overrides: Sequence[str] = ()) -> Usage:
    """What one of the four ways takes for so many groups."""
    with tempfile.TemporaryDirectory() as place:
        found = run_configuration(Path(place), 1, [*PUBLISHED, *overrides, f"evaluate.prompts={groups}"])
        path = Path(place) / "evaluation.yaml"
        path.write_text(configuration.to_yaml(found))
        if way == "Ray Data":
            command = ["-m", "pipelines", "evaluate", "--config", str(path)]
        else:
            command = ["-m", "benchmarks.pipeline", way, str(path)]
        return watch([sys.executable, *command], RunDir.of(found).images, "part-*.parquet", groups)


def pipeline(device: str, few: int = FEW, many: int = MANY, overrides: Sequence[str] = ()) -> dict[str, float]:
    """CPU seconds of a group of images by way."""
    if device != "cpu":
        print("\nthe pipeline against plain loops: on the CPU only")
        return {}
    print(f"\nevaluation, the published arms at T = 25, groups of 8 seeds, {many} against {few} groups, CPU seconds")
    print(f"  {'':<34}{'wall':>9}{'whole':>9}{'a group':>10}{'ratio':>8}{'beside':>9}")
    found: dict[str, float] = {}
    usages: dict[str, Usage] = {}
    for way in ("bare loop", "Ray Data", "separate loops", "published loops"):
        less, more = (used(way, groups, overrides) for groups in (few, many))
        found[way] = (more.finished - less.finished) / (many - few)
        beside, ratio = more.finished - many * found[way], found[way] / found["bare loop"]
        print(f"  {way:<34}{more.wall:>8.1f}s{more.finished:>8.1f}s{found[way]:>9.3f}s{ratio:>8.3f}{beside:>8.1f}s")
        usages[way] = more
    for way in ("separate loops", "published loops"):
        print(f"  Ray Data over the {way}: {found['Ray Data'] / found[way]:.3f}")
    print(f"  Ray Data, a group by process: {usages['Ray Data'].costliest(8)}")
    return found


if __name__ == "__main__":
    kinds = {"bare loop": generate.Generator, "separate loops": Separate, "published loops": Published}
    loop(Path(sys.argv[2]), kinds[sys.argv[1]])
