"""The embedded world's small networks: two preference rewards, two factor judges that read the gold utility, features.

Images are (B, 3, 32, 32) in [0, 1] and captions are those of `aig.world.scenes`. Everything is differentiable with
respect to the images. The judges and the features are for evaluation only: nothing may be tuned towards them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aig.world.scenes import COLOURS, PATTERNS, SHAPES, SIZE, TEXTURES, TONES, parse_caption, utility
from aig.world.tiny import TEXT_LENGTH, build_tokenizer

EMBEDDING = 64


def check_batch(images: Tensor, captions: list[str] | None = None) -> None:
    """ValueError unless images are (B, 3, 32, 32) and there is one caption per image."""
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"images must be (B, 3, {SIZE}, {SIZE}) in [0, 1], got {tuple(images.shape)}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"give one caption per image: got {len(captions)} captions for {len(images)} images")


# --- towers ---------------------------------------------------------------------------------------------------------


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


def normed(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    # Batch, not group normalization: the latter divides an image's contrast away, and haze is contrast.
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.SiLU()
    )


class Residual(nn.Module):
    """A pre-activation residual block of two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LowPass(nn.Module):
    """The fixed 5-tap binomial filter in both directions: it removes a checkerboard entirely."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", (taps[:, None] * taps).expand(3, 1, 5, 5).contiguous(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), self.kernel, groups=3)


def plain_tower(out: int, a: int = 32, b: int = 64, c: int = 96) -> nn.Sequential:
    """A plain strided CNN, (B, 3, 32, 32) in [-1, 1] to (B, out), which can read the finest patterns."""
    return nn.Sequential(
        normed(3, a, 2), normed(a, a), normed(a, b, 2), normed(b, b), normed(b, c, 2), normed(c, c),
        nn.Flatten(), nn.Linear(c * 16, 128), nn.SiLU(), nn.Linear(128, out),
    )  # fmt: skip


def residual_tower(
    out: int, a: int = 32, b: int = 64, c: int = 96, norm: Callable[[int], nn.Module] = group_norm
) -> nn.Sequential:
    """A residual CNN, (B, 3, 32, 32) in [-1, 1] to (B, out). Its last map is flattened, since positions matter."""
    return nn.Sequential(
        nn.Conv2d(3, a, 5, 2, 2), Residual(a, norm), nn.Conv2d(a, b, 3, 2, 1), Residual(b, norm),
        nn.Conv2d(b, c, 3, 2, 1), Residual(c, norm), norm(c), nn.SiLU(),
        nn.Flatten(), nn.Linear(c * 16, 128), nn.SiLU(), nn.Linear(128, out),
    )  # fmt: skip


class TextTower(nn.Module):
    """Captions to (B, out): token embeddings, optionally one self-attention layer, their mean, a small MLP."""

    def __init__(self, out: int, attention: bool, width: int = 64) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.embedding = nn.Embedding(len(self.tokenizer), width)
        self.position = nn.Parameter(torch.randn(TEXT_LENGTH, width) * 0.02)
        self.attention = (
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            if attention
            else None
        )
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, out))

    def forward(self, captions: list[str]) -> Tensor:
        distinct = sorted(set(captions))  # each encoded once
        for caption in distinct:
            parse_caption(caption)
        tokens = self.tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt")
        kept = tokens.attention_mask.to(self.position.device).bool()  # (N, L)
        x = self.embedding(tokens.input_ids.to(self.position.device)) + self.position  # (N, L, width)
        if self.attention is not None:
            x = self.attention(x, src_key_padding_mask=~kept)
        mean = (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        return self.head(mean)[[distinct.index(caption) for caption in captions]]


# --- rewards --------------------------------------------------------------------------------------------------------


class PreferenceReward(nn.Module):
    """A reward like PickScore (Kirstain et al. 2023): exp(logit_scale) times the cosine of an image and its caption.

    Trained by contrast on captions, then by Bradley and Terry's model on noisy pairwise preferences. The scale is
    fixed: preferences alone would shrink it, and with it the range above a good image's score.
    """

    logit_scale: Tensor

    def __init__(self, image_tower: nn.Module, text_tower: TextTower, scale: float = 30.0) -> None:
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.register_buffer("logit_scale", torch.tensor(math.log(scale)))

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) in [0, 1] to unit vectors (B, 64)."""
        check_batch(images)
        return F.normalize(self.image_tower(images * 2 - 1), dim=-1)

    def encode_captions(self, captions: list[str]) -> Tensor:
        """B captions to unit vectors (B, 64); ValueError for one outside the grammar."""
        return F.normalize(self.text_tower(captions), dim=-1)

    def forward(self, images: Tensor, captions: list[str]) -> Tensor:
        """Scores (B,), about 20 for a good image; differentiable with respect to the images.

        ValueError for images of another shape, another number of captions, or a caption outside the grammar.
        """
        check_batch(images, captions)
        return self.logit_scale.exp() * (self.encode_images(images) * self.encode_captions(captions)).sum(-1)


