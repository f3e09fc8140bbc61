"""`check`: what is wrong with a configuration, without starting anything."""

import argparse

from pipelines.commands import keys, steps
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session

READS = (
    *keys.RUN, *keys.ARMS, *keys.ADAPTERS, *keys.PROMPTS, *keys.SCORES, "run.wandb", "run.mlflow", "model.*",
    "rewards.*", *keys.of("train", "rollout_batch micro_batch checkpointing parallel num_workers keep_best"),
    *keys.of("sweep", "scheduler proxy objectives lr_range kl_range"), "evaluate.block",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", action="store_true", help="also load every reward, one after another, and score an image"
    )
    configured(parser)


def run(session: Session) -> None:
    session.result = "Nothing was started or written."
    with session.stage("check"):
        from pipelines.commands import preflight

        model = preflight.check_study(session.config)
    steps.print_prompts(session)
    if session.arguments.weights:
        with session.stage("weights"):
            for line in preflight.check_weights(session.config, model):
                print(line)


COMMAND = Command(
    run, "find what is wrong with a configuration, without starting anything",
    "Check what sweep and evaluate check before they start: keys, prompts, schedules, the model, and whether the "
    "rewards' weights are here or can be downloaded. --weights downloads and loads them, and scores an image with "
    "each.",
    READS, options,
)  # fmt: skip
