"""Steps that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.commands.session import Session

if TYPE_CHECKING:
    from aig.models import Model
    from pipelines.cluster.connect import Cluster
    from pipelines.study.resolved import Drawable, Resolved


def print_prompts(session: Session) -> None:
    """Say which prompts train and which judge, and how many do both."""
    from pipelines.study import prompts

    print(prompts.describe(prompts.prompt_lists(session.config)))


def normalize(session: Session, connect: Callable[[], Cluster]) -> None:
    """Measure the missing statistics of weighted sums; most runs have no sum and need none."""
    from pipelines.study.statistics import ensure

    ensure(session.config, connect)


def sweep(session: Session, model: Model | None, retry_errored: bool = False) -> None:
    """Train what is left. With the model of an evaluation that follows, the cluster must have room for that too."""
    with session.stage("sweep"):
        from tune.sweep.run import concurrency, ended, table
        from tune.sweep.run import sweep as train_all

        def connect() -> Cluster:
            # Ray's dashboard helps to clean up after a trial that a scheduler stops.
            cluster = session.connect(dashboard=session.config.sweep.scheduler != "none")
            concurrency(session.config, cluster)
            if model is not None:
                evaluation_connect(session, model)()
            normalize(session, lambda: cluster)
            return cluster

        outcome = train_all(session.config, connect, retry_errored)
        print("\n".join(filter(None, (table(outcome.rows), ended(outcome.record)))))
    outcome.check()


def evaluate(session: Session, model: Model) -> Resolved:
    """Draw and score every arm's images, measure them, and find the fronts."""
    study = generate(session, model)
    measure(session, study)
    front(session, study)
    return study


def evaluation_connect(session: Session, model: Model) -> Callable[[], Cluster]:
    """A function that connects, and refuses a cluster without room for the evaluation."""
    from pipelines.evaluate import pools

    def connect() -> Cluster:
        cluster = session.connect()
        pools.check(session.config, cluster, pools.host_memory(model))
        return cluster

    return connect


def generate(session: Session, model: Model) -> Drawable:
    with session.stage("generate"):
        from pipelines.evaluate import external, lengths, pools
        from pipelines.evaluate.generate import generate as draw
        from pipelines.study.resolved import resolve_images

        external.import_adapters(session.config)
        connect = evaluation_connect(session, model)
        normalize(session, connect)
        memory = pools.host_memory(model)
        lengths.ensure(session.config, model.defaults, connect, memory)
        study = resolve_images(session.config, model.defaults)
        for line in study.notes:
            print(line)
        draw(study, connect, memory)
    return study


def measure(session: Session, study: Drawable, everything: bool = False) -> None:
    with session.stage("measure"):
        from pipelines.evaluate.images import read
        from pipelines.measure import measure as measuring

        images = read(study, without=measuring.UNNEEDED)
        counts = {name: getattr(images, name) for name in ("found", "expected", "missing", "failed", "duplicate")}
        line = "Images: {found} of {expected} found, {missing} missing, {duplicate} duplicate"
        print((f"{line}, {{failed}} left out." if images.failed else f"{line}.").format(**counts))
        measuring.measure(study, images, session.command, session.connect)
        print(measuring.summary(study, everything))


def front(session: Session, study: Resolved) -> None:
    with session.stage("front"):
        from pipelines.front.front import summary, write_front

        path = write_front(study)
    print(summary(path))
    print(f"Front: {path}; every arm with its settings and measures: {path.with_name('table.csv')}")


def report(session: Session) -> None:
    with session.stage("report"):
        from pipelines.report import write_report

        session.run.pull(session.run.images)
        path = write_report(session.run)
    print(f"Report: {path}")


def conclude(study: Resolved) -> None:
    """List what failed, after everything that could be done; an error if more did than may."""
    from pipelines.evaluate import failures

    failures.conclude(study)
