"""Check the embedded world's weights on held-out scenes, and the base model's samples by the judges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from aig.world.networks import BUILDERS, CLASSES, NUMBERS, FactorNet, Gold, PreferenceReward
from aig.world.scenes import PATTERNS, TONES, all_prompts, captions, parse_caption, render, sample_scenes, scene_utility
from aig.world.train_scores import draw_preferences
from aig.world.training import generator_for
from aig.world.weights import load, verify

HELD_OUT = 10**9  # no training seed, so its streams are disjoint from all training data
CHUNK = 256


def chunks(n: int) -> range:
    return range(math.ceil(n / CHUNK))


@dataclass
class PairAccuracy:
    """Agreement with noisy held-out preferences over `n` pairs."""

    n: int
    reward: float
    ceiling: float  # of a reward that knows the hidden utility
    order: float  # the reward's agreement with the utility's order, without the labels' noise


@torch.no_grad()
def pair_accuracy(reward: PreferenceReward, n: int = 8192, seed: int = 0) -> PairAccuracy:
    """Measure a reward on at least `n` held-out pairs (whole chunks of 256)."""
    device = reward.logit_scale.device
    right, ceiling, order = [], [], []
    for chunk in chunks(n):
        pairs = draw_preferences(CHUNK, generator_for(HELD_OUT, seed, chunk))
        first, second = (render(scenes).to(device) for scenes in pairs.scenes)
        prefers = (reward(first, pairs.captions) > reward(second, pairs.captions)).cpu()
        label, better = pairs.label[:, 0] > 0.5, pairs.better[:, 0]
        right.append(prefers == label)
        ceiling.append(better == label)
        order.append(prefers == better)
    share = [torch.cat(parts).float().mean().item() for parts in (right, ceiling, order)]
    return PairAccuracy(len(chunks(n)) * CHUNK, *share)


@torch.no_grad()
def factor_accuracy(net: FactorNet, n: int = 8192, seed: int = 1) -> dict[str, float]:
    """On at least `n` clean held-out scenes: accuracy of each class, R^2 of each number, gold's correlation with truth.

    Keys are those of `CLASSES` and `NUMBERS`, and "gold".
    """
    device = net.mean.device
    right: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
    estimate: dict[str, list[Tensor]] = {name: [] for name in (*NUMBERS, "gold")}
    true: dict[str, list[Tensor]] = {name: [] for name in (*NUMBERS, "gold")}
    for chunk in chunks(n):
        # Half of the scenes do not match their caption, as in the preferences.
        drawn = draw_preferences(CHUNK, generator_for(HELD_OUT, seed, chunk), group=1)
        scenes = drawn.scenes[0]
        images = render(scenes).to(device)
        read = net(images)
        for name in CLASSES:
            right[name].append(getattr(read, name).argmax(1).cpu() == getattr(scenes, name))
        for name in NUMBERS:
            estimate[name].append(getattr(read, name).cpu())
            true[name].append(getattr(scenes, name))
        estimate["gold"].append(net.gold(images, drawn.captions).cpu())
        true["gold"].append(scene_utility(scenes, [parse_caption(text) for text in drawn.captions]))
    table = {name: torch.cat(parts).float().mean().item() for name, parts in right.items()}
    for name in NUMBERS:
        truth, error = torch.cat(true[name]), torch.cat(estimate[name]) - torch.cat(true[name])
        table[name] = 1 - (error.square().mean() / truth.var()).item()
    table["gold"] = torch.corrcoef(torch.stack([torch.cat(estimate["gold"]), torch.cat(true["gold"])]))[0, 1].item()
    return table


@torch.no_grad()
def layout(judge: FactorNet, features: FactorNet, images: Tensor) -> dict[str, tuple[float, float]]:
    """Mean and deviation of the layout that a judge reads in images, and of the extractor's background colours."""
    read = judge(images)
    ground = (features(images).extras["ground"] + 2) / 4  # (N, 3) RGB
    values = {"x": read.x, "y": read.y, "radius": read.radius}
    values |= {f"ground {channel}": ground[:, i] for i, channel in enumerate(("red", "green", "blue"))}
    values |= {f"tone {tone}": read.tone.softmax(1)[:, i] for i, tone in enumerate(TONES)}
    values |= {f"pattern {pattern}": read.pattern.softmax(1)[:, i] for i, pattern in enumerate(PATTERNS)}
    return {name: (value.mean().item(), value.std().item()) for name, value in values.items()}


