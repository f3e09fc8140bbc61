"""From a specification to a reward."""

from __future__ import annotations

from importlib import import_module

import torch

from aig.digests import of_callable
from aig.rewards.base import Reward
from aig.rewards.spec import RewardSpec, Spec, parse
from aig.rewards.weighted import Statistics, WeightedSum
from aig.rewards.world import WORLD
from aig.vision import digest, missing
from aig.world import weights


def load(
    spec: Spec,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    statistics: Statistics | None = None,
) -> Reward:
    """A reward by name, by mapping, or a weighted sum of several by list or in words (`0.5*pickscore + 0.5*hpsv2.1`).

    Names: `pickscore`, `hpsv2`, `hpsv2.1`, `clip`, `aesthetic`, `imagereward`; the embedded world's `fragile` (also
    called `world`) and `robust` to tune to, `gold`, `gold_a`, `gold_b` to judge by; `package.module:callable` for your
    own. A mapping's keys are `RewardSpec`'s. `dtype` is what the towers compute in, whatever the checkpoint's: float32
    for what is reported, bfloat16 for speed; scores are float32 (float64 in float64). `statistics`, `{name: (mean,
    standard deviation)}` of the base model's scores, z-scores a weighted sum's terms.

    Raises ValueError that names what was asked for, the nearest known name and the fix.
    """
    terms = parse(spec)
    loaded = {term.column: _load_one(term, torch.device(device), dtype) for term in terms}
    if len(terms) == 1 and terms[0].weight == 1:
        return loaded[terms[0].column]
    return WeightedSum(loaded, {term.column: float(term.weight) for term in terms}, statistics)


def needed(spec: Spec) -> list[str]:
    """The addresses that `load` would download from, none where everything is here; loads no weights.

    Raises ValueError where something can neither be found nor downloaded: what to get, from where, to which path. Call
    it before workers start.
    """
    return missing(source for term in parse(spec) for source in _module(term).sources(term))


def digests(spec: Spec) -> dict[str, str]:
    """A hash of what each term's scores come from beside its settings, by column: its weights' files, downloaded where
    they are not here; of a `package.module:callable` its module's source (`aig.digests.of_callable`).

    Loads no weights. Raises ValueError as `load` does.
    """
    return {term.column: _digest(term) for term in parse(spec)}


def _digest(term: RewardSpec) -> str:
    if term.family == "function":
        _load_one(term, torch.device("cpu"), torch.float32)  # which says what is wrong with it
        return of_callable(term.name)
    if term.family == "world":
        return weights.digest_of(WORLD[term.name][0])
    return digest(_module(term).sources(term), term.architecture)


def reads_prompts(spec: Spec) -> bool:
    """Whether a reward, or a term of a sum, reads the prompt: the aesthetic one does not, nor a callable that says so.

    Loads no weights. Raises ValueError for what is unknown.
    """
    return any(_reads_prompts(term) for term in parse(spec))


def _reads_prompts(term: RewardSpec) -> bool:
    if term.family == "function":
        return getattr(_load_one(term, torch.device("cpu"), torch.float32), "reads_prompts", True)
    return term.family != "aesthetic"


def check_trainable(reward: Reward) -> None:
    """ValueError, with the reason, for a reward that a model must not or cannot be tuned to."""
    for part in reward.components.values() if isinstance(reward, WeightedSum) else [reward]:
        if not part.trainable:
            raise ValueError(
                f"reward {part.name!r} exists to judge and is never tuned to; train on another, as fragile or robust"
            )
        if not part.differentiable:
            raise ValueError(
                f"reward {part.name!r} is not differentiable: it can score images, but DRaFT cannot train on it"
            )


def _module(term: RewardSpec):
    # One module a family, imported when asked for: open_clip and transformers take seconds.
    return import_module(f"aig.rewards.{term.family}")


def _load_one(term: RewardSpec, device: torch.device, dtype: torch.dtype) -> Reward:
    return _module(term).load(term, device, dtype)
