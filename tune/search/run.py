"""Searches for schedules of one adapter: at the cost of inference, on one set of prompts, validated on another.

A generation of candidates is proposed, drawn and learned as one. Ray Tune would give each candidate a trial, with a
process, a model to load and trajectories of its own. Here the candidates of a generation are arms of one `sample_arms`
call on workers that stay, and share noise, texts, common first steps and equal curves. `tune.search.store` keeps the
measurements, as Tune would the trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.show.bar import Bar
from tune.search import candidates, findings, picture
from tune.search.candidates import Candidate
from tune.search.plan import HELD_OUT, REFERENCES, SEARCH, Plan
from tune.search.store import Draw, Store, Unit

RESULT, PICTURE, CANDIDATES = "search.json", "search.png", "candidates.parquet"


@dataclass(frozen=True)
class Trial:
    """A candidate and its values on the search set."""

    generation: int
    candidate: Candidate
    curve: str
    values: dict[str, float]


def search(plan: Plan, draw: Draw) -> Path:
    """Search, validate and write the result; returns the path of `search.json`.

    `draw` draws units, and is called if something is left to draw. A finished search is left alone.
    """
    path = plan.folder / RESULT
    request = findings.request(plan)
    store = Store(plan.run, plan.folder, plan.identity())
    if path.exists() and plan.run.read_json(path)["request"] == request:
        print("Finished already.")
        return path
    work = Work(plan, store, draw)
    try:
        with closing(work.bar):
            trials, volumes = run(work)
            chosen = findings.choose(plan, trials, work.table(SEARCH, REFERENCES))
            compared = [*REFERENCES, *(trial.candidate.schedule for trial in chosen)]
            held_out = work.measure(HELD_OUT, compared)
    finally:
        store.push()
    result = findings.conclude(plan, trials, chosen, work.table(SEARCH, compared), held_out)
    result |= {"request": request, "cost": work.cost(), "hypervolume_by_generation": volumes}
    findings.write_candidates(plan, trials, plan.folder / CANDIDATES)
    findings.write_schedules(plan, result, path)
    picture.draw(result, trials, plan, plan.folder / PICTURE)
    plan.run.push(plan.folder / PICTURE)
    plan.run.write_json(path, result)
    return path


class Work:
    """Measures schedules on a set of prompts, each curve once, with a bar that counts images."""

    def __init__(self, plan: Plan, store: Store, draw: Draw) -> None:
        self.plan, self.store, self.draw = plan, store, draw
        search = plan.config.search
        most = -(-search.trials // search.generation) * search.generation
        drawn = {SEARCH: len(REFERENCES) + most, HELD_OUT: len(REFERENCES) + search.keep}
        total = sum(count * len(plan.prompts[which]) * plan.seeds[which] for which, count in drawn.items())
        self.bar = Bar("images", total)

    def measure(self, which: str, schedules: Sequence[str]) -> dict[str, np.ndarray]:
        """Metric -> (schedules, prompts); known measurements are not drawn again."""
        curves = [self.plan.curve(schedule) for schedule in schedules]
        prompts, seeds = len(self.plan.prompts[which]), self.plan.seeds[which]
        units = self._missing(which, dict(zip(curves, schedules, strict=True)))
        drawn = 0
        for unit, measured in self.draw(units) if units else ():
            self.store.add(unit, measured)
            images = len(unit.curves) * len(unit.prompt_ids) * seeds
            drawn += images
            self.bar.add(images)
        if spared := len(schedules) * prompts * seeds - drawn:
            self.bar.spare(spared)
        return self.table(which, schedules)

    def table(self, which: str, schedules: Sequence[str]) -> dict[str, np.ndarray]:
        """Metric -> (schedules, prompts) of measured schedules."""
        curves = [self.plan.curve(schedule) for schedule in schedules]
        return self.store.table(which, len(self.plan.prompts[which]), curves)

    def cost(self) -> dict[str, float]:
        """Predictions made, and those that loops without shared states would make, over all images of the search."""
        return dict(self.store.cost)

    def _missing(self, which: str, texts: dict[str, str]) -> list[Unit]:
        """Units of all missing measurements; `texts` has a schedule for each curve."""
        units, at_once = [], self.plan.config.search.prompts_at_once
        for first in range(0, len(self.plan.prompts[which]), at_once):
            ids = tuple(range(first, min(first + at_once, len(self.plan.prompts[which]))))
            missing = [c for c in texts if not all(self.store.has(which, p, c) for p in ids)]
            if missing:
                units.append(Unit(which, ids, tuple(missing), tuple(texts[c] for c in missing)))
        return units


def run(work: Work) -> tuple[list[Trial], list[float]]:
    """All trials in order, and the hypervolume of all known points after each generation."""
    plan, settings = work.plan, work.plan.config.search
    sampler = candidates.sampler(
        settings.sampler, settings.families, settings.places, len(plan.objectives), settings.generation,
        settings.trials, settings.seed,
    )  # fmt: skip
    known = findings.points(plan, work.measure(SEARCH, REFERENCES))
    box = findings.Box.around(known)
    trials: list[Trial] = []
    volumes = [box.volume(known)]
    for generation in range(-(-settings.trials // settings.generation)):
        asked = sampler.ask(settings.generation)
        if not asked:
            break
        table = work.measure(SEARCH, [candidate.schedule for candidate in asked])
        values = findings.points(plan, table)
        sampler.tell(values)
        known = np.vstack([known, values])
        volumes.append(box.volume(known))
        work.bar.note = f"generation {generation + 1}, hypervolume {volumes[0]:.3f} → {volumes[-1]:.3f}"
        means = {name: column.mean(axis=1) for name, column in table.items()}
        for c, candidate in enumerate(asked):
            own = {name: float(column[c]) for name, column in means.items()}
            trials.append(Trial(generation, candidate, plan.curve(candidate.schedule), own))
    return trials, volumes
