"""What every Ray Data plan of ours shares: its pool of scorers, and a progress bar over what comes out."""

from __future__ import annotations

import sys
from typing import Any

import ray.data
from tqdm import tqdm

from pipelines.cluster import actor, needs
from pipelines.config import Config
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
