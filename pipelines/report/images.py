"""Image grids: the same prompts and seeds for every arm, side by side."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from pipelines.config import ConfigError
from pipelines.config.values import slug
from pipelines.front.families import FAMILIES
from pipelines.front.results import Arm, StudyResult
from pipelines.report.style import CARD, GRID, INK, MUTED, TEXT
from pipelines.show.program import command_line

_COLUMNS = ("arm", "prompt_id", "prompt", "seed_index", "image")
_GAP = 1
_LARGEST = 128
_FIX = f"run `{command_line('evaluate')}` again"


@dataclass(frozen=True)
class Grid:
    """Images of a study's arms: one row per arm, the same prompts and seeds in each."""

    arms: tuple[Arm, ...]
    omitted: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    """Width and height of an image."""
    cells: dict[tuple[str, int, int], Image.Image]
    """(arm, index of the prompt, index of the seed) -> image; an image that is missing has no cell."""

    @property
    def missing(self) -> int:
        """How many of the grid's images the dataset does not have."""
        return len(self.arms) * len(self.prompts) * len(self.seeds) - len(self.cells)

    @property
    def strip_width(self) -> int:
        """Width in the page of one prompt's images: whole multiples of their pixels."""
        factor = max(1, 64 // max(self.size))
        return factor * (len(self.seeds) * (self.size[0] + _GAP) - _GAP)

    def strip(self, arm: Arm, prompt: int) -> str:
        """One arm's images of one prompt, side by side, as a data URI."""
        width, height = self.size
        strip = Image.new("RGBA", (len(self.seeds) * (width + _GAP) - _GAP, height))
        for j in range(len(self.seeds)):
            cell = self.cells.get((arm.name, prompt, j))
            if cell:
                strip.paste(cell, (j * (width + _GAP), 0))
        buffer = io.BytesIO()
        strip.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_grid(directory: Path, study: StudyResult, prompts: int = 4, seeds: int = 4, rows: int = 40) -> Grid | None:
    """Images of a study for evenly spaced prompts and the first seeds; None if the run has no images.

    Raises ConfigError naming the images dataset if it cannot be read or has none of the study's arms.
    """
    if not any(directory.glob("*.parquet")):
        return None
    arms = select(study.arms, rows)
    # A mean over training seeds has no images of its own, and its first member's stand for it; nor has best-of-n.
    sources = [(name, arm) for arm in arms for name in arm.candidates or arm.drawn[:1]]
    names = list(dict.fromkeys(name for name, _ in sources))
    dataset = _open(directory)
    keys = _read(dataset, _COLUMNS[:4], pc.field("arm").isin(names))
    if not keys.num_rows:
        raise ConfigError(f"images/ has no image of any arm of study {study.name!r}: {_FIX}")
    texts = dict(zip(keys["prompt_id"].to_pylist(), keys["prompt"].to_pylist(), strict=True))
    ids, indices = sorted(texts), sorted(set(keys["seed_index"].to_pylist()))[:seeds]
    ids = [ids[i * len(ids) // min(prompts, len(ids))] for i in range(min(prompts, len(ids)))]
    chosen = pc.field("arm").isin(names) & pc.field("prompt_id").isin(ids) & pc.field("seed_index").isin(indices)
    scores = {slug(arm.reward or "") for arm in arms if arm.candidates}
    best: dict[tuple[str, int, int], tuple[tuple[float, int], dict[str, Any]]] = {}
    for row in _read(dataset, (*_COLUMNS, *scores), chosen).to_pylist():
        for arm in (arm for name, arm in sources if name == row["arm"]):
            key = (arm.name, ids.index(row["prompt_id"]), indices.index(row["seed_index"]))
            rank = _rank(arm, row)
            if key not in best or rank > best[key][0]:
                best[key] = rank, row
    cells = {key: _image(row) for key, (_, row) in best.items()}
    return Grid(
        arms=tuple(arms),
        omitted=len(study.arms) - len(arms),
        prompts=tuple(texts[i] for i in ids),
        seeds=tuple(indices),
        size=next(iter(cells.values())).size,
        cells=cells,
    )


def _rank(arm: Arm, row: Mapping[str, Any]) -> tuple[float, int]:
    """What best-of-n chooses by: the score, of equal ones the first drawn."""
    if not arm.candidates:
        return 0.0, 0
    score = row[slug(arm.reward or "")]
    return score if math.isfinite(score) else -math.inf, -arm.candidates.index(row["arm"])


def select(arms: Sequence[Arm], limit: int) -> list[Arm]:
    """At most limit arms in the order of their families, the largest families thinned evenly; base and tuned stay."""
    order = list(FAMILIES)
    families = {family: [arm for arm in arms if arm.family == family] for family in order}
    room = {family: len(members) for family, members in families.items()}
    while sum(room.values()) > limit and max(room.values()) > 1:
        room[max(room, key=lambda family: room[family])] -= 1
    chosen = []
    for family in order:
        members, k = families[family], room[family]
        chosen += [members[round(i * (len(members) - 1) / max(1, k - 1))] for i in range(k)]
    return chosen


def write_png(grid: Grid, path: Path, title: str, rows: int = 20) -> None:
    """The grid as one PNG, enlarged without smoothing, with at most so many arms."""
    arms = select(grid.arms, rows)
    width, height = grid.size
    factor = max(1, 72 // max(width, height))
    width, height = width * factor, height * factor
    font, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (15, 13))
    bold = ImageFont.truetype(findfont("DejaVu Sans:bold"), 17)
    left = 24 + int(max(font.getlength(arm.title) for arm in arms))
    group, between = len(grid.seeds) * (width + 2) - 2, 14
    total = left + len(grid.prompts) * (group + between)
    top = 64
    sheet = Image.new("RGB", (total, top + len(arms) * (height + 6) + 30), CARD)
    draw = ImageDraw.Draw(sheet)
    draw.text((10, 10), title, INK, bold)
    for p, prompt in enumerate(grid.prompts):
        draw.text((left + p * (group + between), top - 24), _fitted(prompt, font, group), INK, font)
    for r, arm in enumerate(arms):
        y = top + r * (height + 6)
        draw.text((10, y + height // 2), arm.title, TEXT[arm.family], font, anchor="lm")
        for p in range(len(grid.prompts)):
            for s in range(len(grid.seeds)):
                x = left + p * (group + between) + s * (width + 2)
                cell = grid.cells.get((arm.name, p, s))
                if cell:
                    sheet.paste(cell.resize((width, height), Image.Resampling.NEAREST), (x, y))
                else:
                    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=GRID)
    note = f"Each prompt: seeds {', '.join(map(str, grid.seeds))}, the same noise in every row."
    note += " Best-of-n: what it keeps of several draws." if any(arm.candidates for arm in arms) else ""
    if len(arms) < len(grid.arms) + grid.omitted:
        note += f" {len(arms)} of {len(grid.arms) + grid.omitted} arms."
    draw.text((10, sheet.height - 24), note, MUTED, small)
    sheet.save(path)


def _open(directory: Path) -> ds.Dataset:
    files = sorted(str(path) for path in directory.glob("*.parquet"))
    for file in files:
        try:
            names = ds.dataset(file, format="parquet").schema.names
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"images/{Path(file).name} is not a parquet file ({reason}): delete it and {_FIX}"
            ) from error
        missing = [name for name in _COLUMNS if name not in names]
        if missing:
            raise ConfigError(f"images/{Path(file).name} has no column {', '.join(missing)}: delete it and {_FIX}")
    return ds.dataset(files, format="parquet")


def _read(dataset: ds.Dataset, columns: Sequence[str], chosen: pc.Expression) -> pa.Table:
    try:
        return dataset.to_table(columns=list(columns), filter=chosen)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"images/ cannot be read ({str(error).splitlines()[0]}): {_FIX}") from error


def _image(row: dict[str, Any]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    except (OSError, SyntaxError, TypeError) as error:
        where = f"arm {row['arm']!r}, prompt {row['prompt_id']!r}, seed {row['seed_index']}"
        raise ConfigError(f"images/ has an image that is not a PNG ({where}): delete its file and {_FIX}") from error
    if max(image.size) > _LARGEST:
        image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return image


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(text) > width and len(text) > 4:
        text = text[:-2].rstrip() + "…" if not text.endswith("…") else text[:-3].rstrip() + "…"
    return text
