"""One quiet style for every figure, and figures turned into files or into SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

INK, MUTED, GRID, CARD = "#1c2026", "#5f6773", "#e3e6ea", "#ffffff"

# By family: the colour of its mark, of its text on white, of both on a dark ground, and its marker. Okabe and Ito's
# colours stay apart for colour-blind readers, and markers differ too; text is darker, to be legible on white. Ways on
# KL-regularized adapters have lighter colours, those on adapters that a search drew have others; weight space has its
# way's hue in another shape.
LOOKS = {
    "base": (INK, INK, "#e7e9ec", "o"),
    "tuned": (INK, INK, "#e7e9ec", "X"),
    "kl": ("#0072b2", "#005a8c", "#4ba3e3", "s"),
    "early_kl": ("#3a53a4", "#2c3f7d", "#8ea3e8", ">"),
    "trial": ("#d55e00", "#9a4400", "#f08b52", "p"),
    "lora": ("#e69f00", "#8a5f00", "#e69f00", "^"),
    "fixed": ("#56b4e9", "#1f6f9f", "#9bd2f2", "P"),
    "aig": ("#009e73", "#00694d", "#1fc08f", "D"),
    "rlg": ("#8a8d0f", "#5f610a", "#c6c95a", "P"),
    "coin": ("#7f7f7f", "#595959", "#b0b0b0", "h"),
    "aigw": ("#2e8b57", "#1e6640", "#57c98a", "*"),
    "beyond": ("#b2182b", "#86101f", "#f06a7a", "D"),
    "beyondw": ("#6a3d9a", "#50297a", "#b48be0", "*"),
    "guidance": ("#17becf", "#0b6f7b", "#5fd9e6", "^"),
    "autoguidance": ("#bcbd22", "#6b6c10", "#d6d75a", "v"),
    "soup": ("#a65628", "#7a3d1a", "#d08a5f", "p"),
    "best": ("#e377c2", "#9c3d80", "#f0a5da", "s"),
    "early": ("#cc79a7", "#94406e", "#e08fbd", "v"),
    "kl-lora": ("#f2c45a", "#7a5a10", "#f5d68a", "<"),
    "kl-fixed": ("#9cd3f3", "#2b6385", "#c3e4f7", "h"),
    "kl-aig": ("#5fd3ac", "#1a7a5e", "#8fe6cb", "d"),
    "trial-lora": ("#b8860b", "#705206", "#d9b24c", "<"),
    "trial-fixed": ("#4f7fb5", "#345a86", "#8fb8e6", "h"),
    "kl-rlg": ("#b5b84f", "#63661c", "#d5d88c", "8"),
    "kl-coin": ("#adadad", "#646464", "#cccccc", "8"),
    "kl-aigw": ("#7fc79b", "#2d6b48", "#a5e0bb", "H"),
    "kl-beyond": ("#e0536a", "#9c2338", "#f08c9c", "d"),
    "kl-beyondw": ("#a883cc", "#643d8c", "#cbb0e6", "H"),
    "trial-aig": ("#6a9f2b", "#4a7216", "#a6d667", "d"),
    "trial-rlg": ("#6d7030", "#4f5120", "#a9ad62", "8"),
    "trial-coin": ("#8d8478", "#5d564c", "#b8afa2", "8"),
    "trial-aigw": ("#8fae3c", "#566b1e", "#bcd673", "H"),
    "trial-beyond": ("#94564f", "#6e3b35", "#cf958e", "d"),
    "trial-beyondw": ("#7d5a8c", "#5d4169", "#b795c4", "H"),
}
MARK, TEXT, _DARK, MARKER = ({family: look[i] for family, look in LOOKS.items()} for i in range(4))
# The same markers in SVG, around the origin, for legends and tables in the page.
SHAPES = {
    "o": '<circle r="4.5"/>',
    "X": '<path d="M-4,-4L4,4M4,-4L-4,4" stroke="currentColor" stroke-width="3.4"/>',
    "s": '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    "^": '<path d="M0,-5L5,4H-5Z"/>',
    "v": '<path d="M0,5L5,-4H-5Z"/>',
    "D": '<path d="M0,-5.5L5.5,0L0,5.5L-5.5,0Z"/>',
    "p": '<path d="M0,-5L4.8,-1.5L2.9,4H-2.9L-4.8,-1.5Z"/>',
    "P": '<path d="M0,-5V5M-5,0H5" stroke="currentColor" stroke-width="3.8"/>',
    "d": '<path d="M0,-5.5L3.3,0L0,5.5L-3.3,0Z"/>',
    "<": '<path d="M-5,0L4,5V-5Z"/>',
    ">": '<path d="M5,0L-4,5V-5Z"/>',
    "h": '<path d="M0,-5L4.3,-2.5V2.5L0,5L-4.3,2.5V-2.5Z"/>',
    "H": '<path d="M-5,0L-2.5,4.3H2.5L5,0L2.5,-4.3H-2.5Z"/>',
    "8": '<path d="M-2,-4.8H2L4.8,-2V2L2,4.8H-2L-4.8,2V-2Z"/>',
    "*": '<path d="M0,-5.5L1.3,-1.7H5.3L2.1,0.7L3.3,4.6L0,2.2L-3.3,4.6L-2.1,0.7L-5.3,-1.7H-1.3Z"/>',
}
COLOURED = tuple(family for family, color in MARK.items() if color != INK)
"""Families that a page needs a colour for."""

# In an SVG each of these colours becomes a variable of the page, which has a light and a dark value for it.
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    CARD: "card",
    **{MARK[family]: family for family in COLOURED},
    **{TEXT[family]: f"{family}-text" for family in COLOURED},
}
_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "axes.unicode_minus": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "aig",
}


def mark(family: str) -> str:
    """A family's marker as a small SVG."""
    return f'<svg class="mark f-{family}" viewBox="-6 -6 12 12" aria-hidden="true">{SHAPES[MARKER[family]]}</svg>'


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure, undone at the end."""
    with mpl.rc_context(_RC):
        yield


def canvas(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    left: float = 0.62,
    right: float = 0.12,
    top: float = 0.12,
    bottom: float = 0.52,
    between: tuple[float, float] = (0.62, 0.8),
    **subplots: Any,
) -> tuple[Figure, Any]:
    """A figure of width × height inches that needs no display, and its axes; margins and gaps (x, y) are in inches too.

    The layout is fixed, so that positions in pixels are final once the axes' limits are.
    """
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    panel_width = (width - left - right - between[0] * (columns - 1)) / columns
    panel_height = (height - top - bottom - between[1] * (rows - 1)) / rows
    grid = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": bottom / height}
    grid |= {"wspace": between[0] / panel_width, "hspace": between[1] / panel_height}
    return figure, figure.subplots(rows, columns, gridspec_kw=grid, **subplots)


HEAD, FOOT = 0.68, 0.78
"""Room in inches for a title and a legend of one row above the axes, and for a note below them."""


def head(width: float, handles: Sequence[Artist]) -> float:
    """Room in inches for a title and a legend above the axes of a figure of this width."""
    return HEAD + 0.2 * (math.ceil(len(handles) / _columns(width, handles)) - 1)


def _columns(width: float, handles: Sequence[Artist]) -> int:
    """Columns of a legend, as many as fit the width in inches."""
    sizes = [0.5 + 0.068 * len(str(handle.get_label())) for handle in handles]
    for columns in range(len(sizes), 1, -1):
        rows = math.ceil(len(sizes) / columns)
        if sum(max(sizes[i : i + rows]) for i in range(0, len(sizes), rows)) <= width:
            return columns
    return 1


def annotate(
    figure: Figure, title: str, note: str, handles: Sequence[Artist], columns: int | None = None
) -> tuple[Text, Text]:
    """Title and legend above the axes, a note below them; returns what a page says in text: title and note."""
    height = figure.get_figheight()
    head = figure.text(0.008, 1 - 0.09 / height, title, va="top", fontsize=11, weight="bold", parse_math=False)
    foot = figure.text(0.008, 0.07 / height, note, va="bottom", fontsize=8, color=MUTED, parse_math=False)
    spacing = {"columnspacing": 1.3, "handletextpad": 0.4, "borderaxespad": 0.0, "borderpad": 0.0}
    place = (0.008, 1 - 0.38 / height)
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=place,
        ncols=columns or _columns(figure.get_figwidth(), handles),
        **spacing,
    )
    return head, foot


def mention(apart: tuple[Text, Text], unnamed: Sequence[str]) -> None:
    """Adds to the note that some arms have no name in the figure, if so."""
    if unnamed:
        apart[1].set_text(f"{apart[1].get_text()} Without a name, for space: {len(set(unnamed))} arms.")


def kl_colors(kls: Iterable[tuple[float, str]]) -> dict[tuple[float, str], str]:
    """A colour for each KL (weight, steps), in their order."""
    ordered = sorted(set(kls))
    places = [0.3 + 0.5 * i / max(1, len(ordered) - 1) for i in range(len(ordered))]
    return {kl: to_hex(colormaps["plasma"](place)) for kl, place in zip(ordered, places, strict=True)}


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure at twice the screen's resolution on white."""
    figure.savefig(path, format="png", dpi=200, facecolor=CARD, metadata={"Software": None})


