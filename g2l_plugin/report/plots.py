"""Plots of metrics: against size and speed, CKA as bars, against k."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from g2l_plugin.metrics.cka import CKA
from g2l_plugin.metrics.families import k_of
from g2l_plugin.report.models import Model
from g2l_plugin.report.svg import (
    INK,
    MUTED,
    PANELS_PER_ROW,
    Look,
    Plot,
    draw_panels,
    looks_of,
)
from g2l_plugin.report.tables import ITSELF, Column, ResultTable


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
