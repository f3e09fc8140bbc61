"""Train the rewards, the judges and the feature extractor, on scenes rendered on demand.

    python -m aig.world.train --out DIR fragile          # or robust, judge_a, judge_b, features; CPU or one GPU
    python -m aig.world.train --out DIR all-scores

All randomness at a step comes from (seed, step), so an interrupted run resumes as if nothing had happened. The rewards
see captions and noisy preferences, never the factors; the judges see factors of rendered images, never a model's
sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aig.world.networks import CLASSES, NUMBERS, FactorNet, Factors, PreferenceReward, build, requested
from aig.world.scenes import (
    COLOURS,
    PATTERNS,
    SHAPES,
    TONES,
    Scenes,
    captions,
    gaussian_blur,
    parse_caption,
    render,
    sample_scenes,
    scene_utility,
)
from aig.world.training import Recipe, fit, generator_for
from aig.world.weights import save

MISMATCH = 0.3  # how often each factor named by the caption is wrong in a scene
BETA = 2.26  # of the noisy labels: a judge that knew the utility would agree with 84 % of them
LEVEL = 17.0  # mean score of a group, most of whose scenes miss their caption
CONTRAST_SCALE = 100.0  # CLIP's: small gaps, of the size that preferences need, satisfy the contrast
OUTSIDE = ("embedding", "position", "heads")  # not for Muon, like all layers that read pixels
PREFERENCES, AUGMENTATION = 1, 2  # kinds of random streams, besides a step's own


@dataclass(frozen=True)
class RewardConfig(Recipe):
    """How a reward is trained: contrast on captions for `pretrain` steps, then noisy preferences."""

    steps: int = 3600
    batch: int = 64
    lr: float = 1.5e-3  # AdamW's, for embeddings, norms, biases and the layers at both ends
    pretrain: int = 600
    group: int = 16  # images per caption, compared pairwise (as in Ouyang et al. 2022)
    groups: int = 12000  # distinct ones; later epochs repeat them, each image mirrored at random
    noise: float = 0.0  # the largest standard deviation of the images' noise augmentation
    contrast: float = 0.0  # weight of the contrastive loss after pretraining

    def __post_init__(self) -> None:
        if self.batch % self.group or self.groups < self.batch // self.group:
            raise ValueError(
                f"batch {self.batch} must be a multiple of group {self.group}, and groups at least their quotient"
            )


@dataclass(frozen=True)
class FactorConfig(Recipe):
    """How a judge or the feature extractor is trained."""

    steps: int = 3000
    batch: int = 80
    lr: float = 1.5e-3  # AdamW's, for norms, biases and the layers at both ends
    augment: float = 1.0  # strength of the augmentations
    smoothing: float = 0.0  # of the class labels


RECIPES: dict[str, Recipe] = {
    "fragile": RewardConfig(seed=11),
    "robust": RewardConfig(seed=12, steps=6400, groups=20000, noise=0.06, contrast=0.05),
    "judge_a": FactorConfig(seed=13),
    "judge_b": FactorConfig(seed=14, steps=1500),
    "features": FactorConfig(seed=15, steps=1500, augment=0.4, smoothing=0.1),
}


# --- rewards --------------------------------------------------------------------------------------------------------


@dataclass
class Preferences:
    """N captions, `group` images each, and noisy preferences of each image of a group over each later one."""

    scenes: list[Scenes]  # `group` times N scenes
    captions: list[str]
    first: list[int]  # P indices within the group: an image ...
    second: list[int]  # ... and the one that it is compared with
    label: Tensor  # (N, P) 1.0 if the first was preferred
    better: Tensor  # (N, P) bool: the first has the higher utility


def draw_preferences(n: int, generator: torch.Generator, group: int = 2) -> Preferences:
    """Noisy preferences (Bradley and Terry 1952, over the hidden utility) between scenes that may miss a caption."""
    asked_for = sample_scenes(n, generator)
    texts = captions(asked_for, generator)
    tones = requested(texts, torch.device("cpu"))[2]
    requests = [parse_caption(text) for text in texts]

    def mostly(index: Tensor, count: int) -> Tensor:
        other = (index + torch.randint(1, count, (n,), generator=generator)) % count
        return torch.where(torch.rand(n, generator=generator) < MISMATCH, other, index)

    def candidate() -> Scenes:
        shape, colour = mostly(asked_for.shape, len(SHAPES)), mostly(asked_for.colour, len(COLOURS))
        unsaid = torch.randint(len(TONES), (n,), generator=generator)
        tone = torch.where(tones >= 0, mostly(asked_for.tone, len(TONES)), unsaid)
        return sample_scenes(n, generator, shape, colour, tone)

    scenes = [candidate() for _ in range(group)]
    pairs = [(i, j) for i in range(group) for j in range(i + 1, group)]
    first, second = [i for i, _ in pairs], [j for _, j in pairs]
    utilities = torch.stack([scene_utility(candidates, requests) for candidates in scenes], dim=1)  # (N, group)
    gap = utilities[:, first] - utilities[:, second]
    label = torch.bernoulli(torch.sigmoid(BETA * gap), generator=generator)
    return Preferences(scenes, texts, first, second, label, gap > 0)


def joined(parts: list[Scenes]) -> Scenes:
    return Scenes(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes)})


def contrastive_loss(images: Tensor, texts: Tensor, truth: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021), vectors (B, D); `truth` (B, B) is 1 if text j is true of image i.

    Captions repeat in a batch of this small world, so every true pair is a positive, not only the diagonal.
    """
    logits = CONTRAST_SCALE * images @ texts.T
    rows = -(logits.log_softmax(1) * truth).sum(1) / truth.sum(1)
    columns = -(logits.log_softmax(0) * truth).sum(0) / truth.sum(0)
    return (rows.mean() + columns.mean()) / 2


