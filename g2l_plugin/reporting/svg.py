"""Figures of matplotlib as SVG that takes its colours and its type from the page it stands in."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

INK = "#010203"
MUTED = "#010204"
LINE = "#010205"
"""Stand-ins for the colours of text, of what steps back, and of rules."""

_IN_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
_ON_WHITE = {INK: "#1d2430", MUTED: "#5b6675", LINE: "#d5dae1"}
_N_COLOURS = 64
"""Colours of an embedded picture: scattered points need few, and take a third of the space."""

_PIXELS = 1.39
"""Pixels of the page for a point of a figure."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "g2l report",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "figure.dpi": 72,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Draws figures in the style of the report, whatever matplotlib is set to."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, salt: str) -> str:
    """Writes a figure as an SVG element without identifiers that could meet those of another one.

    Args:
        figure: The figure, drawn in `plot_style`.
        salt: Name of the figure in its page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, dpi=144, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # nothing refers to these
    svg = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", svg)
    svg = re.sub(r"data:image/png;base64,([^\"]+)", _with_few_colours, svg)
    # A page shows it in the size of its type, and smaller where there is no room.
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', _with_width, svg, count=1)


def in_page(svg: str) -> str:
    """The SVG with the colours of its page, which follow its light and dark theme."""
    return _coloured(svg, _IN_PAGE)


def on_white(svg: str) -> str:
    """The SVG as a file of its own, on white."""
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return _coloured(re.sub(r"(<svg [^>]*>)", rf"\1{white}", svg, count=1), _ON_WHITE)


def _coloured(svg: str, colours: dict[str, str]) -> str:
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg


def _with_width(found: re.Match[str]) -> str:
    return f'style="width: {round(float(found[1]) * _PIXELS)}px"'


def _with_few_colours(found: re.Match[str]) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA")
    buffer = io.BytesIO()
    few = image.quantize(_N_COLOURS, method=Image.Quantize.FASTOCTREE)
    few.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
