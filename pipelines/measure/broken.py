"""Broken arms: degenerate images (NaN, flat), which are shown with the reason and counted on no front.

Broken are pixels, scores or features that are not finite, images of one flat colour, and features that are all the
same. Images far from the base's are not: tuning rightly moves mean and style, and precision falls to nothing if all
features move by a deviation and keep their spread. So low precision is only a warning.

Pixels are judged before they are rounded to 8 bits, which turns NaN into a colour that every reward finds plausible.
"""

from __future__ import annotations

import numpy as np

from pipelines.config import Measure
from pipelines.evaluate.pixels import PIXEL_STD

FLAT = 1 / 255  # one of 256 levels: images of less deviation are one flat colour
BLOCK = 2**22  # numbers of features checked at once


def of_images(settings: Measure, std: np.ndarray) -> list[str]:
    """What is wrong with an arm's images of these `pixel_std` (n,)."""
    bad, flat = int(np.isnan(std).sum()), int((std < FLAT).sum())
    reasons = [f"{bad} of {std.size} images have pixels that are not finite"] if bad else []
    if flat > settings.max_constant * std.size:
        reasons.append(f"{flat} of {std.size} images are one flat colour")
    return reasons


def of_scores(scores: dict[str, np.ndarray], arm: int) -> list[str]:
    """The scores {name: (arms, ...)} that are finite for another arm and not for this one."""
    reasons = []
    for name, values in scores.items():
        bad = int((np.isfinite(values).any(axis=0) & ~np.isfinite(values[arm])).sum())
        if bad and name != PIXEL_STD:
            reasons.append(f"{name} is not finite for {bad} of {values[arm].size} images")
    return reasons


def of_features(features: np.ndarray) -> list[str]:
    """Why no measure of sets can be computed of features (..., d); empty if one can."""
    rows = features.reshape(-1, features.shape[-1])
    parts = np.array_split(rows, -(-rows.size // BLOCK))
    bad = sum(int((~np.isfinite(part).all(axis=1)).sum()) for part in parts)
    if bad:
        return [f"features of {bad} of {len(rows)} images are not finite"]
    varied = any((part != rows[0]).any() for part in parts)
    return [] if varied else [f"features of all {len(rows)} images are the same"]


def warning(settings: Measure, precision: float) -> str | None:
    """A note on an arm of which few images lie among the base model's, though they may be sound."""
    if precision < settings.min_precision:
        return f"precision {precision:.3g} is under {settings.min_precision:g}"
    return None
