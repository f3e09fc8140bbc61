"""Results of a run that were never computed, for the tests of what reads them."""

from __future__ import annotations

from typing import Any

from pipelines.front.results import Arm, Difference, Front, Plane, StudyResult
from pipelines.show.estimates import Estimate

NOTHING = dict.fromkeys(("adapter", "reward", "k", "kl_weight", "lr", "rank", "train_seed", "step", "stopped"))


def arm(name: str, family: str, **more: Any) -> Arm:
    """An arm labelled by its name."""
    about = {"id": name, "lora_scale": 1.0, "schedule": "tuned", "members": (), "images": 12, "front_probability": 0.5}
    notes = {"broken": None, "warning": None, "metrics": {}}
    return Arm(**{"name": name, "label": name, "family": family, **NOTHING, **about, **notes, **more})


def plane(x: str = "fragile", *differences: Difference, **more: Any) -> Plane:
    """A plane of a reward and vendi."""
    about = {"reference": (0.0, 0.0), "scale": (1.0, 1.0), "points": {}, "fronts": {"all": ()}, "hypervolume": {}}
    return Plane(**{"x": x, "y": "vendi", "differences": differences, **about, **more})


def study(*planes: Plane, **more: Any) -> StudyResult:
    """One training seed, on the fragile reward, of the base, the tuned model and some arms between them."""
    families = ("base", "tuned", "kl", "lora", "aig", "early", "kl-aig")
    about = {
        "name": "fragile-k1-s0", "reward": "fragile", "held_out": "robust", "k": 1, "train_seeds": (0,), "varied": {},
        "leading": True, "trainings": {"kl": 4, "lora": 1, "aig": 1, "early": 1, "kl-aig": 3, "all": 4},
        "arms": tuple(arm(family, family) for family in families), "dominance": (), "claims": (),
    }  # fmt: skip
    return StudyResult(**{**about, "planes": {own.x: own for own in planes or (plane(),)}, **more})


def front(*studies: StudyResult, **more: Any) -> Front:
    """The results of four prompts and three seeds."""
    about: dict[str, Any] = {
        "diversity": "vendi",
        "level": 0.95,
        "n_bootstrap": 1000,
        "seed": 0,
        "interval": "studentized",
    }
    about |= {"prompts": 4, "seeds": 3, "prompt_lists": {"evaluate": 4, "train": None, "elsewhere": 0}, "cost": {}}
    return Front(**{**about, "studies": studies or (study(),), **more})


def difference(a: str, b: str, value: float, verdict: str | None, **more: Any) -> Difference:
    """A difference with an interval of 0.3 to either side."""
    about = {
        "p": 0.01,
        "p_adjusted": 0.02,
        "arms": (4, 3),
        "size": 3,
        "estimate": Estimate(value, value - 0.3, value + 0.3),
    }
    return Difference(**{"a": a, "b": b, "verdict": verdict, **about, **more})
