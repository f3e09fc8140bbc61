"""Ray Train against the bare loop of `aig.draft`, and two workers against one, on the embedded world.

Both trainings make the same steps and save the same adapters, every fifth step one; the loop is what one would write
without Ray. They are commands of their own, watched from outside in the same way. Two figures each:

    steady   CPU seconds of all processes, a step, between the first saved adapter and the last: the steps, and all that
             Ray's processes, reports and checkpoints do beside them. The bar, at most 1.15 of the bare loop's, is on
             this: it is what grows with a training's length.
    whole    CPU seconds from start to exit: with imports and loading, which the loop has too, the validations at both
             ends, which it has not, and what Ray takes to start and stop.

The workers' rate is in images a second of wall time between the same two adapters, one thread a worker; the bar is 1.6
times the rate for two. It needs two free cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from aig import adapters, draft, models, rewards
from benchmarks.watching import Usage, watch
from pipelines import config, layout, study

STEPS, EVERY = 30, 5
SAVED = "*/adapters/[!.]*/adapter.json"
OVERRIDES = (
    "train.validate_every=100000", "train.validate_prompts=1", "train.validate_seeds=2", "sweep.kl_weights=[0]",
)  # fmt: skip


def arguments(storage: Path, steps: int, every: int, workers: int = 1) -> list[str]:
    """The configuration of a training with one thread a worker, and a checkpoint every ten steps."""
    return [
        f"run.storage={storage}", f"train.steps={steps}", f"train.snapshot_every={every}", "train.checkpoint_every=10",
        f"train.num_workers={workers}", "train.threads=1", "ray.address=local", *OVERRIDES,
    ]  # fmt: skip


def bare_loop(found: config.Config) -> None:
    """What one would write without us."""
    train = found.train
    torch.set_num_threads(train.threads)
    model = models.load(found.model.name)
    reward = rewards.load(train.reward)
    settings = draft.DraftConfig(
        study.resolve_sampling(found, model.defaults), train.k, train.lv, train.kl_weight, train.kl,
        min(train.micro_batch, train.batch),
    )  # fmt: skip
    prompts = study.resolve_prompts(train.prompts, "train.prompts")
    adapters.attach(model.denoiser, "tuned", train.rank, train.alpha, train.targets, train.seed)
    parameters = draft.trainable(model, "tuned")
    optimizer = torch.optim.Adam(parameters, lr=train.lr, weight_decay=train.weight_decay)
    for step in range(train.steps):
        optimizer.zero_grad()
        draft.train_step(model, reward, "tuned", *draft.draw(prompts, train.seed, step, train.batch), settings)
        torch.nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
        if (step + 1) % train.snapshot_every == 0 or step + 1 == train.steps:
            adapters.save(model.denoiser, "tuned", found.directory / "adapters" / f"step-{step + 1}", {})


def images_a_second(storage: Path, found: config.Config) -> float:
    """By the times at which the first and the last adapter were saved."""
    files = layout.RunFiles(storage / found.run.name)
    times = sorted(path.stat().st_mtime for path in files.root.glob("adapters/[!.]*/adapter.json"))
    first = min(found.train.snapshot_every, found.train.steps)
    return (found.train.steps - first) * found.train.batch / (times[-1] - times[0])


def training(device: str, steps: int = STEPS, every: int = EVERY) -> dict[str, Usage]:
    """CPU seconds of the bare loop and of `train` with one worker and with two; prints their images a second too."""
    if device != "cpu":
        print("\ntraining through Ray against the bare loop: on the CPU only")
        return {}
    usages: dict[str, Usage] = {}
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, workers in {"bare loop": 0, "Ray Train, 1 worker": 1, "Ray Train, 2 workers": 2}.items():
            storage = Path(place) / f"workers-{workers}"
            given = arguments(storage, steps, every, max(1, workers))
            program = ["pipelines", "train", "--preset", "demo"] if workers else ["benchmarks.training"]
            line = [sys.executable, "-m", *program, *given]
            usages[name] = watch(line, storage, SAVED, steps, every)
            rates[name] = images_a_second(storage, config.load("demo", None, given))
    show(usages, rates, steps)
    return usages


def show(usages: dict[str, Usage], rates: dict[str, float], steps: int) -> None:
    print(f"\ntraining, {steps} steps of the embedded world: CPU time of all processes, images of wall time")
    print(f"  {'':<24}{'wall':>9}{'whole':>9}{'ratio':>8}{'steady/step':>13}{'ratio':>8}{'images/s':>10}{'ratio':>8}")
    bare, one = usages["bare loop"], rates["Ray Train, 1 worker"]
    for name, used in usages.items():
        whole, steady = used.whole / bare.whole, used.steady / bare.steady
        print(
            f"  {name:<24}{used.wall:>8.1f}s{used.whole:>8.1f}s{whole:>8.3f}{used.steady:>12.3f}s{steady:>8.3f}"
            f"{rates[name]:>10.2f}{rates[name] / one:>8.2f}"
        )
    top = sorted(usages["Ray Train, 1 worker"].by_kind.items(), key=lambda item: -item[1])[:5]
    print("  1 worker, steady, by process: " + ", ".join(f"{kind} {each:.3f}" for kind, each in top))


if __name__ == "__main__":
    bare_loop(config.load("demo", None, sys.argv[1:]))
