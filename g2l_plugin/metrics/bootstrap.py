"""Confidence intervals by bootstrap over patients."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its confidence interval.

    Attributes:
        value: The value over all rows.
        low: Lower end of the interval; NaN if undefined.
        high: Upper end; NaN if undefined.
    """

    value: float
    low: float
    high: float

    def ends(self) -> dict[str, float | None]:
        """Both ends as a metric's details hold them: None if undefined, because JSON has no NaN."""
        ends = {"low": self.low, "high": self.high}
        return {name: None if math.isnan(end) else end for name, end in ends.items()}


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    units: np.ndarray,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Computes the percentile interval of a value, resampling whole units with replacement.

    Tiles of one patient resemble each other. So patients are resampled, each with all its rows.
    The same units and seed give the same resamples for every statistic. For the paired difference
    of two models, use `statistic = lambda rows: f(a, rows) - f(b, rows)`.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13. Resampling
    whole units is the cluster bootstrap.

    Args:
        statistic: Computes the value of some rows, given as indices with repeats.
        units: Unit of each row (N,), e.g. its patient.
        n_resamples: Number of resamples. Those with a NaN value are left out.
        level: Share of the resamples inside the interval.
        seed: Random seed.

    Returns:
        The value over all rows and its interval. Both ends are NaN if there are fewer than two
        units, or if every resample has a NaN value.
    """
    units = np.asarray(units)
    value = float(statistic(np.arange(len(units))))
    _, unit_of_row, n_rows = np.unique(units, return_inverse=True, return_counts=True)
    if len(n_rows) < 2:
        return Interval(value, math.nan, math.nan)
    rows_by_unit = np.argsort(unit_of_row, kind="stable")
    first = np.cumsum(n_rows) - n_rows

    def of_units(drawn: np.ndarray) -> float:
        return statistic(rows_by_unit[_ranges(first[drawn], n_rows[drawn])])

    with warnings.catch_warnings():
        # scipy warns about NaN values; they are dropped below, before the quantiles are computed.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled = stats.bootstrap(
            (np.arange(len(n_rows)),),
            of_units,
            n_resamples=n_resamples,
            batch=50,  # by default scipy holds all resamples in memory at a time
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    values = resampled.bootstrap_distribution
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates the ranges start, start + 1, ..., start + length - 1."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
