"""Search spaces of the sweep."""

from __future__ import annotations

from typing import Any

from ray import tune

from pipelines import layout
from pipelines.config import Config


def grid(config: Config, keys: list[str]) -> dict[str, Any]:
    """One grid dimension, the adapter's key: it stands for (reward, K, KL weight, training seed) and names the trial.

    `keys` are those still to be trained. Their order is the order of starting.
    """
    known = {layout.adapter_key(train) for train in layout.trainings(config)}
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a training of this sweep: it has {', '.join(sorted(known))}")
    return {"adapter": tune.grid_search(keys)}
