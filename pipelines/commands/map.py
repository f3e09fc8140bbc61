"""`map`: which way to spend trainings wins, per setting and over all of a run."""

from pipelines.commands import keys
from pipelines.commands.command import Command
from pipelines.commands.session import Session

READS = (*keys.RUN, *keys.ARMS, *keys.PROMPTS, "rewards.define", "evaluate.rewards", "evaluate.seeds", "front.*")


def run(session: Session) -> None:
    session.open()
    session.claim_existing()
    with session.stage("map"):
        from pipelines.front.map import summary, write_map
        from pipelines.report.map import write_figure
        from pipelines.study.resolved import resolve

        found, path = write_map(resolve(session.config))
        figure = write_figure(session.run, found)
    print(summary(found))
    print(f"Map: {path}; as a figure: {figure}")


COMMAND = Command(
    run, "find which way to spend trainings wins, and where",
    "Compare every way to sample the adapters of one, two or all trainings of a setting, at equal numbers of arms, "
    "with AIG on the unregularized training and with all KL weights, per setting and over all of them, from what "
    "evaluate measured. The preset map is made for it.",
    READS,
)  # fmt: skip
