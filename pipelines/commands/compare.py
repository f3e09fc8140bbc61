"""`compare`: two runs, arm by arm."""

import argparse

from pipelines.commands import keys
from pipelines.commands.command import Command, overridden
from pipelines.commands.session import Session
from pipelines.config import Config
from pipelines.runs import identity
from pipelines.runs.directory import RunDir

READS = (
    *keys.RUN, *keys.ARMS, "model.name", "rewards.define", *keys.of("evaluate", "prompts rewards seeds"), "front.*",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shared", action="store_true", help="compare only on the prompts that both runs have")
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
    "Print the differences RUN_B - RUN_A, with intervals, for the arms that both have. Both must be measured, with "
    "the same prompts, seeds, noise and features.",
    READS, options, resolve,
)  # fmt: skip