def inline_svg(
    figure: Figure, name: str, title: str, hide: Sequence[Artist] = (), tips: Mapping[str, str] | None = None
) -> str:
    """The figure as SVG to stand in a page: it loads nothing, its colours are the page's, and its ids begin with name.

    hide: a title and a note made by annotate, which only the PNG shows, since the page says the same in text.
    tips: an artist's gid -> what the pointer shows there.
    """
    for artist in hide:
        artist.set_visible(False)
    buffer = io.StringIO()
    blank = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    width, height = figure.get_size_inches()
    box = Bbox.from_extents(0, FOOT - 0.5, width, height - 0.34) if hide else Bbox.from_extents(0, 0, width, height)
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches=box, metadata=blank)
    for artist in hide:
        artist.set_visible(True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.S)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?)="[^"]*"', "", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    for color, variable in _VARIABLES.items():
        svg = re.sub(rf"{color}\b", f"var(--{variable})", svg)
    for gid, tip in (tips or {}).items():
        svg = svg.replace(f'<g id="{name}-{gid}">', f'<g id="{name}-{gid}"><title>{escape(tip)}</title>')
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title, quote=True)}" ', 1)


def variables(scheme: str) -> dict[str, str]:
    """The page's colours by variable name, for the light or the dark scheme."""
    light = {variable: color for color, variable in _VARIABLES.items()}
    if scheme == "light":
        return light
    # On a dark ground the marks' own colours are legible as text.
    grounds = {"ink": _DARK["base"], "muted": "#9aa3ae", "grid": "#31363d", "card": "#1b1e23"}
    return {variable: (grounds | _DARK)[variable.removesuffix("-text")] for variable in light}
