"""Ray Train against the bare loop of `aig.draft`, and two workers against one, on the embedded world.

Both trainings make the same steps and save the same snapshots; the loop is what one would write without Ray. They are
commands of their own, watched from outside in the same way, in turns; ratios are medians over the turns. What is
counted lies between the first snapshot and the last: steps, saved adapters, reports and checkpoints. The last step is
one more, for with it comes a validation, which the loop has not. Figures:

    worker   CPU seconds of the process that trains, a step: with what reports, checkpoints and Ray's threads cost in
             that process. The bar, at most 1.15 of the bare loop's, is on this.
    all      the same of all processes: with Ray's daemons, which cost so much a second, not a step.
    whole    CPU seconds of all processes from start to exit: with imports and loading, which the loop has too, the
             validations at both ends, which it has not, and what Ray takes to start and stop.

The workers' rate is in images a second of wall time, one thread a worker, with the published batch of 64 in
micro-batches that do not depend on the number of workers; the bar is 1.6 times one worker's rate for two. It needs two
free cores. Two bare loops with half of the batch each, which share nothing, show what two cores give that share caches
and memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from aig import adapters, draft, models, rewards
from benchmarks.watching import SAMPLE_SECONDS, Usage, watch
from pipelines import config as configuration
from pipelines.study import models as study_models
from pipelines.study import trainings
from pipelines.study.prompts import resolve_prompts

STEPS, EVERY, TURNS = 30, 5, 3  # steps that are counted, and those between two snapshots
BATCH, MICRO_BATCH = 64, 16  # of what is shared; the batch is that of arXiv 2409.06493 for SD 1.4
SHARED_STEPS, SHARED_EVERY = 12, 4
UNWATCHED = 5.0  # seconds between samples where only the files' times count, and both cores are taken
SNAPSHOTS = f"adapters/[!.]*@*/{adapters.RECORD}"
OVERRIDES = (
    "train.validate_every=100000", "train.validate_prompts=1", "train.validate_seeds=2", "sweep.kl_weights=[0]",
)  # fmt: skip


def arguments(storage: Path, steps: int, every: int, workers: int = 1) -> list[str]:
    """A training with so many steps between its first and last snapshot, one thread a worker, and a checkpoint every
    ten steps."""
    return [
        f"run.storage={storage}", f"train.steps={every + steps + 1}", f"train.snapshot_every={every}",
        "train.checkpoint_every=10", f"train.num_workers={workers}", "train.threads=1", "ray.address=local", *OVERRIDES,
    ]  # fmt: skip


def bare_loop(found: configuration.Config) -> None:
    """What one would write without us."""
    train = found.train
    torch.set_num_threads(train.threads)
    model = models.load(found.model.name)
    reward = rewards.load(train.reward)
    settings = draft.DraftConfig(
        study_models.resolve_sampling(found, model.defaults), train.k, train.lv, train.kl_weight, train.kl,
        min(train.micro_batch, train.batch),
    )  # fmt: skip
    prompts = resolve_prompts(found, "train.prompts")
    adapters.attach(model.denoiser, "tuned", train.rank, train.alpha, train.targets, train.seed)
    parameters = adapters.parameters(model.denoiser, "tuned")
    optimizer = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
    for step in range(train.steps):
        optimizer.zero_grad()
        draft.train_step(model, reward, "tuned", *draft.draw(prompts, train.seed, step, train.batch), settings)
        torch.nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
        if step + 1 in trainings.snapshot_steps(found):
            adapters.save(model.denoiser, "tuned", found.directory / "adapters" / f"loop@{step + 1}", {})


def images_a_second(found: configuration.Config) -> float:
    """By the times at which the first and the last snapshot were saved."""
    times = sorted(path.stat().st_mtime for path in found.directory.glob(SNAPSHOTS))
    return (len(times) - 1) * found.train.snapshot_every * found.train.batch / (times[-1] - times[0])


def once(
    workers: int, steps: int, every: int, more: Sequence[str] = (), pause: float = SAMPLE_SECONDS
) -> tuple[Usage, float]:
    """What a training takes, with Ray Train or (0 workers) the bare loop, and its images a second."""
    with tempfile.TemporaryDirectory() as place:
        given = [*arguments(Path(place), steps, every, max(1, workers)), *more]
        program = ["pipelines", "train", "--preset", "demo"] if workers else ["benchmarks.training"]
        found, command = configuration.load("demo", None, given), [sys.executable, "-m", *program, *given]
        usage = watch(command, found.directory, SNAPSHOTS, every + steps, every, pause)
        return usage, images_a_second(found)


def overhead(turns: int = TURNS, steps: int = STEPS, every: int = EVERY) -> None:
    """Prints what a step costs in the bare loop and with Ray Train, and the ratios' medians over the turns."""
    print(f"\ntraining, {steps} steps of the embedded world, one worker with one thread: CPU seconds")
    print(
        f"  {'':<16}{'bare/step':>12}{'worker/step':>13}{'ratio':>8}{'all/step':>11}{'ratio':>8}{'whole':>9}{'bare':>9}"
    )
    ratios: list[tuple[float, float]] = []
    for turn in range(turns):
        bare, ours = once(0, steps, every)[0], once(1, steps, every)[0]
        worker = ours.by_kind["RayTrainWorker"]
        ratios.append((worker / bare.steady, ours.steady / bare.steady))
        print(
            f"  turn {turn + 1:<11}{bare.steady:>12.3f}{worker:>13.3f}{ratios[-1][0]:>8.3f}{ours.steady:>11.3f}"
            f"{ratios[-1][1]:>8.3f}{ours.whole:>9.1f}{bare.whole:>9.1f}"
        )
    of_worker, of_all = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"  {'median':<16}{of_worker:>33.3f}{of_all:>19.3f}")
    print(f"  the last turn by process: {ours.costliest(5)}")


def side_by_side(steps: int, every: int) -> float:
    """Images a second of two bare loops at once, each with half of the batch: what the two cores give."""
    half = [f"train.batch={BATCH // 2}", f"train.micro_batch={MICRO_BATCH}"]
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda _: once(0, steps, every, half, UNWATCHED)[1], range(2)))


def scaling(turns: int = TURNS, steps: int = SHARED_STEPS, every: int = SHARED_EVERY) -> None:
    """Prints the images a second of one worker, of two, and of two loops that share nothing; and medians of ratios."""
    print(f"\ntraining with a batch of {BATCH}, {steps} steps, one thread a worker: images a second of wall time")
    print(f"  {'':<16}{'1 worker':>10}{'2 workers':>12}{'ratio':>8}{'2 bare loops':>14}{'ratio':>8}")
    more = [f"train.batch={BATCH}", f"train.micro_batch={MICRO_BATCH}"]
    ratios: list[tuple[float, float]] = []
    for turn in range(turns):
        one, two = (once(workers, steps, every, more, UNWATCHED)[1] for workers in (1, 2))
        most = side_by_side(steps, every)
        ratios.append((two / one, two / most))
        print(f"  turn {turn + 1:<11}{one:>10.2f}{two:>12.2f}{two / one:>8.3f}{most:>14.2f}{two / most:>8.3f}")
    of_one, of_most = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"  {'median':<16}{of_one:>30.3f}{of_most:>22.3f}")


def training(device: str) -> None:
    """Both."""
    if device != "cpu":
        print("\ntraining through Ray against the bare loop: on the CPU only")
        return
    overhead()
    scaling()


if __name__ == "__main__":
    bare_loop(configuration.load("demo", None, sys.argv[1:]))
