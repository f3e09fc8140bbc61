"""Measures of coverage and diversity of sets of image features.

Features are arrays or tensors (n, d), one row per image. Every measure is exact to float64 and refuses rows that are
not finite; those of two sets refuse a constant one, and unequal n if their value depends on n. Errors are
`FeatureError` or another ValueError.
"""

from aig.metrics._inputs import FeatureError
from aig.metrics.frechet import frechet_distance
from aig.metrics.kernel import SubsetDistance, cmmd, kernel_distance, kernel_distance_subsets
from aig.metrics.moments import Moments
from aig.metrics.neighbours import (
    Hits,
    NeighbourScores,
    density_coverage,
    hits_tile,
    merge_radii,
    neighbour_scores,
    precision_recall,
    radii_tile,
)
from aig.metrics.pairwise import CosineSums, mean_pairwise_cosine_distance, mean_pairwise_distance, per_prompt
from aig.metrics.perceptual import mean_pairwise_perceptual_distance
from aig.metrics.spectral import (
    SpectralProfile,
    log_spectral_distance,
    seed_halves,
    spectral_distance,
    spectral_profile,
    spectral_profiles,
    within_prompt_moments,
)
from aig.metrics.vendi import vendi_score

__all__ = [
    "CosineSums", "FeatureError", "Hits", "Moments", "NeighbourScores", "SpectralProfile", "SubsetDistance", "cmmd",
    "density_coverage", "frechet_distance", "hits_tile", "kernel_distance", "kernel_distance_subsets",
    "log_spectral_distance", "mean_pairwise_cosine_distance", "mean_pairwise_distance",
    "mean_pairwise_perceptual_distance", "merge_radii", "neighbour_scores", "per_prompt", "precision_recall",
    "radii_tile", "seed_halves", "spectral_distance", "spectral_profile", "spectral_profiles", "vendi_score",
    "within_prompt_moments",
]  # fmt: skip
