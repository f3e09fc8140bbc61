"""`train`: one adapter."""

import argparse
from functools import partial

from pipelines.commands import keys, steps
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session
from pipelines.config import Config

READS = (
    *keys.TRAININGS, *keys.PROMPTS, *keys.SCORES, "run.*", "model.*", "rewards.*", "train.*", "ray.*",
    "evaluate.adapters", "evaluate.block",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only print the plan: sizes, work, memory, downloads")
    configured(parser)


def run(session: Session) -> None:
    config = session.config
    if session.arguments.dry_run:
        print_plan(config)
        return
    session.open()
    with session.stage("check"):
        from pipelines.commands import preflight
        from pipelines.show.progress import trainings
        from pipelines.study.trainings import adapter_key
        from pipelines.train import checkpoints, records
        from pipelines.train.launch import room_for, train

        preflight.check_training(config, sweep=False)
    steps.print_prompts(session)
    session.claim()
    files, key = session.run, adapter_key(config.train)
    if records.is_finished(config):
        checkpoints.discard(files, files.checkpoints(key))  # a kill just after the end leaves them
        print(f"Finished already: {files.shown(files.adapters / key)}{stop(config)}")
        return
    cluster = session.connect()
    room_for(config, cluster)
    steps.normalize(session, lambda: cluster)
    with session.stage("train"), trainings(files.progress, [key], partial(files.glance, files.progress)):
        folder = train(config)
    files.pull(files.adapters, key, f"{key}@*")
    print(f"Adapter: {files.shown(folder)}{stop(config)}")


def print_plan(config: Config) -> None:
    from pipelines.train import dry_run

    print("\n".join(dry_run.lines(dry_run.make(config))))


def stop(config: Config) -> str:
    """Why a guard stopped this training, in brackets; empty if none did."""
    from pipelines.study import limits, trainings

    stopped = trainings.stopped(config)
    return "" if stopped is None else f" ({limits.describe_stop(stopped)})"


COMMAND = Command(
    run, "train one adapter (train.*)",
    "Tune the model to train.reward with DRaFT. Keeps the adapter, snapshots along the way and the training curve.",
    READS, options,
)  # fmt: skip
