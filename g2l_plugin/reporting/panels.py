"""What the plots of a report have in common: a panel a task, and a colour a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from g2l_plugin.reporting.svg import plot_style, to_svg
from g2l_plugin.reporting.table import Column

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
_WIDTH = 11.0
"""Inches; the page scales it to its own width."""

PANELS_BESIDE = 4
"""Most panels beside each other."""

_LEGEND_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes:
        name: Name of its file, without ending.
        title: Its title.
        caption: How to read it.
        svg: The SVG element, with stand-ins for colours.
        is_narrow: Whether another one has room beside it.
    """

    name: str
    title: str
    caption: str
    svg: str
    is_narrow: bool = False


@dataclasses.dataclass(frozen=True)
class Look:
    """How a model is drawn, the same in all plots and tables: colour and marker."""

    colour: str
    marker: str


def looks_of(models: Sequence[str]) -> dict[str, Look]:
    """The look of each model; colours and markers repeat with different partners."""
    n = len(_COLOURS)
    return {
        name: Look(_COLOURS[index % n], _MARKERS[(index + index // n) % n])
        for index, name in enumerate(models)
    }


def draw_panels(
    name: str,
    columns: Sequence[Column],
    draw: Callable[[Axes, Column], None],
    height: float,
    looks: dict[str, Look] | None = None,
) -> str:
    """Draws a panel a column of a table.

    Args:
        name: Name of the plot.
        columns: The columns; their tasks and splits are the titles.
        draw: Draws one of them.
        height: Height of a panel, in inches.
        looks: Models that the legend names; None draws no legend.

    Returns:
        The SVG element.
    """
    n_columns = min(PANELS_BESIDE, len(columns))
    n_rows = math.ceil(len(columns) / n_columns)
    width = _WIDTH * (1 if n_columns == PANELS_BESIDE else max(n_columns, 2) / PANELS_BESIDE)
    legend_rows = math.ceil(len(looks or ()) / _LEGEND_COLUMNS)
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
            n_beside = min(_LEGEND_COLUMNS, len(looks), 3 * n_columns)
            figure.legend(handles=handles, loc="outside lower center", ncols=n_beside, fontsize=8.5)
        return to_svg(figure, name)
