"""`sweep`: an adapter for every setting, and the evaluation of all of them."""

import argparse

from pipelines.commands import steps
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session
from pipelines.config import SECTIONS

READS = tuple(f"{section}.*" for section in SECTIONS if section != "search")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-errored", action="store_true", help="train only those that failed before")
    parser.add_argument("--train-only", action="store_true", help="stop after the trainings; evaluate does the rest")
    configured(parser)


def run(session: Session) -> None:
    train_only = session.arguments.train_only
    session.open()
    with session.stage("check"):
        from pipelines.commands import preflight

        config = session.config
        model = preflight.check_training(config, sweep=True) if train_only else preflight.check_study(config)
    steps.print_prompts(session)
    session.claim()
    steps.sweep(session, None if train_only else model, session.arguments.retry_errored)
    if not train_only:
        steps.conclude(steps.evaluate(session, model))


COMMAND = Command(
    run, "train an adapter for every setting of sweep.*, and evaluate each as evaluate.* says",
    "Train an adapter for every reward, K, KL weight, learning rate, LoRA rank and training seed of sweep.*, or "
    "for the settings that a search draws (sweep.search); then evaluate each under every LoRA scale and AIG "
    "schedule of evaluate.*, all in one table. Finished trainings are kept, interrupted ones resumed. A failed "
    "trial is reported and the others continue, but the evaluation waits: --retry-errored runs it again.",
    READS, options,
)  # fmt: skip
