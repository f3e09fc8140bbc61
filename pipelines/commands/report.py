"""`report`: the page of a run."""

from pipelines.commands import keys, steps
from pipelines.commands.command import Command
from pipelines.commands.session import Session


def run(session: Session) -> None:
    session.open()
    session.claim_existing()
    steps.report(session)


COMMAND = Command(
    run, "write the report",
    "Write report/index.html, one page that works offline, and PNGs of its figures.",
    keys.RUN,
)  # fmt: skip
