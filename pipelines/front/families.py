"""Families of arms: their names, and which arms a comparison counts to each.

What made an arm's adapter and how it samples decide its family:

    kl      KL-regularized trainings, sampled as they are
    early_kl  likewise, with a KL at drawn steps (train.kl_steps), which sees the early ones
    lora    the adapter scaled down, or up beyond 1
    fixed   one weight up to 1 at every step: DeRaDiff (arXiv 2601.20198)
    rlg     one weight above 1 at every step: RLG (arXiv 2508.21016)
    aig     a weight that changes along sampling and stays within 1 (arXiv 2409.06493); the published sweep has `step:f`
            among AIG's schedules, so it is counted here, though it is ImageReFL's combined generation (arXiv
            2505.22569)
    beyond  annealed extrapolation: a weight that changes and exceeds 1; with an `auto` weight whatever it comes to, so
            that training seeds agree
    coin    one model a step, drawn with the weight as its probability: Diffusion Blend (arXiv 2505.18547)
    aigw, beyondw  `aig` and `beyond` in weight space, one prediction a step
    early   snapshots of the training
    guidance      base and tuned at other guidance scales, or with guidance in an interval (arXiv 2404.07724)
    autoguidance  the tuned model against a snapshot of its training, at a weight above 1 (arXiv 2406.02507)
    soup    averaged adapters: rewarded soups (arXiv 2306.04488)
    best    of n images of the base the one that the proxy ranks highest, at n times the base's predictions

The ways from `lora` to `beyondw` are of the unregularized adapter; `kl-aig` and its like are the same on KL-regularized
ones, whatever the KL's steps, and `trial-aig` on those that a search drew. The published protocol sweeps AIG for every
KL weight, so comparisons count the arms of `aig` to `kl-aig` too. That sweep holds the KL-tuned models as well (weight
1), which `kl-aig` does not: they are its rival, and a family that contains its rival cannot fall behind it.
"""

from __future__ import annotations

from collections.abc import Collection

WAYS = {
    "lora": "LoRA scaling",
    "fixed": "fixed mix (DeRaDiff)",
    "rlg": "constant extrapolation (RLG)",
    "coin": "coin (Diffusion Blend)",
    "aig": "AIG",
    "aigw": "AIG in weight space",
    "beyond": "annealed extrapolation",
    "beyondw": "annealed extrapolation in weight space",
}
"""Ways to sample an adapter between the base and the tuned model, and beyond it."""
FAMILIES = {
    "base": "base",
    "tuned": "tuned",
    "kl": "KL",
    "early_kl": "KL on early steps",
    "trial": "searched settings",
    **WAYS,
    "early": "early stopping",
    "guidance": "other guidance scales",
    "autoguidance": "autoguidance",
    "soup": "averaged adapters (rewarded soups)",
    "best": "best-of-n of the base",
    **{f"kl-{way}": f"{name} on every KL weight" for way, name in WAYS.items()},
    **{f"trial-{way}": f"{name} on every searched setting" for way, name in WAYS.items()},
}
"""Families in the order in which they are shown, and their names in words."""
_SHORT = {
    "early_kl": "early KL",
    "fixed": "fixed mix",
    "rlg": "RLG",
    "coin": "coin",
    "aigw": "AIG in weights",
    "beyond": "extrapolation",
    "beyondw": "extrapolation in weights",
    "guidance": "guidance",
    "soup": "averaged adapters",
    "best": "best-of-n",
}
ANNEALED = ("aig", "aigw", "beyond", "beyondw")
"""The ways that anneal, which a report compares with the others."""
OURS = tuple(f"{adapter}{way}" for way in ANNEALED for adapter in ("", "kl-", "trial-"))
"""Their families."""


def members(family: str) -> tuple[str, ...]:
    """The families whose arms a comparison counts to this one."""
    adapter, _, way = family.partition("-")
    if not way:
        return (family,)
    return (way, f"kl-{way}") if adapter == "kl" else (way, f"kl-{way}", f"trial-{way}")


def way_of(family: str) -> str:
    """The way that a family samples its adapters, without the adapters: `aig` of `kl-aig`."""
    return family.rpartition("-")[2]


def family_name(family: str, present: Collection[str] = ()) -> str:
    """A family in words, distinct from the same on every KL weight if that is present beside it.

    `kl-WAY` is on KL-regularized adapters alone if `WAY` is not present.
    """
    if family == "all":
        return "all arms"
    if family.startswith("kl-") and present and way_of(family) not in present:
        return f"{WAYS[way_of(family)]} on KL > 0"
    words = FAMILIES.get(family, family)
    return f"{words} on KL 0" if _on_others(family, present) else words


def short_name(family: str, present: Collection[str] = ()) -> str:
    """The same in few words, for legends and terminals: "extrapolation in weights, KL > 0"."""
    if family == "all":
        return "all arms"
    adapter, _, way = family.rpartition("-")
    adapters = {
        "kl": "KL > 0" if present and way not in present else "every KL",
        "trial": "every setting",
        "": "KL 0" if _on_others(family, present) else "",
    }
    return ", ".join(filter(None, (_SHORT.get(way, FAMILIES.get(way, way)), adapters[adapter])))


def _on_others(family: str, present: Collection[str]) -> bool:
    """Whether the same on other adapters is present too."""
    return any(f"{adapter}-{family}" in present for adapter in ("kl", "trial"))


def counted(name: str, trainings: int | None) -> str:
    """A family's name with the number of trainings that it pays for, if known."""
    if trainings is None:
        return name
    count = f"{trainings} training{'s' * (trainings != 1)}"
    return f"{name[:-1]}, {count})" if name.endswith(")") else f"{name} ({count})"