def holds(scenes: Scenes, texts: list[str]) -> Tensor:
    """(N, N) floats: 1 if caption j is true of scene i."""
    colour, shape, tone = requested(texts, torch.device("cpu"))
    same = (scenes.colour[:, None] == colour) & (scenes.shape[:, None] == shape)
    return (same & ((scenes.tone[:, None] == tone) | (tone < 0))).float()


def reward_losses(reward: PreferenceReward, config: RewardConfig, step: int, device: torch.device) -> dict[str, Tensor]:
    generator = generator_for(config.seed, step)

    def noisy(images: Tensor) -> Tensor:
        if config.noise:
            size = config.noise * torch.rand(len(images), 1, 1, 1, generator=generator)
            images = images + size * torch.randn(images.shape, generator=generator)
        return images.to(device)

    if step < config.pretrain:
        scenes = sample_scenes(config.batch, generator)
        texts = captions(scenes, generator, tone_share=0.4)
        images, words = reward.encode_images(noisy(render(scenes))), reward.encode_captions(texts)
        truth = holds(scenes, texts).to(device)
        matched = truth[torch.arange(len(texts)), (images @ words.T).argmax(1)].mean()
        return {"loss": contrastive_loss(images, words, truth), "matched": matched}

    # Groups come in fixed chunks, each a function of (seed, chunk), in a new order every epoch.
    size = config.batch // config.group
    chunks = config.groups // size
    epoch, place = divmod(step - config.pretrain, chunks)
    order = torch.randperm(chunks, generator=generator_for(config.seed, PREFERENCES, 0, epoch))
    drawn = draw_preferences(size, generator_for(config.seed, PREFERENCES, 1, int(order[place])), config.group)
    scenes = joined(drawn.scenes)
    images = render(scenes)
    # Mirroring changes neither what a scene shows nor its utility.
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = reward.encode_images(noisy(torch.where(mirrored, images.flip(3), images)))  # (group * N, D)
    cosines = (images.view(config.group, size, -1) * reward.encode_captions(drawn.captions)).sum(-1)
    scores = reward.logit_scale.exp() * cosines.T  # (N, group)
    gap, label = scores[:, drawn.first] - scores[:, drawn.second], drawn.label.to(device)  # (N, P)
    preference = F.binary_cross_entropy_with_logits(gap, label)
    # Preferences do not determine each caption's level: set it so that a good image has PickScore's 20.
    level = (scores.mean(dim=1) - LEVEL).square().mean()
    losses = {"preference": preference, "agreement": ((gap > 0) == (label > 0.5)).float().mean(), "level": level}
    loss = preference + 0.01 * level
    if config.contrast:
        texts = captions(scenes, generator, tone_share=0.4)
        losses["contrast"] = contrastive_loss(images, reward.encode_captions(texts), holds(scenes, texts).to(device))
        loss = loss + config.contrast * losses["contrast"]
    return {"loss": loss, **losses}


