"""A search without a model: candidates drawn in closed form."""

import numpy as np

from aig import schedules
from aig.models import Sampling
from pipelines import config as configuration
from tune.search import plan
from tune.search.plan import HELD_OUT, SEARCH
from tune.search.store import Measured

T = 10
METRICS = ("fragile", "vendi", "gold")


class StepGrid:
    """Progress u = i/T, as a sampler of T steps counts it."""

    def __len__(self):
        return T

    def weights(self, text):
        return schedules.weights(schedules.parse(text), list(range(T)), 1000)


def toy_plan(folder, *asked):
    """A search without a model: two prompts to search on, four held out."""
    wanted = configuration.load(
        None,
        None,
        [f"run.storage={folder}", "search.keep=3", "front.bootstrap=200", "search.prompts_at_once=1", *asked],
    )
    prompts = {SEARCH: ("a", "b"), HELD_OUT: ("c", "d", "e", "f")}
    return plan.Plan(
        wanted, "toy", "toy", "fragile", prompts, {SEARCH: 2, HELD_OUT: 2}, ("fragile", "vendi"), 0, 0,
        Sampling(steps=T, guidance=1.0), StepGrid(), "0",
    )  # fmt: skip


class ToyDraw:
    """Draws in closed form: `objectives` of a curve's weights (T,), plus what a prompt adds to every curve."""

    def __init__(self, objectives, stop_after=None):
        self.objectives, self.stop_after, self.units = objectives, stop_after, []

    def __call__(self, units):
        for unit in units:
            if len(self.units) == self.stop_after:
                raise KeyboardInterrupt
            self.units.append(unit)
            values = np.array([self.objectives(np.array(StepGrid().weights(text))) for text in unit.schedules])
            offset = np.array([len(unit.set) + p for p in unit.prompt_ids])
            columns = {
                name: (column[:, None] + offset).tolist() for name, column in zip(METRICS, values.T, strict=False)
            }
            yield unit, Measured(columns, {"predictions": 3, "separate": 4, "published": 6})


# A step's tuned model earns GAIN and costs LOSS; their ratio rises with u. By the fractional knapsack (Dantzig 1957)
# the optima are then the curves that turn from base to tuned at once: the step family.
GAIN = np.linspace(1, 10, T) / np.linspace(1, 10, T).sum()
LOSS = GAIN[::-1]


def knapsack(w):
    return GAIN @ w, 1 - LOSS @ w
