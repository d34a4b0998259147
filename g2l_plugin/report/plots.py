"""Plots of metrics (against size and speed, CKA as bars, against k) and of embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from tqdm import tqdm

from g2l_plugin.metrics.cka import CKA
from g2l_plugin.metrics.families import k_of
from g2l_plugin.report.models import Model
from g2l_plugin.report.sessions import Session
from g2l_plugin.report.svg import (
    INK,
    LINE,
    MUTED,
    PANELS_PER_ROW,
    WIDTH,
    Look,
    Plot,
    draw_panels,
    looks_of,
    plot_style,
    to_svg,
)
from g2l_plugin.report.tables import ITSELF, Column, ResultTable

_AXES = ("pca/1", "pca/2")
_COLOURED_BY = ("label", "centre", "scanner", "stain")
_MAX_POINTS = 3000
_MAX_NAMED = 10
"""Most groups that a legend names."""

_MODELS_PER_ROW = 6
_MIN_PER_ROW = 4

EMBEDDINGS_CAPTION = (
    f"The first two principal components of each model's embeddings, of at most {_MAX_POINTS:,} "
    "tiles; the axes of different models are unrelated. If the centres separate, the embeddings "
    "reveal the hospital."
)
"""How to read these plots."""


def plot_quality(table: ResultTable, models: Sequence[Model]) -> Iterator[Plot]:
    """Plots a metric against size and, separately for each device, against speed.

    Args:
        table: The table of the metric.
        models: Size and speed of the models.
    """
    looks = looks_of([model.name for model in models])
    by_size = {model.name: model.parameters / 1e6 for model in models if model.parameters}
    if len(by_size) > 1:
        yield Plot(
            "quality_parameters",
            "Quality against size",
            f"{table.title}, by number of parameters on a logarithmic scale: up is better, left is "
            "smaller. Bars are the standard deviation over runs, or else the 95 % interval.",
            _against("quality_parameters", table, by_size, looks, "parameters, millions"),
            is_narrow=len(table.columns) <= 2,
        )
    devices = dict.fromkeys(speed.device for model in models for speed in model.speeds)
    for index, device in enumerate(devices):
        by_speed = {
            model.name: speed.tiles_per_second
            for model in models
            for speed in model.speeds
            if speed.device == device
        }
        if len(by_speed) > 1:
            name = f"quality_speed_{index}" if index else "quality_speed"
            yield Plot(
                name,
                f"Quality against speed, {device}",
                f"{table.title}, by tiles embedded per second on {device}, on a logarithmic "
                "scale: up is better, right is faster.",
                _against(name, table, by_speed, looks, "tiles/s"),
                is_narrow=len(table.columns) <= 2,
            )


def plot_cka(table: ResultTable, models: Sequence[str]) -> Plot | None:
    """Plots CKA with the teacher as bars.

    Args:
        table: The table of CKA.
        models: Names of all models.

    Returns:
        The plot; None if there is no value, or only the teacher's with itself.
    """
    looks = looks_of(models)
    means = {
        column: {
            model: value["mean"]
            for model, value in table.values(column).items()
            if value["mean"] < ITSELF
        }
        for column in table.columns
    }
    columns = [column for column in table.columns if means[column]]
    shown = [model for model in models if any(model in own for own in means.values())]
    if not columns:
        return None

    def draw(axes: Axes, column: Column) -> None:
        for model, mean in means[column].items():
            place = shown.index(model)
            axes.barh(place, mean, height=0.66, color=looks[model].colour)
            axes.text(mean + 0.02, place, f"{mean:.3f}", va="center", color=INK)
        is_first = columns.index(column) % PANELS_PER_ROW == 0
        axes.set_yticks(range(len(shown)), shown if is_first else [""] * len(shown))
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 1.2)
        axes.set_xticks([0, 0.5, 1])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)

    return Plot(
        "cka",
        CKA.title,
        "Linear CKA of each model with its teacher. The start and the student show it before and "
        "after distillation.",
        draw_panels("cka", columns, draw, 0.75 + 0.25 * len(shown)),
        is_narrow=len(columns) <= 2,
    )


def plot_curve(table: ResultTable, values: pd.DataFrame, models: Sequence[str]) -> Plot | None:
    """Plots a metric with its intervals against k.

    Args:
        table: The table of the metric.
        values: All values of the report.
        models: Names of all models.

    Returns:
        The plot; None if the metric is undefined everywhere.
    """
    looks = looks_of(models)
    own = values[(values["family"] == table.family) & ~values["published"]]
    own = own.assign(k=own["metric"].map(k_of))
    own = own.dropna(subset=["mean", "k"]).sort_values("k")
    by_column = {
        column: own[(own["task"] == column.task) & (own["split"] == column.split)]
        for column in table.columns
    }
    columns = [column for column in table.columns if not by_column[column].empty]
    if not columns:
        return None

    def draw(axes: Axes, column: Column) -> None:
        curves = by_column[column]
        ks = {k: place for place, k in enumerate(sorted(set(curves["k"])))}
        for model, curve in curves.groupby("model", sort=False):
            look = looks[str(model)]
            x = curve["k"].map(ks)
            axes.plot(x, curve["mean"], color=look.colour, marker=look.marker, ms=3.6, lw=1.3)
            axes.fill_between(x, curve["low"], curve["high"], color=look.colour, alpha=0.13, lw=0)
        if table.family.neutral is not None:
            axes.axhline(table.family.neutral, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        axes.set_xticks(range(len(ks)), [f"{k:g}" for k in ks])
        axes.set_xlabel(table.family.curve or "k")

    shown = {model: look for model, look in looks.items() if (own["model"] == model).any()}
    name = f"{table.family.key}_k"
    neutral = table.family.neutral
    line = "Bands" if neutral is None else f"The dashed line is at {neutral:g}; bands"
    return Plot(
        name,
        f"{table.family.title} against k",
        f"{table.family.about} {line} are 95 % intervals.",
        draw_panels(name, columns, draw, 2.3, shown),
        is_narrow=len(columns) <= 2,
    )


def plot_embeddings(sessions: Sequence[Session], splits: dict[str, str]) -> Iterator[Plot]:
    """Plots the first two principal components of each model's embeddings, a plot per task.

    Args:
        sessions: The sessions; the first one of a model and task that has embeddings is plotted.
        splits: The split to plot, by task.
    """
    for task, split in tqdm(splits.items(), "Plotting embeddings", leave=False):
        shown: dict[str, Session] = {}
        for session in sessions:
            if session.task == task and set(_AXES) <= set(session.tile_columns(split)):
                shown.setdefault(session.model, session)
        models = list(shown)
        for start in range(0, len(models), _MODELS_PER_ROW):
            part = models[start : start + _MODELS_PER_ROW]
            name = "_".join(["embeddings", *re.findall(r"\w+", task.casefold())])
            name += f"_{start // _MODELS_PER_ROW + 1}" if start else ""
            svg = _draw_embeddings({model: shown[model] for model in part}, split, name)
            yield Plot(name, f"Embeddings of {task} ({split})", "", svg)


def _against(
    name: str, table: ResultTable, x: dict[str, float], looks: dict[str, Look], label: str
) -> str:
    def draw(axes: Axes, column: Column) -> None:
        for model, value in table.values(column).items():
            if model in x:
                axes.errorbar(
                    x[model],
                    value["mean"],
                    yerr=_error(value),
                    color=looks[model].colour,
                    marker=looks[model].marker,
                    markersize=5.5,
                    markeredgewidth=0,
                    elinewidth=1,
                    linestyle="none",
                )
        axes.set_xscale("log")
        axes.set_xlim(min(x.values()) / 1.6, max(x.values()) * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel(label)

    shown = {model: look for model, look in looks.items() if model in x}
    return draw_panels(name, table.columns, draw, 2.3, shown)


def _error(value: dict[str, Any]) -> Any:
    if value["stdev"] > 0:
        return value["stdev"]
    if math.isnan(value["low"]):
        return None
    ends = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
    return np.maximum(ends, 0)


def _draw_embeddings(shown: dict[str, Session], split: str, name: str) -> str:
    tables = {
        model: _subsample(session.read_tiles(split, [*_AXES, *_COLOURED_BY]))
        for model, session in shown.items()
    }
    together = pd.concat(tables.values(), ignore_index=True)
    columns = [name for name in _COLOURED_BY if name in together and together[name].nunique() > 1]
    columns = columns or ["label"]
    classes = next((session.classes for session in shown.values() if session.classes), ())
    with plot_style():
        n_columns = max(len(tables), _MIN_PER_ROW) + 1  # the last one is for the legends
        size = (WIDTH, (WIDTH / n_columns + 0.1) * len(columns) + 0.2)
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(len(columns), n_columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, column in zip(grid, columns, strict=True):
            colours = _colours(together[column])
            for axes, table in zip(row, tables.values(), strict=False):
                if column in table:
                    _scatter(axes, table, [colours[value] for value in table[column]])
            if column == "label":
                _legend(row[len(tables)], "class", colours, dict(enumerate(classes)))
            else:
                _legend(row[len(tables)], column, colours, {})
        for axes, model in zip(grid[0], tables, strict=False):
            axes.set_title(_shorten(model), fontsize=8, fontweight="bold")
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


def _scatter(axes: Axes, table: pd.DataFrame, colours: list[Any]) -> None:
    # In random order, so that the last group does not hide the others.
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


def _shorten(name: str, width: int = 21) -> str:
    """Leaves out the middle: names of runs often differ in their ends only."""
    start = width // 2
    return name if len(name) <= width else f"{name[:start]}…{name[start + 1 - width :]}"
