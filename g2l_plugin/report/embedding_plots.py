"""Plots of embeddings in two dimensions: a panel per model, coloured by class and by origin."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from g2l_plugin.report.sessions import Session
from g2l_plugin.report.svg import LINE, WIDTH, Plot, plot_style, to_svg

_COLOURED_BY = ("label", "centre", "scanner", "stain")
_MAX_POINTS = 3000
_MAX_NAMED = 10
"""Most groups that a legend names."""

_MODELS_PER_ROW = 6
_MIN_PER_ROW = 4
_LETTERS, _LINE = 21, 0.13
"""Letters in a line of a panel's title, and its height in inches."""

EMBEDDINGS_CAPTION = (
    f"The first two principal components of each model's embeddings, of at most {_MAX_POINTS:,} "
    "tiles; the axes of different models are unrelated. If the centres separate, the embeddings "
    "reveal the hospital."
)
"""How to read these plots."""

_UMAP_CAPTION = (
    f"UMAP of the same embeddings, of at most {_MAX_POINTS:,} tiles: tiles near each other are "
    "alike. How far groups are apart, and how large they are, says little."
)
"""Source: Coenen and Pearce 2019, "Understanding UMAP", pair-code.github.io/understanding-umap."""

_MAPS = {"pca": ("", ""), "umap": (", UMAP", _UMAP_CAPTION)}
"""What is plotted if it is in the files: the end of the title, and the caption."""


def plot_embeddings(sessions: Sequence[Session], splits: dict[str, str]) -> Iterator[Plot]:
    """Plots two dimensions of each model's embeddings, by PCA and by UMAP, a plot each per task.

    Args:
        sessions: The sessions; the first one of a model and task that has embeddings is plotted.
        splits: The split to plot, by task.
    """
    for task, split in tqdm(splits.items(), "Plotting embeddings", leave=False):
        for kind, (title, caption) in _MAPS.items():
            axes = (f"{kind}/1", f"{kind}/2")
            shown: dict[str, Session] = {}
            for session in sessions:
                if session.task == task and set(axes) <= set(session.tile_columns(split)):
                    shown.setdefault(session.model, session)
            models = list(shown)
            for start in range(0, len(models), _MODELS_PER_ROW):
                part = models[start : start + _MODELS_PER_ROW]
                name = "_".join(["embeddings", *re.findall(r"\w+", task.casefold())])
                name += "" if kind == "pca" else f"_{kind}"
                name += f"_{start // _MODELS_PER_ROW + 1}" if start else ""
                svg = _draw({model: shown[model] for model in part}, split, axes, name)
                yield Plot(name, f"Embeddings of {task} ({split}){title}", caption, svg)


def _draw(shown: dict[str, Session], split: str, places: tuple[str, str], name: str) -> str:
    tables = {
        model: _subsample(session.read_tiles(split, [*places, *_COLOURED_BY]).dropna(subset=places))
        for model, session in shown.items()
    }
    together = pd.concat(tables.values(), ignore_index=True)
    columns = [name for name in _COLOURED_BY if name in together and together[name].nunique() > 1]
    columns = columns or ["label"]
    classes = next((session.classes for session in shown.values() if session.classes), ())
    # In full: the names of two runs often differ in a letter in the middle.
    titles = {model: textwrap.fill(model, _LETTERS) for model in shown}
    with plot_style():
        n_columns = max(len(tables), _MIN_PER_ROW) + 1  # the last one is for the legends
        height = (WIDTH / n_columns + 0.1) * len(columns)
        size = (
            WIDTH,
            height + 0.07 + _LINE * max(title.count("\n") + 1 for title in titles.values()),
        )
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(len(columns), n_columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, column in zip(grid, columns, strict=True):
            colours = _colours(together[column])
            for axes, table in zip(row, tables.values(), strict=False):
                if column in table:
                    groups = [colours[value] for value in table[column]]
                    _scatter(axes, table[list(places)].to_numpy(), groups)
            if column == "label":
                _legend(row[len(tables)], "class", colours, dict(enumerate(classes)))
            else:
                _legend(row[len(tables)], column, colours, {})
        for axes, model in zip(grid[0], tables, strict=False):
            axes.set_title(titles[model], fontsize=8, fontweight="bold")
        return to_svg(figure, name)


def _subsample(table: pd.DataFrame) -> pd.DataFrame:
    """Selects rows evenly spaced over the table."""
    if len(table) <= _MAX_POINTS:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, _MAX_POINTS).round().astype(int)]


def _colours(values: pd.Series) -> dict[Any, Any]:
    groups = sorted(values.dropna().unique())
    palette = matplotlib.colormaps["tab10" if len(groups) <= 10 else "tab20"]
    return {group: palette(index % palette.N) for index, group in enumerate(groups)}


def _scatter(axes: Axes, points: np.ndarray, colours: list[Any]) -> None:
    # In random order, so that the last group does not hide the others.
    order = np.random.default_rng(0).permutation(len(points))
    axes.scatter(
        points[order, 0],
        points[order, 1],
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
        n_unnamed = len(colours) - _MAX_NAMED
        handles.append(Line2D([], [], ls="", label=f"and {n_unnamed} more"))
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
