"""Measure sampling, annealed pipelines, the published arm set, a DRaFT step, memory levers, the Ray pipelines against
bare loops, and the metrics against prdc.

    python -m benchmarks                      # all
    python -m benchmarks passes arms          # some
    python -m benchmarks --device cuda        # on one GPU

Alternatives of one table are timed in turns, round by round, and the ratio is the median over rounds: on a shared
machine absolute figures wander, ratios within a run do not. On the CPU, process CPU time is measured, on one thread.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from aig import adapters, annealed, draft, rewards
from aig.models import Model, Sampling, load
from aig.sampler import Arm, sample_arms
from benchmarks.common import compare, saved_for_backward

PROMPTS = ["a red star", "a blue heart", "a green cross", "a pink circle"]
PUBLISHED = [
    Arm("base", None, 1.0, "base"),
    Arm("tuned", "a"),
    *(Arm(schedule, "a", 1.0, schedule) for schedule in ("linear", "power:2", "power:4", "step:0.6")),
]


def tuned_model(device: str) -> Model:
    """The embedded model with an adapter of the default size, its weights random: speed does not depend on them."""
    model = load("tiny", device)
    adapters.attach(model.denoiser, "a", rank=8, alpha=8, targets="everywhere")
    with torch.no_grad():
        for parameter in adapters.parameters(model.denoiser, "a"):
            parameter.add_(torch.randn_like(parameter) * 0.02)
            parameter.requires_grad_(False)
    return model


def passes(device: str) -> None:
    """Images per second: base, AIG with both predictions in one forward, AIG in two."""
    model, steps = tuned_model(device), 10
    for batch in (1, 4, 16):
        prompts, seeds = (PROMPTS * 4)[:batch], list(range(batch))

        def run(arm: Arm, passes: int, fuse: bool = False, prompts=prompts, seeds=seeds) -> Callable[[], object]:
            sampling = Sampling(steps=steps, guidance=3.0, passes=passes, fuse=fuse, block=1)
            return lambda: sample_arms(model, prompts, seeds, [arm], sampling=sampling)

        mixed = Arm("mixed", "a", 1.0, "constant:0.5")
        runs = {
            "AIG, two passes": (run(mixed, 2), batch),
            "AIG, one pass": (run(mixed, 1), batch),
            "AIG, two passes, fused": (run(mixed, 2, fuse=True), batch),
            "base": (run(PUBLISHED[0], 1), batch),
        }
        compare(f"sampling, batch {batch}, {steps} steps, guidance 3", "images", runs, device)


def spaces(device: str) -> None:
    """An annealed diffusers pipeline in weight space and in prediction space, against the plain one with its LoRA."""
    pipe, steps = tuned_model(device).pipe, 25
    pipe.set_progress_bar_config(disable=True)
    plain = pipe.unet
    # constant:0.5 has no step that the base makes alone, which costs less.
    cases = [("constant:0.5", "weight"), ("ramp:0.5,3", "weight"), ("constant:0.5", "prediction")]
    denoisers = {"plain": plain}
    for schedule, space in cases:
        denoisers[f"{schedule}, {space} space"] = annealed(pipe, schedule, space=space).unet
    for batch in (1, 4):

        def run(denoiser: torch.nn.Module, batch: int = batch) -> Callable[[], object]:
            def draw() -> object:
                pipe.unet = denoiser
                generator = torch.Generator().manual_seed(0)
                return pipe(PROMPTS[:batch], num_inference_steps=steps, guidance_scale=3.0, generator=generator)

            return draw

        runs = {name: (run(denoiser), batch) for name, denoiser in denoisers.items()}
        compare(f"diffusers pipeline, batch {batch}, {steps} steps, guidance 3", "images", runs, device, rounds=15)


def arms(device: str) -> None:
    """The published arm set at T = 25: shared trajectories against a loop an arm, and against a loop an arm with both
    predictions."""
    model, seeds = tuned_model(device), list(range(8))
    sampling, prompts = replace(model.defaults, steps=25), PROMPTS * 2

    def naive() -> None:
        # What a wrapper that always mixes two predictions does: w = 0 and w = 1 are nudged off their shortcuts.
        for arm in PUBLISHED:
            schedule = {"base": "constant:1e-9", "tuned": "constant:0.999999999"}.get(arm.schedule, arm.schedule)
            sample_arms(
                model, prompts, seeds, [Arm(arm.name, "a", 1.0, schedule)], sampling=sampling, measure_path=True
            )

    cost = sample_arms(model, prompts[:1], [0], PUBLISHED, sampling=sampling).cost
    runs = {
        f"a loop an arm, {cost.published} predictions": (naive, 8 * 6),
        f"a loop an arm, w in {{0, 1}} made once, {cost.separate}": (
            lambda: [sample_arms(model, prompts, seeds, [arm], sampling=sampling) for arm in PUBLISHED],
            8 * 6,
        ),
        f"shared, {cost.predictions} predictions": (
            lambda: sample_arms(model, prompts, seeds, PUBLISHED, sampling=sampling),
            8 * 6,
        ),
    }
    compare("published arm set, 8 (prompt, seed) pairs, 25 steps", "images", runs, device, rounds=3)


def draft_step(device: str) -> None:
    """A DRaFT step of 12 images by K, and the peak memory that its gradient adds, by micro-batch."""
    model, reward = tuned_model(device), rewards.load("fragile", device)
    adapters.parameters(model.denoiser, "a")
    prompts, seeds = draft.draw(PROMPTS, 0, 0, 12)

    def run(sampling: Sampling = model.defaults, **change) -> Callable[[], object]:
        config = draft.DraftConfig(sampling, **change)
        return lambda: draft.train_step(model, reward, "a", prompts, seeds, config)

    runs = {
        "K = 1": (run(k=1, micro_batch=12), 12.0),
        "K = 1, rollout not fused": (run(replace(model.defaults, passes=1, fuse=False), k=1, micro_batch=12), 12.0),
        "K = 1, KL": (run(k=1, kl_weight=1.0, micro_batch=12), 12.0),
        "K = 3": (run(k=3, micro_batch=12), 12.0),
        "K = 3, KL": (run(k=3, kl_weight=1.0, micro_batch=12), 12.0),
        "K = 1, LV 2": (run(lv=2, micro_batch=12), 12.0),
        "K = 3, micro-batch 4": (run(k=3, micro_batch=4), 12.0),
    }
    compare("DRaFT step, batch 12, 10 steps, guidance 3", "images", runs, device, rounds=3)
    print(f"\n  {'saved for backward, MiB':<34}{'all':>9}")
    for name, change in {
        "K = 1, micro-batch 12": {"k": 1, "micro_batch": 12},
        "K = 3, micro-batch 12": {"k": 3, "micro_batch": 12},
        "K = 3, micro-batch 4": {"k": 3, "micro_batch": 4},
    }.items():
        print(f"  {name:<34}{saved_for_backward(run(**change)):>9.0f}")


def levers(device: str) -> None:
    """What each memory lever saves and costs."""
    from benchmarks.levers import levers as measure  # here, since its pipeline is written to disk and read

    measure(device)


def ray_pipeline(device: str) -> None:
    """The evaluation through Ray Data against the bare loop."""
    from benchmarks.pipeline import pipeline  # here, since the others need no Ray

    pipeline(device)


def score(device: str) -> None:
    """The `score` command against a plain loop over the same model."""
    from benchmarks.score import score as measure

    measure(device)


def metrics(device: str) -> None:
    """Neighbour measures against prdc, and moments of a stream, with their peak memory."""
    from benchmarks.metrics import metrics as measure  # here, since prdc is a test dependency

    measure(device)


def training(device: str) -> None:
    """Ray Train against the bare loop, and two workers against one."""
    from benchmarks.training import training as measure

    measure(device)


BENCHMARKS = {
    "passes": passes, "spaces": spaces, "arms": arms, "draft": draft_step, "levers": levers, "pipeline": ray_pipeline,
    "score": score, "metrics": metrics, "training": training,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"benchmark {unknown[0]!r} is not known (known: {', '.join(BENCHMARKS)})")
    torch.set_num_threads(1)
    sys.stdout.reconfigure(line_buffering=True)  # each table as it comes, also into a file
    what = (
        torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"{platform.machine()} CPU, 1 thread, process CPU time"
    )
    print(f"torch {torch.__version__}, {what}, Python {platform.python_version()}")
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments.device)
    print(
        f"\npeak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB", file=sys.stderr
    )


if __name__ == "__main__":
    main()
