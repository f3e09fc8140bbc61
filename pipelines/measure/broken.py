"""Arms whose images are unsound: they are shown with the reason, and no front or hypervolume counts them.

Unsound are pixels, scores or features that are not finite, images of one flat colour, and features that are all the
same. To be far from the base's images is not: tuning rightly moves mean and style, and precision falls to nothing where
all features move by a deviation and keep their spread. So little precision is a warning, shown beside the arm.

What can be said of an image is measured where it is drawn, before it is rounded to 8 bits: a pixel that is not a number
becomes some colour there, and every reward of it looks plausible.
"""

from __future__ import annotations

import numpy as np

from pipelines.config import Measure
from pipelines.evaluate.pixels import PIXEL_STD

# Under one of 256 levels an image is one flat colour.
FLAT = 1 / 255
BLOCK = 2**22  # numbers of features that are looked at together


def of_images(settings: Measure, std: np.ndarray) -> list[str]:
    """What is wrong with an arm's images, by their `pixel_std` (n,)."""
    bad, flat = int(np.isnan(std).sum()), int((std < FLAT).sum())
    found = [f"{bad} of {std.size} images have pixels that are not finite"] if bad else []
    if flat > settings.max_constant * std.size:
        found.append(f"{flat} of {std.size} images are one flat colour")
    return found


def of_scores(scores: dict[str, np.ndarray], arm: int) -> list[str]:
    """The scores {name: (arms, ...)} that are not finite for this arm where they are for another."""
    found = []
    for name, values in scores.items():
        bad = int((np.isfinite(values).any(axis=0) & ~np.isfinite(values[arm])).sum())
        if bad and name != PIXEL_STD:
            found.append(f"{name} is not finite for {bad} of {values[arm].size} images")
    return found


def of_features(features: np.ndarray) -> list[str]:
    """What keeps measures of sets from being computed of features (..., d)."""
    rows = features.reshape(-1, features.shape[-1])
    parts = np.array_split(rows, -(-rows.size // BLOCK))
    bad = sum(int((~np.isfinite(part).all(axis=1)).sum()) for part in parts)
    if bad:
        return [f"features of {bad} of {len(rows)} images are not finite"]
    varied = any((part != rows[0]).any() for part in parts)
    return [] if varied else [f"features of all {len(rows)} images are the same"]


def warning(settings: Measure, precision: float) -> str | None:
    """What a reader should know where few images lie among the base model's, though they may be sound."""
    if precision < settings.min_precision:
        return f"precision {precision:.3g} is under {settings.min_precision:g}"
    return None
