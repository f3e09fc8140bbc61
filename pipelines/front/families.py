"""Families of arms: their names, and which arms a comparison counts to each.

What made an arm's adapter and how it samples decide its family:

    kl      KL-regularized trainings, sampled as they are
    early_kl  likewise, with a KL at drawn steps (train.kl_steps), which sees the early ones
    lora    the adapter scaled down
    fixed   one weight at every step: DeRaDiff (arXiv 2601.20198)
    aig     a weight that changes along sampling (arXiv 2409.06493); the published sweep has `step:f` among AIG's
            schedules, so it is counted here, though it is ImageReFL's combined generation (arXiv 2505.22569)
    early   snapshots of the training

`lora`, `fixed` and `aig` are of the unregularized adapter; `kl-aig` and its like are the same on KL-regularized ones,
whatever the KL's steps, and `trial-aig` on those that a search drew. The published protocol sweeps AIG for every KL
weight, so comparisons count the arms of `aig` to `kl-aig` too. That sweep holds the KL-tuned models as well (weight 1),
which `kl-aig` does not: they are its rival, and a family that contains its rival cannot fall behind it.
"""

from __future__ import annotations

from collections.abc import Collection

WAYS = {"lora": "LoRA scaling", "fixed": "fixed mix (DeRaDiff)", "aig": "AIG"}
"""Ways to sample an adapter between the base and the tuned model."""
FAMILIES = {
    "base": "base",
    "tuned": "tuned",
    "kl": "KL",
    "early_kl": "KL on early steps",
    "trial": "searched settings",
    **WAYS,
    "early": "early stopping",
    **{f"kl-{way}": f"{name} on every KL weight" for way, name in WAYS.items()},
    **{f"trial-{way}": f"{name} on every searched setting" for way, name in WAYS.items()},
}
"""Families in the order in which they are shown, and their names in words."""
OURS = ("aig", "kl-aig", "trial-aig")
"""The families that a report compares with the others."""


def members(family: str) -> tuple[str, ...]:
    """The families whose arms a comparison counts to this one."""
    adapter, _, way = family.partition("-")
    if not way:
        return (family,)
    return (way, f"kl-{way}") if adapter == "kl" else (way, f"kl-{way}", f"trial-{way}")


def family_name(family: str, present: Collection[str] = ()) -> str:
    """A family in words, distinct from the same on every KL weight if that is present beside it."""
    if family == "all":
        return "all arms"
    words = FAMILIES.get(family, family)
    return f"{words} on KL 0" if any(f"{adapter}-{family}" in present for adapter in ("kl", "trial")) else words


def counted(name: str, trainings: int | None) -> str:
    """A family's name with the number of trainings that it pays for, if known."""
    if trainings is None:
        return name
    count = f"{trainings} training{'s' * (trainings != 1)}"
    return f"{name[:-1]}, {count})" if name.endswith(")") else f"{name} ({count})"
