"""Pareto fronts with intervals: the optimal arms, the volume that a family dominates, and how certain both are.

All objectives are maximized: by convention reward on x and diversity on y. The unit of every interval is the prompt.
"""

from aig.pareto.contrasts import LEAST_SEEDS, Contrast, contrast, holm
from aig.pareto.fronts import attainment, hypervolume, mean_hypervolume, optimal_mask
from aig.pareto.intervals import LEAST_PROMPTS, no_interval
from aig.pareto.paired import Bootstrap, bootstrap
from aig.pareto.peak import below_peak
from aig.pareto.subsampling import Subsample, subsample

__all__ = [
    "LEAST_PROMPTS", "LEAST_SEEDS", "Bootstrap", "Contrast", "Subsample", "attainment", "below_peak", "bootstrap",
    "contrast", "holm", "hypervolume", "mean_hypervolume", "no_interval", "optimal_mask", "subsample",
]  # fmt: skip