@torch.no_grad()
def base_samples(folder: Path, n: int, device: torch.device) -> tuple[Tensor, list[str]]:
    """`n` images (n, 3, 32, 32) of the text-to-image model in `folder`, at CFG 3 in 10 steps, and their prompts.

    Each image has a generator of its own, so it does not depend on `n`.
    """
    pipe: Any = DiffusionPipeline.from_pretrained(folder).to(device)
    pipe.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt, _ in zip(all_prompts() * math.ceil(n / 48), range(n), strict=False)]
    images = []
    for start in range(0, n, 48):
        batch = prompts[start : start + 48]
        generators = [generator_for(HELD_OUT, 2, start + i) for i in range(len(batch))]
        output = pipe(batch, num_inference_steps=10, guidance_scale=3, output_type="pt", generator=generators)
        images.append(output.images.float().cpu())
    return torch.cat(images), prompts


def check(weights: Path, pairs: int, samples: int, device: torch.device) -> None:
    """Print held-out accuracies of all weights in a folder, and of its base model's samples."""
    nets = {name: load(name, weights).to(device) for name in BUILDERS if (weights / f"{name}.safetensors").exists()}
    for name, net in nets.items():
        if isinstance(net, PreferenceReward):
            pair = pair_accuracy(net, pairs)
            print(
                f"{name:9} pair accuracy {pair.reward:.4f}  ceiling {pair.ceiling:.4f}  "
                f"short of it by {pair.ceiling - pair.reward:.4f}  true order {pair.order:.4f}  ({pair.n} pairs)"
            )
            print(f"{'':9} score of fitting scenes {mean_score(net):.2f}")
        if isinstance(net, FactorNet):
            table = factor_accuracy(net, pairs)
            print(f"{name:9} accuracy: " + "  ".join(f"{key} {table[key]:.3f}" for key in CLASSES))
            numbers = "  ".join(f"{key} {table[key]:.3f}" for key in NUMBERS)
            print(f"{'':9} R^2: {numbers}  gold r {table['gold']:.3f}")
    if (weights / "tiny").is_dir() and {"judge_a", "judge_b", "features"} <= nets.keys():
        verify(weights, "tiny")
        check_base(weights / "tiny", nets, samples, device)


@torch.no_grad()
def mean_score(reward: PreferenceReward, n: int = 1024) -> float:
    """The mean score of rendered scenes under true captions."""
    generator = generator_for(HELD_OUT, 3)
    scenes = sample_scenes(n, generator)
    return reward(render(scenes).to(reward.logit_scale.device), captions(scenes, generator)).mean().item()


@torch.no_grad()
def check_base(folder: Path, nets: dict, samples: int, device: torch.device) -> None:
    images, prompts = base_samples(folder, samples, device)
    images = images.to(device)
    gold = Gold(nets["judge_a"], nets["judge_b"])
    hits, utilities = gold.hits(images, prompts).float(), gold.each(images, prompts)
    for i, name in enumerate(("judge_a", "judge_b")):
        colour, shape = hits[i].mean(dim=0).tolist()
        both = hits[i].prod(dim=1).mean().item()
        print(
            f"base by {name}: colour {colour:.3f}  shape {shape:.3f}  both {both:.3f}  "
            f"gold {utilities[i].mean().item():.2f}  ({samples} samples)"
        )
    rendered = render(sample_scenes(max(samples, 1024), generator_for(HELD_OUT, 4))).to(device)
    drawn, data = (layout(nets["judge_a"], nets["features"], shown) for shown in (images, rendered))
    print(f"{'as read':18} {'samples':>15} {'rendered data':>17}   (mean, deviation)")
    for name in drawn:
        print(f"{name:18} {drawn[name][0]:7.3f} {drawn[name][1]:7.3f} {data[name][0]:9.3f} {data[name][1]:7.3f}")
