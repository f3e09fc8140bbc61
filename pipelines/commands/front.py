"""`front`: the Pareto fronts of what was measured."""

from pipelines.commands import keys, steps
from pipelines.commands.command import Command
from pipelines.commands.session import Session

READS = (*keys.RUN, *keys.ARMS, *keys.PROMPTS, "rewards.define", "evaluate.rewards", "evaluate.seeds", "front.*")


def run(session: Session) -> None:
    from pipelines.study.resolved import resolve

    session.open()
    session.claim_existing()
    steps.front(session, resolve(session.config))


COMMAND = Command(
    run, "find the Pareto fronts and their intervals",
    "Find the Pareto fronts of reward against diversity, with intervals, from what evaluate measured.",
    READS,
)  # fmt: skip
