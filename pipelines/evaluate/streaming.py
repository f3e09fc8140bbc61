"""What every Ray Data plan of ours shares: its pool of scorers, and what is done with what comes out of it."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import ray.data
from ray.data._internal.execution import streaming_executor_state

from pipelines.cluster import resources
from pipelines.cluster.connect import actor
from pipelines.config import Config
from pipelines.evaluate import pools
from pipelines.evaluate.failures import Failures
from pipelines.evaluate.scorers import Job, Said, Scorer
from pipelines.show.bar import Bar

# Ray Data looks this often, and not ten times a second, whether a task has finished; one that has wakes it at once.
LOOK_SECONDS, LOOK = 0.5, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"


def quiet_data() -> None:
    """Let Ray Data hand out units in any order, leave progress to us, and look around no more than it has to."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # Ray Data would give up after some minutes without a finished unit; one of a hundred arms can take longer.
    context.execution_no_progress_timeout_s = -1
    # A thread in each actor that reads its memory every second, and what would warn of that.
    context.memory_usage_poll_interval_s = None
    context.issue_detectors_config.detectors = []
    # There is no setting for it; a version without the constant goes on as it does.
    if hasattr(streaming_executor_state, LOOK):
        setattr(streaming_executor_state, LOOK, LOOK_SECONDS)


def scored(units: ray.data.Dataset, job: Job, config: Config, most: int) -> ray.data.Dataset:
    """The units through the configuration's scorers, at most `most`; a row that comes out is a unit that is there."""
    return units.map_batches(
        Scorer,
        fn_constructor_kwargs={"job": job},
        compute=pools.scorers(config.evaluate).strategy(most),
        **actor(resources.scorers(config.evaluate).one),
        batch_size=1,
        batch_format="pyarrow",
    )


def run(dataset: ray.data.Dataset, bar: Bar, failures: Failures | None = None) -> None:
    """Carry a plan of scored units out behind a bar of images; `failures` takes units that could not be made.

    What the scorers warned of is told at the end.
    """
    said = Said()
    try:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for row in cast(pa.Table, batch).to_pylist():
                bar.add(row["images"], row["predictions"], failed=int(row["error"] is not None))
                said.add(row["said"])
                if failures is not None:
                    _note(failures, row)
    finally:
        bar.close()
        said.tell(lambda line: print(line, file=bar.out))


def _note(failures: Failures, row: dict[str, Any]) -> None:
    if row["error"] is None:
        failures.succeeded()
    else:
        failures.add(row["unit"], row["stage"], row["error"])


def rows(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """One block a row, or a single one would hold them all and nothing would stream."""
    return ray.data.from_items(items, override_num_blocks=len(items))