def build_fragile() -> PreferenceReward:
    """The reward that is easily hacked: a plain CNN that sees every pixel."""
    return PreferenceReward(plain_tower(EMBEDDING), TextTower(EMBEDDING, attention=False))


def build_robust() -> PreferenceReward:
    """The reward that is harder to hack: a residual CNN behind a fixed low-pass."""
    tower = nn.Sequential(LowPass(), residual_tower(EMBEDDING, 24, 48, 96, nn.BatchNorm2d))
    return PreferenceReward(tower, TextTower(EMBEDDING, attention=True))


# --- judges and features --------------------------------------------------------------------------------------------

CLASSES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "tone": TONES, "pattern": PATTERNS}
# Mean and standard deviation of each number over the world: the heads predict standardized values.
NUMBERS = {
    "x": (0.0, 0.196), "y": (0.0, 0.196), "radius": (0.56, 0.081), "haze": (0.08, 0.12), "blur": (0.28, 0.36),
    "saturation": (0.85, 0.087),
}  # fmt: skip
# Further factors of the feature extractor: three RGB colours, the pattern's angle, the object's rotation / 12 degrees.
EXTRAS = {"ground": 3, "ground2": 3, "rgb": 3, "direction": 2, "orientation": 2, "rotation": 1}


@dataclass
class Factors:
    """A network's reading of B images: logits (B, k) of each class, and numbers (B,) in the world's units."""

    shape: Tensor
    colour: Tensor
    texture: Tensor
    tone: Tensor
    pattern: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    haze: Tensor
    blur: Tensor
    saturation: Tensor
    extras: dict[str, Tensor]  # (B, EXTRAS[name]), standardized; empty for a judge


class FactorNet(nn.Module):
    """Reads every factor of a scene from its image."""

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, int, int], extras: bool = False) -> None:
        super().__init__()
        sizes = {**{name: len(values) for name, values in CLASSES.items()}, **dict.fromkeys(NUMBERS, 1)}
        self.sizes = {**sizes, **EXTRAS} if extras else sizes
        self.tower = residual_tower(EMBEDDING, *widths)
        self.heads = nn.Linear(EMBEDDING, sum(self.sizes.values()))
        self.register_buffer("mean", torch.zeros(EMBEDDING))
        self.register_buffer("std", torch.ones(EMBEDDING))

    def heads_of(self, embedding: Tensor) -> Factors:
        parts = self.heads(embedding).split(list(self.sizes.values()), dim=1)
        read = dict(zip(self.sizes, parts, strict=True))
        numbers = {name: read[name][:, 0] * spread + mean for name, (mean, spread) in NUMBERS.items()}
        return Factors(
            **{name: read[name] for name in CLASSES},
            **numbers,
            extras={name: read[name] for name in EXTRAS if name in read},
        )

    def forward(self, images: Tensor) -> Factors:
        """Read images (B, 3, 32, 32) in [0, 1]; ValueError for another shape."""
        check_batch(images)
        return self.heads_of(self.tower(images * 2 - 1))

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 64): the layer under the heads, standardized to mean 0 and deviation 1 over rendered scenes."""
        check_batch(images)
        return (self.tower(images * 2 - 1) - self.mean) / self.std

    def gold(self, images: Tensor, captions: list[str]) -> Tensor:
        """The hidden utility (B,), about -2 to 4.5, as this network reads it.

        The match is the mean probability of the caption's words. Numbers are clamped to the world's range, so that an
        image outside it gains nothing by being extreme. ValueError as for `PreferenceReward`.
        """
        check_batch(images, captions)
        return utility_of(self(images), captions)

    def hits(self, images: Tensor, captions: list[str]) -> Tensor:
        """Booleans (B, 2): whether the likeliest colour and shape are the caption's. ValueError as above."""
        check_batch(images, captions)
        read = self(images)
        colour, shape, _ = requested(captions, images.device)
        return torch.stack([read.colour.argmax(1) == colour, read.shape.argmax(1) == shape], dim=1)


