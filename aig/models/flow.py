"""The resolution-dependent shift of the flow-matching families."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.flux.pipeline_flux import calculate_shift

SHIFT_KEYS = {
    "base_seq_len": "base_image_seq_len",
    "max_seq_len": "max_image_seq_len",
    "base_shift": "base_shift",
    "max_shift": "max_shift",
}


def dynamic_shift(scheduler: Any, sequence: int) -> dict[str, float]:
    """The scheduler's shift `mu` for an image of `sequence` tokens, if its configuration has one."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    return {"mu": calculate_shift(sequence, **{name: config[key] for name, key in SHIFT_KEYS.items() if key in config})}
