"""One quiet style for every figure, and figures turned into files or into SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
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

INK, MUTED, GRID, CARD = "#1c2026", "#5f6773", "#e3e6ea", "#ffffff"

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers differ too. Texts are darker, to be legible on white.
MARK = {
    "base": INK,
    "tuned": INK,
    "kl": "#0072b2",
    "lora": "#e69f00",
    "aig": "#009e73",
    "early": "#cc79a7",
    "mix": "#56b4e9",
}
TEXT = {
    "base": INK,
    "tuned": INK,
    "kl": "#005a8c",
    "lora": "#8a5f00",
    "aig": "#00694d",
    "early": "#94406e",
    "mix": "#1f6f9f",
}
MARKER = {"base": "o", "tuned": "X", "kl": "s", "lora": "^", "aig": "D", "early": "v", "mix": "P"}

# In an SVG each of these colours becomes a variable of the page, which has a light and a dark value for it.
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    CARD: "card",
    **{color: family for family, color in MARK.items() if color != INK},
    **{color: f"{family}-text" for family, color in TEXT.items() if color != INK},
}
_RC: dict[str, Any] = {
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


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure, undone at the end."""
    with mpl.rc_context(_RC):
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of width × height inches that needs no display, and its axes."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **subplots)


def settle(figure: Figure) -> None:
    """Lays the figure out once and for all, so that positions in pixels are final."""
    figure.canvas.draw()
    figure.set_layout_engine("none")


def kl_colors(weights: list[float]) -> dict[float, str]:
    """A colour for each KL weight, in the order of the weights."""
    ordered = sorted(set(weights))
    places = [0.2 + 0.6 * i / max(1, len(ordered) - 1) for i in range(len(ordered))]
    return {weight: to_hex(colormaps["plasma"](place)) for weight, place in zip(ordered, places, strict=True)}


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure at twice the screen's resolution on white."""
    figure.savefig(path, dpi=200, facecolor=CARD, metadata={"Software": None})


def inline_svg(figure: Figure, name: str, title: str, hide: list[Artist] = (), tips: Mapping[str, str] = {}) -> str:  # noqa: B006
    """The figure as SVG to stand in a page: it loads nothing, takes its colours from the page, and its ids begin with name.

    hide: artists that only the PNG shows, since the page says the same in text. tips: an artist's gid -> what the pointer shows there.
    """
    for artist in hide:
        artist.set_visible(False)
    buffer = io.StringIO()
    blank = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # A transparent figure still draws its frame's markers: only the figure's and the axes' backgrounds go.
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.03, metadata=blank)
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
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)
    for color, variable in _VARIABLES.items():
        svg = re.sub(rf"{color}\b", f"var(--{variable})", svg)
    for gid, tip in tips.items():
        svg = svg.replace(f'<g id="{name}-{gid}">', f'<g id="{name}-{gid}"><title>{escape(tip)}</title>')
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title, quote=True)}" ', 1)
