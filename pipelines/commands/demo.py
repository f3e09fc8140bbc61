"""`demo`: everything from training to the report."""

from functools import partial

from pipelines.commands import steps, sweep
from pipelines.commands.command import Command, configured
from pipelines.commands.session import Session


def run(session: Session) -> None:
    session.open()
    with session.stage("check"):
        from pipelines.commands import preflight

        model = preflight.check_study(session.config)
    steps.print_prompts(session)
    session.claim()
    steps.sweep(session, model)
    study = steps.evaluate(session, model)
    steps.report(session)
    steps.conclude(study)


COMMAND = Command(
    run, "sweep, evaluate, front and report, in one go",
    "Everything from training to the report. The preset is demo unless you name another.",
    sweep.READS, partial(configured, preset="demo"),
)  # fmt: skip
