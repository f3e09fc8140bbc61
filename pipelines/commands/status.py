"""`status`: what a run has and lacks."""

import argparse

from pipelines.commands.command import Command
from pipelines.commands.session import Session
from pipelines.config import Config

SHORT = "what a run has, what is under way, failed or missing, and the next command; from its folder alone"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder or URI, or its name in the default storage")


def resolve(arguments: argparse.Namespace) -> Config:
    return Config()  # the run's own is read with its folder


def run(session: Session) -> None:
    from pipelines.commands import overview

    print(overview.report(overview.find(session.arguments.run)))


COMMAND = Command(run, "what a run has and lacks", f"Print {SHORT}.", (), options, resolve)
