"""`search`: schedules for one adapter."""

from pipelines.commands import keys
from pipelines.commands.command import Command
from pipelines.commands.session import Session

READS = (
    *keys.RUN, *keys.ARMS, *keys.PROMPTS, *keys.SCORES, "run.seed", "model.*",
    *keys.of("evaluate", "block max_rows threads"), *keys.of("front", "diversity bootstrap level seed interval"),
    "search.*", "ray.*",
)  # fmt: skip


def run(session: Session) -> None:
    session.open()
    with session.stage("check"):
        from pipelines.commands import preflight
        from tune.search import plan

        plan.check_given(session.config)
        made = plan.make(session.config, preflight.check_evaluation(session.config, trained=False))
    session.claim()
    with session.stage("search"):
        from tune.search import findings
        from tune.search.run import search
        from tune.search.workers import Pool

        path = search(made, Pool(made, session.connect))
    print(findings.summary(path))
    print(f"Search: {path}, found schedules in {session.config.directory / 'schedules'}")


COMMAND = Command(
    run, "search schedules for an adapter, and validate them",
    "Search schedules for one trained adapter (search.adapter) that trade reward against diversity, at the cost of "
    "inference, and validate the best on prompts that the search has not seen. They are kept as "
    "schedules/NAME.json, for evaluate.schedules=['file:PATH'] and aig.annealed(pipe, 'file:PATH').",
    READS,
)  # fmt: skip
