"""`evaluate`: the images of every arm, their scores, measures and fronts."""

from __future__ import annotations

import argparse
import json

from pipelines import config as configuration
from pipelines.commands import steps
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session
from pipelines.config import Config


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", metavar="[NAME=]PATH", action="append", default=[],
        help="a LoRA file, or its folder, that was made elsewhere, in the place of the sweep's adapters; give it again "
        "for another. Ends with the report",
    )  # fmt: skip
    configured(parser)


def resolve(arguments: argparse.Namespace) -> Config:
    # --adapter comes first, so that an override can bring the sweep back.
    alone = ["sweep.rewards=[]", f"evaluate.adapters={json.dumps(arguments.adapter)}"] if arguments.adapter else []
    return configuration.load(arguments.preset, arguments.config, [*alone, *arguments.overrides])


def run(session: Session) -> None:
    session.open()
    with session.stage("check"):
        from pipelines.commands import preflight

        model = preflight.check_evaluation(session.config, trained=True)
    steps.print_prompts(session)
    session.claim()
    study = steps.evaluate(session, model)
    if session.arguments.adapter:
        steps.report(session)
    steps.conclude(study)


COMMAND = Command(
    run, "draw and score every arm's images, and measure them",
    "Draw every arm (base, tuned, early stops, KL weights, LoRA scales, AIG schedules) on the same prompts and "
    "noise, score the images, measure reward and diversity and find the Pareto fronts. Needs the sweep's adapters; "
    "or, with --adapter, nothing but a LoRA file of anyone's for model.name: its LoRA scales and schedules are the "
    "arms then. evaluate.adapters=[NAME=PATH] puts such a file beside the sweep's adapters. A sweep does the same "
    "after its trainings, but for --train-only.",
    options, resolve,
)  # fmt: skip
