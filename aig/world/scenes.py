"""Captioned scenes: one coloured shape on a background, rendered from exactly known factors.

Everything here is synthetic and closed-form, so colour, shape, the hidden utility and every other factor of a rendered
image are known exactly. Coordinates are in units of the image's half-width, with y pointing up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
HUES = (0, 30, 56, 125, 182, 225, 272, 325)  # degrees, one per colour
TEXTURES = ("solid", "shaded", "striped", "outlined")
TONES = ("dark", "plain", "light")
PATTERNS = ("solid", "gradient", "stripes", "blotches")

RADIUS_RANGE = (0.42, 0.70)
ROTATION_RANGE = (-20.0, 20.0)  # degrees
OFFSET_RANGE = (-0.34, 0.34)


@dataclass
class Scenes:
    """The factors of N scenes; every field is a tensor of length N (colours are (N, 3) RGB in [0, 1])."""

    shape: Tensor  # index into SHAPES
    colour: Tensor  # index into COLOURS
    texture: Tensor  # index into TEXTURES
    tone: Tensor  # index into TONES
    pattern: Tensor  # index into PATTERNS
    x: Tensor  # centre, OFFSET_RANGE
    y: Tensor
    radius: Tensor  # RADIUS_RANGE
    rotation: Tensor  # degrees, counterclockwise, ROTATION_RANGE
    saturation: Tensor  # of the object, 0.7 to 1
    haze: Tensor  # 0 to 0.5: share of the image replaced by the background's mean colour
    blur: Tensor  # standard deviation of the Gaussian in pixels, 0 or 0.4 to 1.0
    rgb: Tensor  # (N, 3) object colour
    ground: Tensor  # (N, 3) first background colour
    ground2: Tensor  # (N, 3) second background colour
    angle: Tensor  # of gradients and stripes, radians
    phase: Tensor  # of stripes, radians
    blotches: Tensor  # (N, 4, 4) standard normal, the background's low-resolution blotch field
    light_outline: Tensor  # bool: a white outline, else a black one

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: Tensor | slice) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hue in degrees, saturation and value in [0, 1], each (N,), to RGB (N, 3) in [0, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0], device=hue.device) + hue[:, None] / 60) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def sample_scenes(
    n: int,
    generator: torch.Generator,
    shape: Tensor | None = None,
    colour: Tensor | None = None,
    tone: Tensor | None = None,
) -> Scenes:
    """Draw N scenes from the world's distribution; `shape`, `colour` and `tone`, each (N,), fix those factors."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def choice(weights: tuple[float, ...]) -> Tensor:
        return torch.multinomial(torch.tensor(weights), n, replacement=True, generator=generator)

    def drawn(given: Tensor | None, count: int) -> Tensor:
        random = torch.randint(count, (n,), generator=generator)  # always drawn, to keep the stream aligned
        return random if given is None else given.cpu()

    shape, colour = drawn(shape, len(SHAPES)), drawn(colour, len(COLOURS))
    tone = drawn(tone, len(TONES))
    saturation = uniform(0.7, 1.0)
    hue = torch.tensor(HUES, dtype=torch.float32)[colour] + uniform(-5, 5)
    rgb = hsv_to_rgb(hue, saturation, uniform(0.78, 1.0))
    # Backgrounds stay at least 50 degrees of hue away from the object, so that every object is visible.
    ground_hue = hue + uniform(50, 310)
    low, high = torch.tensor([0.06, 0.36, 0.80])[tone], torch.tensor([0.20, 0.60, 0.98])[tone]
    top = torch.tensor([0.6, 0.5, 0.28])[tone]
    value = low + (high - low) * torch.rand(n, generator=generator)
    ground_saturation = top * torch.rand(n, generator=generator)
    shift = torch.tensor([0.10, 0.17, -0.17])[tone] * uniform(0.7, 1.3)
    return Scenes(
        shape=shape,
        colour=colour,
        texture=choice((0.4, 0.3, 0.15, 0.15)),
        tone=tone,
        pattern=choice((0.3, 0.3, 0.2, 0.2)),
        x=uniform(*OFFSET_RANGE),
        y=uniform(*OFFSET_RANGE),
        radius=uniform(*RADIUS_RANGE),
        rotation=uniform(*ROTATION_RANGE),
        saturation=saturation,
        haze=(uniform(-0.6, 0.4)).clamp(min=0),
        blur=torch.where(uniform(0, 1) < 0.6, torch.zeros(n), uniform(0.4, 1.0)),
        rgb=rgb,
        ground=hsv_to_rgb(ground_hue % 360, ground_saturation, value),
        ground2=hsv_to_rgb(ground_hue % 360, ground_saturation, (value + shift).clamp(0, 1)),
        angle=uniform(0, 2 * math.pi),
        phase=uniform(0, 2 * math.pi),
        blotches=torch.randn(n, 4, 4, generator=generator),
        light_outline=uniform(0, 1) < 0.5,
    )


