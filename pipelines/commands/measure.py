"""`measure`: the measures of a run's images, made again."""

import argparse

from pipelines.commands import keys, steps
from pipelines.commands.command import Command, overridden
from pipelines.commands.session import Session
from pipelines.config import Config, given
from pipelines.runs import identity

READS = (
    *keys.RUN, *keys.ARMS, *keys.SCORES, "run.seed", "model.*",
    *keys.of("evaluate", "prompts seeds group block max_rows path_prompts"), *keys.of("front", "level seed"),
    "measure.*", "ray.*",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the directory of a run, or its URI")
    overridden(parser)


def resolve(arguments: argparse.Namespace) -> Config:
    return identity.of_run(arguments.run, arguments.overrides)


def run(session: Session) -> None:
    session.open()
    with session.stage("check"):
        from aig.models.empty import empty
        from pipelines.study.prompts import EVALUATE, check_prompts
        from pipelines.study.resolved import resolve_images

        check_prompts(session.config, EVALUATE)
        # The names of the image files depend on its sampling; its weights are not needed.
        with given("model.name"):
            model, _ = empty(session.config.model.name, session.config.model.revision)
    session.claim_existing()
    steps.measure(session, resolve_images(session.config, model.defaults), everything=True)


COMMAND = Command(
    run, "measure a run's images again, from its directory alone",
    "Measure the images that evaluate drew, with the configuration in the run's directory; keys of measure.* and "
    "front.* may be changed. evaluate ends with the same.",
    READS, options, resolve,
)  # fmt: skip
