"""Plots of figures: against size and speed, before and after, and against k."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from g2l_plugin.reporting.models import Model
from g2l_plugin.reporting.names import CKA, k_of
from g2l_plugin.reporting.panels import PANELS_BESIDE, Look, Plot, draw_panels, looks_of
from g2l_plugin.reporting.svg import INK, MUTED
from g2l_plugin.reporting.table import ITSELF, Column, ResultTable

_Figures = dict[str, dict[str, Any]]


def plot_quality(table: ResultTable, models: Sequence[Model]) -> Iterator[Plot]:
    """Plots figures against size and, apart for each device, against speed; a panel a task.

    Args:
        table: The figures.
        models: Size and speed of the models.
    """
    looks = looks_of([model.name for model in models])
    by_size = {model.name: model.parameters / 1e6 for model in models if model.parameters}
    if len(by_size) > 1:
        yield Plot(
            "quality_parameters",
            "Quality against size",
            f"{table.title}, by parameters on a logarithmic scale: up is better, left is "
            "smaller. Bars are the standard deviation over runs, else the 95 % interval.",
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
    """Plots CKA with the teacher as bars, of start and student before and after; a panel a task.

    Args:
        table: The table of CKA.
        models: Names of all models.

    Returns:
        The plot; None where only the teacher is compared with itself, or nothing is told.
    """
    looks = looks_of(models)
    of_column = {
        column: {
            model: figure["mean"]
            for model, figure in _figures(table, column).items()
            if figure["mean"] < ITSELF
        }
        for column in table.columns
    }
    columns = [column for column in table.columns if of_column[column]]
    shown = [model for model in models if any(model in means for means in of_column.values())]
    if not columns:
        return None

    def draw(axes: Axes, column: Column) -> None:
        for model, mean in of_column[column].items():
            place = shown.index(model)
            axes.barh(place, mean, height=0.66, color=looks[model].colour)
            axes.text(mean + 0.02, place, f"{mean:.3f}", va="center", color=INK)
        is_first = columns.index(column) % PANELS_BESIDE == 0
        axes.set_yticks(range(len(shown)), shown if is_first else [""] * len(shown))
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 1.2)
        axes.set_xticks([0, 0.5, 1])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)

    return Plot(
        "cka",
        CKA.title,
        "Linear CKA of each model with its teacher; of a student's start and of the student it "
        "tells before distilling from after.",
        draw_panels("cka", columns, draw, 0.75 + 0.25 * len(shown)),
        is_narrow=len(columns) <= 2,
    )


def plot_index(table: ResultTable, figures: pd.DataFrame, models: Sequence[str]) -> Plot | None:
    """Plots a robustness index against k with its intervals, a panel a task.

    Args:
        table: The table of the index.
        figures: All figures of the report.
        models: Names of all models.

    Returns:
        The plot; None where the index is undefined everywhere.
    """
    looks = looks_of(models)
    told = figures[(figures["group"] == table.group.key) & ~figures["published"]]
    told = told.assign(k=told["measure"].map(k_of)).dropna(subset=["mean", "k"]).sort_values("k")
    columns = [column for column in table.columns if not _of_column(told, column).empty]
    if not columns:
        return None

    def draw(axes: Axes, column: Column) -> None:
        own = _of_column(told, column)
        ks = {k: place for place, k in enumerate(sorted(set(own["k"])))}
        for model, curve in own.groupby("model", sort=False):
            look = looks[str(model)]
            x = curve["k"].map(ks)
            axes.plot(x, curve["mean"], color=look.colour, marker=look.marker, ms=3.6, lw=1.3)
            axes.fill_between(x, curve["low"], curve["high"], color=look.colour, alpha=0.13, lw=0)
        if table.group.neutral is not None:
            axes.axhline(table.group.neutral, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        axes.set_xticks(range(len(ks)), [f"{k:g}" for k in ks])
        axes.set_xlabel("neighbours k")

    shown = {model: look for model, look in looks.items() if (told["model"] == model).any()}
    name = f"{table.group.key}_k"
    return Plot(
        name,
        f"{table.group.title} against k",
        f"{table.group.about} That is the dashed line; bands are 95 % intervals.",
        draw_panels(name, columns, draw, 2.3, shown),
        is_narrow=len(columns) <= 2,
    )


def _of_column(figures: pd.DataFrame, column: Column) -> pd.DataFrame:
    return figures[(figures["task"] == column.task) & (figures["split"] == column.split)]


def _figures(table: ResultTable, column: Column) -> _Figures:
    """Measured figures of a column, by their models."""
    index = table.columns.index(column)
    return {
        row.model: figure
        for row in table.rows
        if not row.published
        and (figure := row.cells[index].figure) is not None
        and not math.isnan(figure["mean"])
    }


def _against(
    name: str, table: ResultTable, x: dict[str, float], looks: dict[str, Look], label: str
) -> str:
    def draw(axes: Axes, column: Column) -> None:
        for model, figure in _figures(table, column).items():
            if model in x:
                axes.errorbar(
                    x[model],
                    figure["mean"],
                    yerr=_error(figure),
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


def _error(figure: dict[str, Any]) -> Any:
    if figure["stdev"] > 0:
        return figure["stdev"]
    if math.isnan(figure["low"]):
        return None
    ends = [[figure["mean"] - figure["low"]], [figure["high"] - figure["mean"]]]
    return np.maximum(ends, 0)
