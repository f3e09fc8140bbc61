"""In words: metrics, what a claim says of one, and what stands beside results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GOLD = "gold"  # as in `pipelines.rewards.scores`, without its torch

METRICS = {
    "fragile": "fragile reward",
    "robust": "robust reward",
    GOLD: "gold",
    "gold_a": "gold, judge A",
    "gold_b": "gold, judge B",
    "accuracy": "prompt accuracy",
    "accuracy_a": "prompt accuracy, judge A",
    "accuracy_b": "prompt accuracy, judge B",
    "colour_ok": "colour right",
    "shape_ok": "shape right",
    "vendi": "Vendi score in a prompt",
    "pairwise": "pairwise distance in a prompt",
    "kl_to_base": "path KL to base (nats per image)",
    "path": "path length to base (eps_mse)",
    "spectral": "spectral distance",
    "log_spectral": "log spectral distance",
    "log_spectral_floor": "log spectral distance of base to base (half of n)",
    "frechet": "Fréchet distance",
    "kid": "kernel distance (KID)",
    "cmmd": "CLIP distance (CMMD)",
    "collapse": "spread in a prompt against base (mean log ratio)",
    "precision": "precision against base",
    "recall": "recall against base",
    "vendi_pooled": "Vendi score of all images",
    "density": "density against base",
    "coverage": "coverage of base",
    "pixel_std": "contrast (std of pixels)",
}
"""A metric that is not here is shown by its own name."""

DISTANCES = {"kl_to_base": "nats per image", "path": "mean squared difference of predictions (eps_mse)"}
"""Distances to the base by preference, and their units: deterministic sampling has a path length and no KL."""

ROLES = ("proxy", "held-out reward", GOLD)
"""What a reward on the x axis of a plane is to a study."""

VERBS = {"up": ("rises", "rise"), "down": ("falls", "fall")}
"""By a claim's direction: the verb as it is asserted, and after "does not"."""

COMPARED = {"base": ("", "(tuned − base)"), "peak": ("under its peak along training", "(tuned − peak)")}
"""By what a claim compares the tuned model with: in words, and as a difference."""


def metric_name(metric: str) -> str:
    """A metric in words."""
    return METRICS.get(metric, metric.replace("_", " "))


def box_words(axes: Sequence[str], reference: Sequence[float], scale: Sequence[float]) -> str:
    """Where hypervolumes on (x, y) start, and in which units they are."""
    at, unit = (", ".join(f"{value:.4g}" for value in values) for values in (reference, scale))
    return f"hypervolumes on ({', '.join(axes)}) start at ({at}), in units of ({unit})"


def cost_words(cost: Mapping[str, float], unit: str = "") -> str:
    """Predictions made, and what loops without shared states would make; empty if that is not on record."""
    if not {"predictions", "separate", "published"} <= set(cost):
        return ""
    counts = [cost[name] for name in ("predictions", "separate", "published")]
    made, separate, published = (f"{count:.0f}" if count >= 1000 else f"{count:g}" for count in counts)
    less = [f"{100 * (1 - counts[0] / count):.0f} % fewer" for count in counts[1:]]
    return (
        f"{made} predictions{unit}; a loop for each arm that makes weights 0 and 1 by one prediction makes "
        f"{separate} ({less[0]}), the published script, with both at every step, {published} ({less[1]})"
    )