def signed_distance(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Distance to each scene's outline (negative inside) at unit-radius local coordinates u, v (N, H, W).

    Exact for the circle; for the polygons a bound that is exact along the edges, enough for anti-aliasing.
    """
    radius = torch.sqrt(u * u + v * v)
    box_u, box_v = u.abs(), v.abs()
    half = math.pi / 5
    angle = torch.atan2(u, v).abs()  # from the upward axis; both the star and the triangle point up
    folded = ((angle + half) % (2 * half) - half).abs()
    su, sv = radius * torch.sin(folded), radius * torch.cos(folded)
    inner, outer = 0.47, 1.08  # radii of the star's inner corners and of its tips
    iu, iv = inner * math.sin(half), inner * math.cos(half)
    length = math.hypot(iu, outer - iv)
    third = 2 * math.pi / 3
    wedge = ((angle + third / 2) % third - third / 2).abs()
    # A heart is a square on its corner with a disc on each of its two upper sides.
    a = 0.54
    hu, hv = (u + v + 0.12) / math.sqrt(2), (v - u + 0.12) / math.sqrt(2)
    discs = torch.minimum(torch.hypot(hu - a, hv), torch.hypot(hu, hv - a)) - a
    distances = {
        "circle": radius - 0.86,
        "square": torch.maximum(box_u, box_v) - 0.76,
        "triangle": radius * torch.cos(third / 2 - wedge) - 0.56,
        "star": (su * (outer - iv) + (sv - outer) * iu) / length,
        "cross": torch.minimum(torch.maximum(box_u - 0.95, box_v - 0.34), torch.maximum(box_u - 0.34, box_v - 0.95)),
        "heart": torch.minimum(torch.maximum(hu.abs(), hv.abs()) - a, discs),
    }
    stacked = torch.stack([distances[name] for name in SHAPES])  # (6, N, H, W)
    return stacked.gather(0, shape[None, :, None, None].expand(1, *u.shape))[0]


def render(scenes: Scenes, size: int = SIZE) -> Tensor:
    """Render scenes to images (N, 3, size, size) in [0, 1], anti-aliased by the distance to each outline."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    grid_y, grid_x = torch.meshgrid(-axis, axis, indexing="ij")

    def column(t: Tensor) -> Tensor:
        return t[:, None, None]

    # Background: a mix of its two colours by a pattern in [0, 1].
    along = grid_x * column(scenes.angle.cos()) + grid_y * column(scenes.angle.sin())  # (N, H, W)
    field = F.interpolate(scenes.blotches[:, None], size=(size, size), mode="bicubic", align_corners=True)[:, 0]
    mixes = torch.stack([
        torch.zeros_like(along),
        (along / 2.4 + 0.5).clamp(0, 1),
        (torch.sin(9 * along + column(scenes.phase)) * 3 + 0.5).clamp(0, 1),
        (field * 2.5 + 0.5).clamp(0, 1),
    ])  # fmt: skip
    mix = mixes.gather(0, scenes.pattern[None, :, None, None].expand(1, *along.shape))[0][:, None]
    ground, ground2 = scenes.ground[:, :, None, None], scenes.ground2[:, :, None, None]
    background = torch.lerp(ground.expand(-1, -1, size, size), ground2.expand(-1, -1, size, size), mix)

    # Object: local coordinates are shifted, rotated and divided by the radius.
    turn = torch.deg2rad(scenes.rotation)
    dx, dy = grid_x - column(scenes.x), grid_y - column(scenes.y)
    u = (dx * column(turn.cos()) + dy * column(turn.sin())) / column(scenes.radius)
    v = (dy * column(turn.cos()) - dx * column(turn.sin())) / column(scenes.radius)
    distance = signed_distance(scenes.shape, u, v) * column(scenes.radius) * size / 2  # in pixels
    alpha = (0.5 - distance).clamp(0, 1)[:, None]

    light = (0.72 + 0.55 * torch.exp(-((u + 0.35) ** 2 + (v - 0.35) ** 2) * 1.6)).clamp(0, 1.25)
    stripes = torch.where(torch.sin(7.5 * (u + v) + column(scenes.phase)) > 0, 1.0, 0.62)
    shade = torch.ones_like(u)
    shade = torch.where(column(scenes.texture == TEXTURES.index("shaded")), light, shade)
    shade = torch.where(column(scenes.texture == TEXTURES.index("striped")), stripes, shade)
    body = (scenes.rgb[:, :, None, None] * shade[:, None]).clamp(0, 1)
    outlined = column(scenes.texture == TEXTURES.index("outlined"))
    rim = ((distance + 2.0).clamp(0, 1) * outlined)[:, None]  # an outline two pixels wide, inside the shape
    body = torch.lerp(body, column(torch.where(scenes.light_outline, 0.95, 0.06))[:, None].expand_as(body), rim)
    image = torch.lerp(background, body, alpha)

    image = torch.lerp(image, background.mean(dim=(2, 3), keepdim=True).expand_as(image), column(scenes.haze)[:, None])
    return gaussian_blur(image, scenes.blur).clamp(0, 1)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image (N, C, H, W) by its own standard deviation in pixels (N,); zero leaves it as it is."""
    n, channels, height, width = image.shape
    offsets = torch.arange(-3, 4, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.clamp(min=0.05)[:, None] ** 2))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, 0)  # (N*C, 7)
    flat = F.pad(image.reshape(1, n * channels, height, width), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=n * channels).reshape(image.shape)


# --- captions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A caption's content; `tone` is None if it names no background."""

    colour: str
    shape: str
    tone: str | None = None

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}" + (f" on a {self.tone} background" if self.tone else "")


