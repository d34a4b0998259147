"""Confidence intervals by bootstrap over patients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval.

    Attributes:
        value: The figure, of all rows.
        low: Lower end of the interval; NaN where it cannot be told.
        high: Upper end; NaN where it cannot be told.
    """

    value: float
    low: float
    high: float

    def ends(self) -> dict[str, float | None]:
        """Low and high as a measure's details hold them: None where they cannot be told."""
        ends = {"low": self.low, "high": self.high}
        return {name: None if math.isnan(end) else end for name, end in ends.items()}


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    units: np.ndarray,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Computes the percentile interval of a figure, over units drawn with replacement.

    Tiles of one patient are alike, so that it is patients that are drawn, each with all its rows.
    The same units and seed give the same draws whatever the statistic. The paired difference of
    two models is `statistic = lambda rows: f(a, rows) - f(b, rows)`.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; the draw of
    whole units is the cluster bootstrap.

    Args:
        statistic: Gives the figure of some rows, named by their indices, with repeats.
        units: Which unit each row is of (N,).
        n_resamples: Draws; those whose statistic is NaN are left out.
        level: Share of the draws that lies within the interval.
        seed: Seed of the draws.

    Returns:
        The figure of all rows and its interval. Both ends are NaN where there are fewer than two
        units, or no draw has a figure.
    """
    units = np.asarray(units)
    value = float(statistic(np.arange(len(units))))
    _, unit_of_row, n_rows = np.unique(units, return_inverse=True, return_counts=True)
    if len(n_rows) < 2:
        return Interval(value, math.nan, math.nan)
    rows = np.argsort(unit_of_row, kind="stable")  # unit after unit
    first = np.cumsum(n_rows) - n_rows
    generator = np.random.default_rng(seed)
    figures = np.empty(n_resamples)
    for index in range(n_resamples):
        drawn = generator.integers(len(n_rows), size=len(n_rows))
        figures[index] = statistic(rows[_ranges(first[drawn], n_rows[drawn])])
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Joins start, start + 1, ..., start + length - 1 of each pair."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
