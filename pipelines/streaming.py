"""What every Ray Data plan of ours shares: its pool of scorers, and a progress bar over what comes out."""

from __future__ import annotations

import sys
from typing import Any

import ray.data
from ray.data._internal.execution import streaming_executor_state
from tqdm import tqdm

from pipelines.cluster import actor, needs
from pipelines.config import Config
from pipelines.scoring import Job, Said, Scorer

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
    evaluate = config.evaluate
    return units.map_batches(
        Scorer,
        fn_constructor_kwargs={"job": job},
        compute=ray.data.ActorPoolStrategy(size=min(evaluate.scorers, most)),
        **actor(scorer_needs(config)),
        batch_size=1,
        batch_format="pyarrow",
    )


def scorer_needs(config: Config) -> dict[str, float]:
    """Ray resources of one scorer."""
    evaluate = config.evaluate
    return needs(evaluate.scorer_cpus, evaluate.scorer_gpus, evaluate.node)


def run(dataset: ray.data.Dataset, total: int, unit: str, description: str, count: str = "") -> None:
    """Carry a plan of scored units out behind a progress bar of units, or of the sum of a column of numbers.

    What the scorers warned of is told at the end.
    """
    said = Said()
    every = 0.5 if sys.stderr.isatty() else 15.0  # in a log, a line now and then
    with tqdm(total=total, unit=unit, desc=description, mininterval=every) as bar:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            bar.update(int(batch[count].sum()) if count else len(batch["unit"]))
            said.add([message for messages in batch["said"] for message in messages])
    said.tell(lambda line: print(line, file=sys.stderr))


def rows(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """One block a row, or a single one would hold them all and nothing would stream."""
    return ray.data.from_items(items, override_num_blocks=len(items))