def parse_caption(caption: str) -> Request:
    """Read a caption of the grammar `a COLOUR SHAPE [on a TONE background]`; ValueError for another."""
    words = caption.lower().split()
    core, rest = words[:3], words[3:]
    if len(core) == 3 and core[0] in ("a", "an") and core[1] in COLOURS and core[2] in SHAPES:
        if not rest:
            return Request(core[1], core[2])
        if len(rest) == 4 and rest[:2] == ["on", "a"] and rest[2] in TONES and rest[3] == "background":
            return Request(core[1], core[2], rest[2])
    raise ValueError(
        f"prompt {caption!r} is not in the embedded world's grammar 'a COLOUR SHAPE [on a TONE background]' with "
        f"COLOUR in {', '.join(COLOURS)}; SHAPE in {', '.join(SHAPES)}; TONE in {', '.join(TONES)}"
    )


def captions(scenes: Scenes, generator: torch.Generator, tone_share: float = 0.25) -> list[str]:
    """One caption per scene; a share of them also names the background's tone."""
    named = torch.rand(len(scenes), generator=generator) < tone_share
    return [
        str(Request(COLOURS[c], SHAPES[s], TONES[t] if with_tone else None))
        for c, s, t, with_tone in zip(
            scenes.colour.tolist(), scenes.shape.tolist(), scenes.tone.tolist(), named.tolist(), strict=True
        )
    ]


