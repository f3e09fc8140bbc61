"""What every Ray Data plan of ours shares: its pool of scorers, and what is done with what comes out of it."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import ray.data

from pipelines import pools
from pipelines.bar import Bar
from pipelines.cluster import actor
from pipelines.config import Config
from pipelines.failures import Failures
from pipelines.scoring import Job, Said, Scorer


def quiet_data() -> None:
    """Let Ray Data hand out units in any order, and leave progress to us."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # Ray Data would give up after some minutes without a finished unit; one of a hundred arms can take longer.
    context.execution_no_progress_timeout_s = -1


def scored(units: ray.data.Dataset, job: Job, config: Config, most: int) -> ray.data.Dataset:
    """The units through the configuration's scorers, at most `most`; a row that comes out is a unit that is there."""
    return units.map_batches(
        Scorer,
        fn_constructor_kwargs={"job": job},
        compute=pools.scorers(config.evaluate).strategy(most),
        **actor(pools.scorer_needs(config.evaluate)),
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
