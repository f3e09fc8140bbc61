"""`evaluate`: the images of every arm, their scores, measures and fronts."""

import argparse
import json

from pipelines import config as configuration
from pipelines.commands import keys, steps
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session
from pipelines.config import Config

READS = (
    *keys.RUN, *keys.TRAININGS, *keys.ADAPTERS, *keys.PROMPTS, "run.seed", "model.*", "rewards.*",
    *keys.of("train", "*_per_worker node threads rollout_batch"), "evaluate.*", "measure.*", "front.*", "ray.*",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", metavar="[NAME=]PATH", action="append", default=[],
        help="evaluate this LoRA file or folder from elsewhere instead of the sweep's adapters, and write the report; "
        "repeat it for more",
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
    "noise, score the images, measure reward and diversity, and find the Pareto fronts. It needs the sweep's "
    "adapters, or, with --adapter, only somebody's LoRA file for model.name, whose LoRA scales and schedules are "
    "then the arms. evaluate.adapters=[NAME=PATH] adds such a file to the sweep's adapters. A sweep ends with the "
    "same, unless --train-only.",
    READS, options, resolve,
)  # fmt: skip