def all_prompts() -> list[str]:
    """The 48 captions without a background, in whose prefixes counts of colours, and of shapes, differ by at most 1."""
    order = [(i % len(COLOURS), (i + i // 24) % len(SHAPES)) for i in range(48)]
    return [str(Request(COLOURS[c], SHAPES[s])) for c, s in order]


# The 16 held-out captions of the 48, a stretch that has each colour equally often.
FIRST_HELD_OUT, AFTER_HELD_OUT = 24, 40


def training_prompts() -> list[str]:
    """The 32 captions for training: each colour 4 times, each shape 5 or 6 times, prefixes balanced as above."""
    return all_prompts()[:FIRST_HELD_OUT] + all_prompts()[AFTER_HELD_OUT:]


def held_out_prompts() -> list[str]:
    """The 16 held-out captions, new combinations of the same words: each colour twice, each shape 2 or 3 times."""
    return all_prompts()[FIRST_HELD_OUT:AFTER_HELD_OUT]


# --- the hidden utility ---------------------------------------------------------------------------------------------

BEST_RADIUS = 0.58
TEXTURE_TASTE = (0.0, 0.35, -0.1, 0.15)  # in the order of TEXTURES
PATTERN_TASTE = (0.0, 0.35, -0.15, 0.05)  # in the order of PATTERNS
TONE_TASTE = (0.25, 0.0, 0.1)  # in the order of TONES


def utility(
    match: Tensor,
    radius: Tensor,
    x: Tensor,
    y: Tensor,
    haze: Tensor,
    blur: Tensor,
    saturation: Tensor,
    texture: Tensor,
    pattern: Tensor,
    tone: Tensor,
) -> Tensor:
    """The hidden utility of an image, about -2 to 4.5, from its factors (N,); the last three are probabilities (N, k).

    `match` in [0, 1] is the image's agreement with its caption. The weights are this world's own choice.
    """
    tastes = (
        texture @ texture.new_tensor(TEXTURE_TASTE)
        + pattern @ pattern.new_tensor(PATTERN_TASTE)
        + tone @ tone.new_tensor(TONE_TASTE)
    )
    size = 1 - ((radius - BEST_RADIUS) / 0.12) ** 2
    centred = 1 - torch.hypot(x, y) / 0.25
    shown = 2.5 * match + 0.5 * size.clamp(min=-2) + 0.5 * centred - 2.0 * haze - 0.7 * blur
    return shown + 2 * (saturation - 0.85) + tastes


def scene_utility(scenes: Scenes, requests: list[Request]) -> Tensor:
    """The exact utility (N,) of rendered scenes; `match` is the mean match of colour, shape and, if named, tone."""
    colour = torch.tensor([COLOURS.index(r.colour) for r in requests])
    shape = torch.tensor([SHAPES.index(r.shape) for r in requests])
    tone = torch.tensor([TONES.index(r.tone) if r.tone else -1 for r in requests])
    ok = ((scenes.colour == colour).float() + (scenes.shape == shape).float()) / 2
    match = torch.where(tone >= 0, (2 * ok + (scenes.tone == tone).float()) / 3, ok)
    classes = ((scenes.texture, TEXTURES), (scenes.pattern, PATTERNS), (scenes.tone, TONES))
    probabilities = (F.one_hot(index, len(names)).float() for index, names in classes)
    numbers = (scenes.radius, scenes.x, scenes.y, scenes.haze, scenes.blur, scenes.saturation)
    return utility(match, *numbers, *probabilities)
