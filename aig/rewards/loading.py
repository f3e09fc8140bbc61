"""Load rewards from specifications."""

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
    """Load a reward by name or mapping, or a weighted sum by list or text (`0.5*pickscore + 0.5*hpsv2.1`).

    Names: `pickscore`, `hpsv2`, `hpsv2.1`, `clip`, `aesthetic`, `imagereward`; the embedded world's `fragile` (alias
    `world`) and `robust` to tune to, `gold`, `gold_a`, `gold_b` to judge by; `package.module:callable` for your own. A
    mapping's keys are `RewardSpec`'s. The towers compute in `dtype`, whatever the checkpoint's: float32 for reports,
    bfloat16 for speed; scores are float32 (float64 in float64). `statistics`, `{name: (mean, standard deviation)}` of
    the base model's scores, standardize a weighted sum's terms. Raises ValueError that names the specification, the
    nearest known name and the fix.

    Examples:
        >>> reward = aig.rewards.load("0.5*fragile + 0.5*robust", statistics={"fragile": (20, 2), "robust": (20, 2)})
        >>> reward(torch.rand(2, 3, 32, 32), ["a red star", "a blue heart"]).shape
        torch.Size([2])
    """
    terms = parse(spec)
    loaded = {term.column: _load_one(term, torch.device(device), dtype) for term in terms}
    if len(terms) == 1 and terms[0].weight == 1:
        return loaded[terms[0].column]
    return WeightedSum(loaded, {term.column: float(term.weight) for term in terms}, statistics)


def needed(spec: Spec) -> list[str]:
    """The addresses that `load` would download from, none if everything is here; loads no weights.

    Call it before workers start. Raises ValueError for files that cannot be downloaded: what to get, from where, to
    which path.

    Examples:
        >>> aig.rewards.needed("fragile"), aig.rewards.reads_prompts("0.5*fragile + 0.5*aesthetic")
        ([], True)
    """
    return missing(source for term in parse(spec) for source in _module(term).sources(term))


def digests(spec: Spec) -> dict[str, str]:
    """A hash, 32 hex digits, by column, of each term's weights files, which are downloaded if missing.

    For a `package.module:callable` it is that of its module's source (`aig.digests.of_callable`). Loads no weights.
    Raises ValueError as `load` does.

    Examples:
        >>> {name: len(digest) for name, digest in aig.rewards.digests("fragile").items()}
        {'fragile': 32}
    """
    return {term.column: _digest(term) for term in parse(spec)}


def _digest(term: RewardSpec) -> str:
    if term.family == "function":
        _load_one(term, torch.device("cpu"), torch.float32)  # for its error
        return of_callable(term.name)
    if term.family == "world":
        return weights.digest_of(WORLD[term.name][0])
    return digest(_module(term).sources(term), term.architecture)


def reads_prompts(spec: Spec) -> bool:
    """Whether a reward, or any term of a sum, reads the prompt: the aesthetic one and callables that say so do not.

    Loads no weights. Raises ValueError for an unknown name or key.
    """
    return any(_reads_prompts(term) for term in parse(spec))


def _reads_prompts(term: RewardSpec) -> bool:
    if term.family == "function":
        return getattr(_load_one(term, torch.device("cpu"), torch.float32), "reads_prompts", True)
    return term.family != "aesthetic"


def check_trainable(reward: Reward) -> None:
    """Raise ValueError, with the reason, for a reward that a model must not or cannot be tuned to.

    Examples:
        >>> aig.rewards.check_trainable(aig.rewards.load("fragile"))
        >>> aig.rewards.check_trainable(aig.rewards.load("gold"))
        Traceback (most recent call last):
        ValueError: reward 'gold' exists to judge and is never tuned to; train on another, as fragile or robust
    """
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
    # One module per family, imported on first use: open_clip and transformers take seconds.
    return import_module(f"aig.rewards.{term.family}")


def _load_one(term: RewardSpec, device: torch.device, dtype: torch.dtype) -> Reward:
    return _module(term).load(term, device, dtype)
