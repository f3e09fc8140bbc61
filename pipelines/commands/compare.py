"""`compare`: two runs, arm by arm."""

from __future__ import annotations

import argparse

from pipelines.commands.command import Command, overridden
from pipelines.commands.session import Session
from pipelines.config import Config
from pipelines.runs import identity
from pipelines.runs.directory import RunDir


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shared", action="store_true", help="leave out prompts that only one of the runs has")
    for name in ("run_a", "run_b"):
        parser.add_argument(name, metavar=name.upper(), help="the directory of a run, or its URI")
    overridden(parser)


def resolve(arguments: argparse.Namespace) -> Config:
    return identity.of_run(arguments.run_b, arguments.overrides)


def run(session: Session) -> None:
    session.open()
    with session.stage("compare"):
        from pipelines.front.compare import compare, summary
        from pipelines.study import resolved

        first = identity.of_run(session.arguments.run_a)
        RunDir.of(first).refresh()
        session.claim_existing()
        studies = resolved.resolve(first), resolved.resolve(session.config)
        comparison = compare(*studies, shared=session.arguments.shared)
        print(summary(comparison, RunDir.of(first).shown(), session.run.shown()))
    print(f"Comparison: {comparison.path}")


COMMAND = Command(
    run, "compare two runs arm by arm, paired over prompts",
    "Differences of RUN_B less RUN_A, for the arms that both have, with intervals; both have to be measured, on "
    "the same prompts, seeds, noise and features.",
    options, resolve,
)  # fmt: skip
