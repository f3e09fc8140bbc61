"""Feature extractors for the measures of coverage and diversity: images (B, 3, H, W) in [0, 1] to features (B, d)."""

from aig.metrics.features.base import Features, report
from aig.metrics.features.loading import digest, load, needed
from aig.metrics.features.spec import NAMES, FeatureSpec, Spec, parse

__all__ = ["NAMES", "FeatureSpec", "Features", "Spec", "digest", "load", "needed", "parse", "report"]
