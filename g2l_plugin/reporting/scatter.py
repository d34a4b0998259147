"""Plots of embeddings, coloured by class and by where the tiles are from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from g2l_plugin.reporting.panels import Plot
from g2l_plugin.reporting.predictions import columns_of, read_columns, subsample
from g2l_plugin.reporting.sessions import Session
from g2l_plugin.reporting.svg import LINE, plot_style, to_svg

_AXES = ("pca/1", "pca/2")
_COLOURINGS = {"label": "class", "centre": "centre", "scanner": "scanner", "stain": "stain"}
_MAX_POINTS = 3000
_MAX_NAMED = 10
"""Groups that a legend names."""

_A_ROW = 6
"""Models beside each other."""

_LEAST_BESIDE = 4
_WIDTH = 11.0
"""Inches."""

EMBEDDINGS_CAPTION = (
    f"The first two principal components of each model's embeddings, of at most {_MAX_POINTS:,} "
    "tiles; the axes of two models have nothing in common. Where centres part, the encoder tells "
    "the hospital."
)
"""How to read these plots."""


def plot_embeddings(sessions: Sequence[Session], splits: dict[str, str]) -> Iterator[Plot]:
    """Plots the first two principal components of each model's embeddings; a plot a task.

    Args:
        sessions: The sessions; of a model and task the first one is taken that has embeddings.
        splits: The split to show, by task.
    """
    for task, split in tqdm(splits.items(), "Plotting embeddings", leave=False):
        shown: dict[str, Session] = {}
        for session in sessions:
            if session.task == task and set(_AXES) <= set(columns_of(session, split)):
                shown.setdefault(session.model, session)
        models = list(shown)
        for start in range(0, len(models), _A_ROW):
            part = models[start : start + _A_ROW]
            name = "_".join(["embeddings", *re.findall(r"\w+", task.casefold())])
            name += f"_{start // _A_ROW + 1}" if start else ""
            yield Plot(
                name,
                f"Embeddings of {task} ({split})",
                "",
                _draw({model: shown[model] for model in part}, split, name),
            )


def _draw(shown: dict[str, Session], split: str, name: str) -> str:
    tables = {
        model: subsample(read_columns(session, split, [*_AXES, *_COLOURINGS]), _MAX_POINTS)
        for model, session in shown.items()
    }
    together = pd.concat(tables.values(), ignore_index=True)
    columns = [name for name in _COLOURINGS if name in together and together[name].nunique() > 1]
    columns = columns or ["label"]
    classes = next((session.classes for session in shown.values() if session.classes), ())
    with plot_style():
        beside = max(len(tables), _LEAST_BESIDE) + 1  # the last is for the legends
        size = (_WIDTH, (_WIDTH / beside + 0.1) * len(columns) + 0.2)
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(len(columns), beside, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, column in zip(grid, columns, strict=True):
            colours = _colours(together[column])
            for axes, table in zip(row, tables.values(), strict=False):
                if column in table:
                    _scatter(axes, table, [colours[value] for value in table[column]])
            names = dict(enumerate(classes)) if column == "label" else {}
            _legend(row[len(tables)], _COLOURINGS[column], colours, names)
        for axes, model in zip(grid[0], tables, strict=False):
            axes.set_title(_shortened(model), fontsize=8, fontweight="bold")
        return to_svg(figure, name)


def _colours(values: pd.Series) -> dict[Any, Any]:
    groups = sorted(values.dropna().unique())
    palette = matplotlib.colormaps["tab10" if len(groups) <= 10 else "tab20"]
    return {group: palette(index % palette.N) for index, group in enumerate(groups)}


def _scatter(axes: Axes, table: pd.DataFrame, colours: list[Any]) -> None:
    # Mixed, so that the group that is drawn last does not hide the others.
    order = np.random.default_rng(0).permutation(len(table))
    axes.scatter(
        table[_AXES[0]].to_numpy()[order],
        table[_AXES[1]].to_numpy()[order],
        s=2.2,
        c=np.array(colours)[order],
        linewidths=0,
        alpha=0.8,
        rasterized=True,
    )
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(LINE)
    axes.set_box_aspect(1)


def _legend(axes: Axes, title: str, colours: dict[Any, Any], names: dict[int, str]) -> None:
    handles = [
        Line2D([], [], color=colour, marker="o", ls="", ms=4, label=str(names.get(group, group)))
        for group, colour in list(colours.items())[:_MAX_NAMED]
    ]
    if len(colours) > _MAX_NAMED:
        left_out = f"and {len(colours) - _MAX_NAMED} more"
        handles.append(Line2D([], [], ls="", label=left_out))
    axes.legend(
        handles=handles,
        title=f"by {title}",
        loc="upper left",
        fontsize=8,
        title_fontsize=8.5,
        alignment="left",
        handletextpad=0.2,
        borderpad=0,
    )


def _shortened(name: str, width: int = 21) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
