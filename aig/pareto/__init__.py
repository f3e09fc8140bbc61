"""Pareto fronts with intervals: what is optimal, how much a family of arms dominates, and how sure that is.

All objectives are maximized: by convention reward on x and diversity on y. The unit of every interval is the prompt.
"""

from aig.pareto.fronts import attainment, hypervolume, optimal_mask
from aig.pareto.paired import Bootstrap, bootstrap
from aig.pareto.subsampling import Subsample, subsample

__all__ = ["Bootstrap", "Subsample", "attainment", "bootstrap", "hypervolume", "optimal_mask", "subsample"]
