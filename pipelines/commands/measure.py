"""`measure`: the measures of a run's images, made again."""

from __future__ import annotations

import argparse

from pipelines.commands import steps
from pipelines.commands.command import Command, overridden
from pipelines.commands.session import Session
from pipelines.config import Config, given
from pipelines.runs import identity


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
        # Its sampling is part of the names of the images' files; its weights are not needed.
        with given("model.name"):
            model, _ = empty(session.config.model.name, session.config.model.revision)
    session.claim_existing()
    steps.measure(session, resolve_images(session.config, model.defaults), everything=True)


COMMAND = Command(
    run, "measure a run's images again, from its directory alone",
    "Measure the images of a run that evaluate drew, by the configuration in its directory; keys of measure.* and "
    "front.* may be changed. evaluate does the same at its end.",
    options, resolve,
)  # fmt: skip
