"""The path length of each adapter whose arms need it, measured once in Ray tasks and kept beside its weights.

It decides the weight of a schedule as `ramp:0.5,auto`, and warns of a weight of one's own that goes too far.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
import torch

from aig import adapters
from aig.sampler import Sampling, tuned_length
from pipelines import config as configuration
from pipelines.cluster import resources
from pipelines.cluster.connect import Cluster, actor
from pipelines.config import VALIDATION_SEEDS, Config, ConfigError
from pipelines.evaluate import pools
from pipelines.runs.directory import RunDir
from pipelines.study import arms, lengths, models
from pipelines.study.arms import StudyArm
from pipelines.study.prompts import EVALUATE, TRAIN, resolve_prompts
from pipelines.study.resolved import drawing, hashed, resolve
from pipelines.study.trainings import trainings

PROMPTS, SEEDS = 3, 8
HELD, WARNED = 0.3, 0.4
"""Weight times path length. On twelve of thirteen adapters (both rewards, K of 1 and 3, KL weights of 1 and 10) the
best weight of the last step came to 0.16 to 0.31, as `aig.schedules.REACH` does; one weak adapter bore more."""


def ensure(config: Config, defaults: Sampling, connect: Callable[[], Cluster], memory: int = 0) -> None:
    """Measure what the run's arms need and lack, and say what follows from it.

    `connect` connects to Ray, and is called only if something is missing; `memory` as in `pools.generators`.
    ConfigError if an adapter has no length by which to fit a weight.
    """
    of = [arm for arm in resolve(config).arms if arm.auto or _reach(config, arm) > 1]
    needed = list(dict.fromkeys(arm.arm.adapter for arm in of if arm.arm.adapter))
    if not needed:
        return
    sampling, (which, prompts) = models.evaluation_sampling(config, defaults), _prompts(config)
    common = {**drawing(config, sampling), "prompts": prompts, "seeds": _seeds()}
    keys = {name: hashed({**common, "adapter": models.adapter_digest(config, name)}) for name in needed}
    missing = [name for name in needed if (lengths.record(config, name) or {}).get("key") != keys[name]]
    if missing:
        print(f"Measuring the path length of {', '.join(missing)} on the first {len(prompts)} prompts of {which}.")
        measured, run = _measured(config, missing, prompts, sampling, connect(), memory), RunDir.of(config)
        for name, length in measured.items():
            _check(name, length, [arm for arm in of if arm.arm.adapter == name])
            known = length if math.isfinite(length) else None
            run.write_json(lengths.file(config, name), {"length": known, "key": keys[name], **common})
    study = resolve(config)
    for name in needed:
        _tell(config, name, [arm for arm in study.arms if arm.arm.adapter == name])


def _check(name: str, length: float, own: Sequence[StudyArm]) -> None:
    """ConfigError if a weight is to follow from a length that gives none."""
    auto = next((arm.auto for arm in own if arm.auto), None)
    if auto is not None and not 0 < length < math.inf:
        raise ConfigError(
            f"adapter {name!r} has path length {length:g} to the base, by which {auto} has no weight: it does nothing "
            "or draws no images; leave the schedule or the adapter out"
        )


def _reach(config: Config, arm: StudyArm) -> float:
    """The largest weight of a step, with the LoRA's scale; 0 of autoguidance, whose weight is not against the base."""
    if arm.arm.against is not None:
        return 0.0
    return arm.arm.lora_scale * max(arms.weights(config, arm.arm.curve))


def _prompts(config: Config) -> tuple[str, list[str]]:
    """The first of the training prompts, or of those that judge if the run trains nothing, and which those are."""
    key, why = (TRAIN, "") if trainings(config) else (EVALUATE, ", since this run trains nothing")
    return key + why, resolve_prompts(config, key)[:PROMPTS]


def _seeds() -> list[int]:
    """Noise of validations, which no evaluation uses."""
    return [VALIDATION_SEEDS + index for index in range(SEEDS)]


def _tell(config: Config, name: str, own: Iterable[StudyArm]) -> None:
    """Print the adapter's length, the weights that follow from it, and which fixed weights go too far."""
    length = lengths.read(config, name) or 0.0
    auto = dict.fromkeys(f"{arm.auto} is {arm.arm.schedule}" for arm in own if arm.auto)
    print(f"{name}: path length {length:.3g}{', so ' if auto else ''}{' and '.join(auto)}")
    for arm in own:
        reach = _reach(config, arm)
        if reach > 1 and not arm.auto and reach * length > WARNED:
            print(
                f"warning: {arm.arm.name}: weight {reach:.3g} times path length {length:.3g} is {reach * length:.2g}, "
                f"beyond what was seen to hold ({HELD:g})",
                file=sys.stderr,
            )


def _measured(
    config: Config, names: Sequence[str], prompts: Sequence[str], sampling: Sampling, cluster: Cluster, memory: int
) -> Mapping[str, float]:
    """The lengths, by as many tasks as there are generators."""
    pool = pools.generators(config, cluster, memory)
    task = ray.remote(_task).options(**actor(resources.generator(config.evaluate, pool.memory).one))
    count = min(pool.start, len(names))
    settings = configuration.to_dict(config)
    parts = ray.get([task.remote(settings, names[i::count], prompts, sampling) for i in range(count)])
    return {name: length for part in parts for name, length in part.items()}


def _task(
    settings: dict[str, Any], names: Sequence[str], prompts: Sequence[str], sampling: Sampling
) -> dict[str, float]:
    config = configuration.from_dict(settings)
    torch.set_num_threads(config.evaluate.threads)
    files, model = RunDir.of(config), models.load_model(config)
    files.pull(files.adapters)
    measured = {}
    for name in names:
        adapters.load(model.denoiser, files.adapters / name, name)
        measured[name] = tuned_length(model, name, prompts, _seeds(), config.run.seed, sampling)
    return measured
