"""Plots as SVG elements: one style, a panel per task, and the colours of the page around them."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from g2l_plugin.report.tables import Column

INK = "#010203"
MUTED = "#010204"
LINE = "#010205"
"""Placeholders for the colours of text, of secondary text and of rules."""

_IN_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
_ON_WHITE = {INK: "#1d2430", MUTED: "#5b6675", LINE: "#d5dae1"}
_N_COLOURS = 64
"""Colours of an embedded image: enough for scattered points, at a third of the size."""

_PIXELS_PER_POINT = 1.39

WIDTH = 11.0
"""Width of a plot in inches; the page scales it."""

PANELS_PER_ROW = 4
_LEGEND_COLUMNS = 6
_LEGEND_HANDLE, _LEGEND_LETTER = 0.57, 0.071
"""Width of a marker with its gaps, and mean width of a letter of a legend, in inches."""

_COLOURS = (
    "#3f7fc4",
    "#e0803a",
    "#3f9e6b",
    "#c9557a",
    "#8a6fd1",
    "#b5942d",
    "#2fa3a8",
    "#a0674b",
    "#6b7c93",
    "#d0473f",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
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


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes:
        name: Name of its file, without suffix.
        title: Its title.
        caption: How to read it.
        svg: The SVG element, with placeholders for colours.
        is_narrow: Whether another plot fits next to it.
    """

    name: str
    title: str
    caption: str
    svg: str
    is_narrow: bool = False


@dataclasses.dataclass(frozen=True)
class Look:
    """Colour and marker of a model, the same in all plots and tables."""

    colour: str
    marker: str


def looks_of(models: Sequence[str]) -> dict[str, Look]:
    """Assigns a look to each model; each repeat pairs the colours with other markers."""
    n = len(_COLOURS)
    return {
        name: Look(_COLOURS[index % n], _MARKERS[(index + index // n) % n])
        for index, name in enumerate(models)
    }


@contextmanager
def plot_style() -> Iterator[None]:
    """Draws figures in the style of the report, whatever the settings of matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def draw_panels(
    name: str,
    columns: Sequence[Column],
    draw: Callable[[Axes, Column], None],
    height: float,
    looks: dict[str, Look] | None = None,
) -> str:
    """Draws a panel for each column of a table.

    Args:
        name: Name of the plot.
        columns: The columns; the titles are their tasks and splits.
        draw: Draws one panel.
        height: Height of a panel in inches.
        looks: Models in the legend; None draws no legend.

    Returns:
        The SVG element.
    """
    n_columns = min(PANELS_PER_ROW, len(columns))
    n_rows = math.ceil(len(columns) / n_columns)
    width = WIDTH * (1 if n_columns == PANELS_PER_ROW else max(n_columns, 2) / PANELS_PER_ROW)
    legend_columns = _legend_columns(list(looks or ()), width)
    legend_rows = math.ceil(len(looks or ()) / legend_columns)
    with plot_style():
        figure = Figure((width, height * n_rows + 0.24 * legend_rows), layout="constrained")
        grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
        for axes, column in zip(grid, columns, strict=False):
            draw(axes, column)
            axes.set_title(f"{column.task} ({column.split})", loc="left", fontweight="bold")
        for axes in grid[len(columns) :]:
            axes.set_visible(False)
        if looks:
            handles = [
                Line2D([], [], color=look.colour, marker=look.marker, ls="", ms=5, label=model)
                for model, look in looks.items()
            ]
            figure.legend(
                handles=handles, loc="outside lower center", ncols=legend_columns, fontsize=8.5
            )
        return to_svg(figure, name)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """The most columns of a legend that fit a width in inches; matplotlib fills them downwards."""
    for n_columns in range(min(_LEGEND_COLUMNS, len(labels)), 1, -1):
        parts = np.array_split([len(label) for label in labels], n_columns)
        needed = sum(_LEGEND_HANDLE + _LEGEND_LETTER * part.max() for part in parts)
        if needed <= width:
            return n_columns
    return 1


def to_svg(figure: Figure, salt: str) -> str:
    """Converts a figure to an SVG element whose identifiers are unique in the page.

    Args:
        figure: The figure, drawn in `plot_style`.
        salt: Name of the plot, unique in the page.
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
    svg = re.sub(r"data:image/png;base64,([^\"]+)", _reduce_colours, svg)
    # A page shows text in its own size, and shrinks the plot if there is too little room.
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', _css_width, svg, count=1)


def in_page(svg: str) -> str:
    """The SVG in the colours of its page, which follow its light or dark theme."""
    return _set_colours(svg, _IN_PAGE)


def on_white(svg: str) -> str:
    """The SVG on white, for a separate file."""
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return _set_colours(re.sub(r"(<svg [^>]*>)", rf"\1{white}", svg, count=1), _ON_WHITE)


def _set_colours(svg: str, colours: dict[str, str]) -> str:
    for placeholder, colour in colours.items():
        svg = svg.replace(placeholder, colour)
    return svg


def _css_width(match: re.Match[str]) -> str:
    return f'style="width: {round(float(match[1]) * _PIXELS_PER_POINT)}px"'


def _reduce_colours(match: re.Match[str]) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGBA")
    buffer = io.BytesIO()
    reduced = image.quantize(_N_COLOURS, method=Image.Quantize.FASTOCTREE)
    reduced.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
