"""The phenomenon that the project is about, on the shipped world: tuning to a reward raises it and costs diversity,
on prompts that were not trained on.
"""

from __future__ import annotations

import pytest
import torch
from models import add_random_adapter

from aig import adapters, draft, rewards
from aig.metrics import features, per_prompt, vendi_score
from aig.models import load
from aig.sampler import Arm, sample_arms
from aig.world.scenes import held_out_prompts, training_prompts

STEPS, BATCH, LR = 30, 8, 2e-3
PROMPTS = held_out_prompts()[:6]


def measured(model, arms: list[Arm], reward) -> dict[str, tuple[float, float]]:
    """Mean reward and mean within-prompt Vendi score of each arm, on the same prompts and noise."""
    prompts, seeds = [p for p in PROMPTS for _ in range(8)], list(range(8)) * len(PROMPTS)
    extract = features.load("world")
    samples = sample_arms(model, prompts, seeds, arms)
    out = {}
    for arm in arms:
        images = model.decode(samples.latents[arm.name])
        diversity = per_prompt(vendi_score, extract(images), prompts).mean()
        out[arm.name] = (reward(images, prompts).mean().item(), float(diversity))
    return out


@pytest.mark.timeout(600)
def test_a_short_unregularized_training_hacks_the_reward_as_a_random_adapter_does_not():
    model, reward = load("tiny"), rewards.load("fragile")
    adapters.attach(model.denoiser, "tuned", rank=8, alpha=8, targets="everywhere", seed=0)
    parameters = adapters.parameters(model.denoiser, "tuned")
    optimizer = torch.optim.Adam(parameters, lr=LR)
    config = draft.DraftConfig(model.defaults, k=3, micro_batch=BATCH)  # K = 3 collapses in fewer steps than K = 1
    for step in range(STEPS):
        optimizer.zero_grad()
        draft.train_step(model, reward, "tuned", *draft.draw(training_prompts(), 0, step, BATCH), config)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    # A random adapter of the same size: its weights have the tuned one's root mean square.
    size = torch.cat([p.detach().flatten() for p in parameters]).square().mean().sqrt().item()
    add_random_adapter(model, "random", size=size, rank=8)
    found = measured(
        model,
        [
            Arm("base", None, 1, "base"),
            Arm("tuned", "tuned"),
            Arm("random", "random"),
            Arm("aig", "tuned", 1, "power:2"),
        ],
        reward,
    )
    gain = {name: found[name][0] - found["base"][0] for name in found}
    loss = {name: found["base"][1] - found[name][1] for name in found}
    assert gain["tuned"] > 1.0, found
    assert gain["tuned"] > gain["random"] + 1.0, found
    assert loss["tuned"] > 0.2, found
    assert 0 < gain["aig"] < gain["tuned"] and loss["aig"] < loss["tuned"], found