# --- judges and features --------------------------------------------------------------------------------------------


def augment(images: Tensor, scenes: Scenes, strength: float, generator: torch.Generator) -> tuple[Tensor, Scenes]:
    """Degrade images (N, 3, H, W) like a careless or adversarial generator; returns them with their factors.

    Blur, smooth warps, cutouts, colour casts, low- and high-pass noise and 2x2 grids, each on some of the images and of
    random size. Tuned images have such traces, which fool a judge trained only on clean ones.
    """
    n, _, height, width = images.shape

    def size(share: float, most: float) -> Tensor:
        """(N, 1, 1, 1): for a share of the images uniform up to `most`, else zero."""
        draw = torch.rand(2, n, 1, 1, 1, generator=generator)
        return torch.where(draw[0] < share, draw[1] * most * strength, 0.0)

    def smooth(channels: int, cells: int) -> Tensor:
        field = torch.randn(n, channels, cells, cells, generator=generator)
        return F.interpolate(field, size=(height, width), mode="bilinear", align_corners=True)

    spread = size(0.25, 1.0).flatten()
    images = gaussian_blur(images, spread)
    scenes = replace(scenes, blur=torch.hypot(scenes.blur, spread))

    straight = torch.eye(2, 3).expand(n, 2, 3)
    grid = F.affine_grid(straight, [n, 3, height, width], align_corners=False)
    bend = size(0.4, 2.0 / width)[..., 0] * smooth(2, 5).flatten(2).transpose(1, 2)  # up to about a pixel
    images = F.grid_sample(images, grid + bend.view(n, height, width, 2), padding_mode="border", align_corners=False)

    half = 1.5 + 2.5 * torch.rand(2, n, 1, 1, generator=generator)  # a rectangle of 3 to 8 pixels
    centre = torch.rand(2, n, 1, 1, generator=generator) * width
    pixel = torch.arange(width) + 0.5
    hidden = ((pixel[:, None] - centre[0]).abs() < half[0]) & ((pixel - centre[1]).abs() < half[1])
    hidden = hidden[:, None] & (size(0.25, 1.0) > 0)
    images = torch.where(hidden, torch.rand(n, 3, 1, 1, generator=generator), images)

    cast = torch.rand(2, n, 3, 1, 1, generator=generator) * 2 - 1
    images = images * (1 + size(0.4, 0.15) * cast[0]) + size(0.4, 0.08) * cast[1]

    images = images + size(0.4, 0.12) * smooth(3, 7)
    fine = torch.randn(images.shape, generator=generator)
    coarse = F.avg_pool2d(fine, 3, 1, 1, count_include_pad=False)
    residual = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.4, fine - coarse, fine)
    images = images + size(0.6, 0.2) * residual

    tile = torch.randn(n, 3, 2, 2, generator=generator)
    tile = tile - tile.mean(dim=(2, 3), keepdim=True)
    patch = (smooth(1, 3) + 0.5).clamp(0, 1)  # a grid rarely covers all of an image evenly
    return (images + size(0.4, 0.25) * patch * tile.tile(1, 1, height // 2, width // 2)).clamp(0, 1), scenes


def extras(scenes: Scenes) -> dict[str, tuple[Tensor, Tensor]]:
    """Further factors of the feature extractor: targets (N, k), and whether they are visible (N,)."""
    angle = scenes.angle[:, None]
    everywhere, striped = torch.ones(len(scenes), dtype=torch.bool), scenes.pattern == PATTERNS.index("stripes")
    return {
        "ground": (scenes.ground * 4 - 2, everywhere),
        "ground2": (scenes.ground2 * 4 - 2, scenes.pattern != PATTERNS.index("solid")),
        "rgb": (scenes.rgb * 4 - 2, everywhere),
        "direction": (torch.cat([angle.cos(), angle.sin()], 1), scenes.pattern == PATTERNS.index("gradient")),
        "orientation": (torch.cat([(2 * angle).cos(), (2 * angle).sin()], 1), striped),
        "rotation": (scenes.rotation[:, None] / 12, scenes.shape != SHAPES.index("circle")),
    }


def factor_loss(read: Factors, scenes: Scenes, smoothing: float = 0.0) -> Tensor:
    """Cross-entropies of the classes plus mean squared errors of the standardized numbers and extras."""
    device = read.shape.device
    loss = torch.zeros((), device=device)
    for name in CLASSES:
        loss = loss + F.cross_entropy(getattr(read, name), getattr(scenes, name).to(device), label_smoothing=smoothing)
    for name, (_, spread) in NUMBERS.items():
        loss = loss + 0.5 * F.mse_loss(getattr(read, name) / spread, getattr(scenes, name).to(device) / spread)
    if read.extras:
        for name, (target, seen) in extras(scenes).items():
            error = (read.extras[name] - target.to(device)).square().mean(dim=1)
            loss = loss + (error * seen.to(device)).sum() / seen.sum().clamp(min=1)
    return loss


def factor_losses(net: FactorNet, config: FactorConfig, step: int, device: torch.device) -> dict[str, Tensor]:
    generator = generator_for(config.seed, step)
    scenes = sample_scenes(config.batch, generator)
    images, scenes = augment(render(scenes), scenes, config.augment, generator_for(config.seed, step, AUGMENTATION))
    read = net(images.to(device))
    loss = factor_loss(read, scenes, config.smoothing)
    with torch.no_grad():
        right = {
            name: (getattr(read, name).argmax(1).cpu() == getattr(scenes, name)).float().mean()
            for name in ("shape", "colour")
        }
    return {"loss": loss, **right}


@torch.no_grad()
def standardize_features(net: FactorNet, seed: int, device: torch.device, n: int = 8192) -> None:
    """Set the buffers that standardize `net.features` to mean 0 and deviation 1 over rendered scenes."""
    net.mean.zero_()
    net.std.fill_(1.0)
    generator = generator_for(seed, n)
    chunks = [net.features(render(sample_scenes(256, generator)).to(device)) for _ in range(n // 256)]
    features = torch.cat(chunks)
    net.mean.copy_(features.mean(dim=0))
    net.std.copy_(features.std(dim=0))


def is_inside(name: str, parameter: nn.Parameter) -> bool:
    return parameter.shape[1] > 3 and not any(part in name for part in OUTSIDE)


# --- commands -------------------------------------------------------------------------------------------------------


def train(name: str, config: Recipe, out: Path, device: torch.device) -> Path:
    """Train the network `name`, checkpointing to `out`; returns the path of its weights, `out/NAME.safetensors`."""
    net = build(name, config.seed).to(device)
    losses: Callable[..., dict[str, Tensor]] = reward_losses if isinstance(config, RewardConfig) else factor_losses
    fit(name, net.train(), lambda step: losses(net, config, step, device), config, out, device, is_inside)
    if isinstance(net, FactorNet) and name == "features":
        standardize_features(net, config.seed, device)
    return save(net, out / f"{name}.safetensors")