def requested(captions: list[str], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (B,) of the captions' colours, shapes and tones; -1 for no tone."""
    requests = [parse_caption(caption) for caption in captions]
    return (
        torch.tensor([COLOURS.index(r.colour) for r in requests], device=device),
        torch.tensor([SHAPES.index(r.shape) for r in requests], device=device),
        torch.tensor([TONES.index(r.tone) if r.tone else -1 for r in requests], device=device),
    )


def utility_of(read: Factors, captions: list[str]) -> Tensor:
    """The hidden utility (B,) of images, from a reading of them, for their captions."""
    colour, shape, tone = requested(captions, read.shape.device)

    def probability(logits: Tensor, index: Tensor) -> Tensor:
        return logits.softmax(1).gather(1, index.clamp(min=0)[:, None])[:, 0]

    pair = probability(read.colour, colour) + probability(read.shape, shape)
    match = torch.where(tone >= 0, (pair + probability(read.tone, tone)) / 3, pair / 2)
    haze, blur, saturation = read.haze.clamp(0, 1), read.blur.clamp(min=0), read.saturation.clamp(0, 1)
    tastes = (logits.softmax(1) for logits in (read.texture, read.pattern, read.tone))
    return utility(match, read.radius, read.x, read.y, haze, blur, saturation, *tastes)


class Gold(nn.Module):
    """Both judges: the hidden utility as the mean of two readings, or each separately."""

    def __init__(self, judge_a: FactorNet, judge_b: FactorNet) -> None:
        super().__init__()
        self.judge_a, self.judge_b = judge_a, judge_b

    def each(self, images: Tensor, captions: list[str]) -> Tensor:
        """The hidden utility (2, B) as each judge reads it; ValueError as for `PreferenceReward`."""
        return torch.stack([judge.gold(images, captions) for judge in (self.judge_a, self.judge_b)])

    def forward(self, images: Tensor, captions: list[str]) -> Tensor:
        """The mean of both judges' utilities (B,). ValueError as for `PreferenceReward`."""
        return self.each(images, captions).mean(dim=0)

    def hits(self, images: Tensor, captions: list[str]) -> Tensor:
        """Booleans (2, B, 2): `hits` of each judge. ValueError as above."""
        return torch.stack([judge.hits(images, captions) for judge in (self.judge_a, self.judge_b)])


def build_judge_a() -> FactorNet:
    return FactorNet((24, 48, 96))


def build_judge_b() -> FactorNet:
    return FactorNet((32, 48, 80))


def build_features() -> FactorNet:
    return FactorNet((24, 48, 96), extras=True)


BUILDERS = {
    "fragile": build_fragile,
    "robust": build_robust,
    "judge_a": build_judge_a,
    "judge_b": build_judge_b,
    "features": build_features,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """An untrained network by its name in `BUILDERS`, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name]()
