"""What all Ray Data plans share: the pool of scorers, and the loop over what comes out of it."""

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
from pipelines.evaluate.scorers import Job, Scorer, WarningLog
from pipelines.show.bar import Bar

# How often Ray Data looks for finished tasks, instead of ten times a second; a task that finishes wakes it at once.
LOOK_SECONDS, LOOK = 0.5, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"


def quiet_data() -> None:
    """Let Ray Data hand out units in any order, show no progress of its own, and poll rarely."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # Ray Data would give up after minutes without a finished unit; one of a hundred arms can take longer.
    context.execution_no_progress_timeout_s = -1
    # No thread in each actor that reads its memory every second, nor warnings about it.
    context.memory_usage_poll_interval_s = None
    context.issue_detectors_config.detectors = []
    # There is no setting for it; a version without the constant keeps its own pace.
    if hasattr(streaming_executor_state, LOOK):
        setattr(streaming_executor_state, LOOK, LOOK_SECONDS)


def scored(units: ray.data.Dataset, job: Job, config: Config, most: int) -> ray.data.Dataset:
    """The units through the configuration's scorers, at most `most`; each row that comes out is a committed unit."""
    return units.map_batches(
        Scorer,
        fn_constructor_kwargs={"job": job},
        compute=pools.scorers(config.evaluate).strategy(most),
        **actor(resources.scorers(config.evaluate).one),
        batch_size=1,
        batch_format="pyarrow",
    )


def run(dataset: ray.data.Dataset, bar: Bar, failures: Failures | None = None) -> None:
    """Run a plan of scored units behind a bar of images; `failures` records the units that failed.

    The scorers' warnings are printed at the end.
    """
    warned = WarningLog()
    try:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for row in cast(pa.Table, batch).to_pylist():
                bar.add(row["images"], row["predictions"], failed=int(row["error"] is not None))
                warned.add(row["said"])
                if failures is None:
                    continue
                if row["error"] is None:
                    failures.succeeded()
                else:
                    failures.add(row["unit"], row["stage"], row["error"])
    finally:
        bar.close()
        for line in warned.lines():
            print(line, file=bar.out)


def rows(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """One block per row: a single block of all rows would not stream."""
    return ray.data.from_items(items, override_num_blocks=len(items))
