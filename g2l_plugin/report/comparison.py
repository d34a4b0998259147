"""Whether models differ by more than chance: paired bootstrap over patients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.bootstrap import Interval, bootstrap_interval
from g2l_plugin.metrics.knn import KNN
from g2l_plugin.metrics.probe import LOGISTIC, Auroc
from g2l_plugin.report.sessions import Session
from g2l_plugin.report.tables import Column, ResultTable

_COMPARED = (KNN, LOGISTIC)
"""Families that are compared; their keys are also the names of the classifiers in the files."""

_UNITS = ("patient", "slide")
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much a model differs from the reference on a task.

    Attributes:
        column: Task, split and metric.
        title: Title of the metric.
        model: Name of the model.
        reference: Name of the model that it is compared with.
        interval: Value of the model minus that of the reference; None if they were not compared.
        n_tiles: Tiles (or slides) that both were evaluated on.
        n_units: Number of independent units among them.
        unit: The independent unit: `patient`, `slide` or `tile`.
        problem: Why they were not compared.
    """

    column: Column
    title: str
    model: str
    reference: str
    interval: Interval | None = None
    n_tiles: int = 0
    n_units: int = 0
    unit: str = "tile"
    problem: str = ""

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    @property
    def conclusion(self) -> str:
        """The result of the comparison in a sentence."""
        if self.interval is None:
            return f"Not compared: {self.problem}."
        if not self.is_significant:
            return "The interval includes 0: no difference is shown."
        which = "better" if self.interval.value > 0 else "worse"
        return f"The interval excludes 0: {self.model} is {which}."


def compare_models(
    tables: Sequence[ResultTable], sessions: Sequence[Session], reference: str | None = None
) -> list[Difference]:
    """Compares every model with a reference on each task, by their predictions for the same tiles.

    The bootstrap draws patients, each with all its tiles, and the same ones for both models. Only
    the first session of a model and task is used: its kNN votes and logistic probe are the same in
    every run.

    Args:
        tables: The tables of the report.
        sessions: The sessions.
        reference: Name of the model to compare with; None compares with the best of each column.

    Returns:
        The differences; comparisons that were not possible give the reason.

    Raises:
        UserError: The reference has no session.
    """
    models = list(dict.fromkeys(session.model for session in sessions))
    if reference is not None and reference not in models:
        raise UserError(
            f"No result is of --reference {reference}. Name one of: {', '.join(models)}."
        )
    pairs = [
        (table.family.key, pair)
        for table in tables
        if table.family in _COMPARED
        for pair in _pairs(table, reference)
    ]
    differences = []
    column = None
    for classifier, pair in tqdm(pairs, "Comparing models", leave=False):
        if not pair.problem:
            if column != pair.column:  # keep one reference in memory
                column = pair.column
                of_reference = _predictions(sessions, pair.reference, column, classifier)
            of_model = _predictions(sessions, pair.model, pair.column, classifier)
            pair = _compare(pair, of_model, of_reference)
        differences.append(pair)
    return differences


def _pairs(table: ResultTable, reference: str | None) -> Iterator[Difference]:
    """Yields the comparisons of a table, without their results."""
    for column in table.columns:
        means = {model: value["mean"] for model, value in table.values(column).items()}
        other = reference or max(means, key=lambda model: means[model], default="")
        problem = "" if other in means else f"{other} has no value for this task"
        for model in means:
            if model != other:
                yield Difference(column, table.family.title, model, other, problem=problem)


class _Predictions:
    """Predictions of a model for the tiles of a split.

    Attributes:
        tiles: `label` and `unit` by the name of the tile.
        unit: What a unit is: `patient`, `slide` or `tile`.
    """

    def __init__(
        self, tiles: pd.DataFrame, unit: str, metric: Callable[[np.ndarray], float]
    ) -> None:
        self.tiles = tiles
        self.unit = unit
        self._metric = metric
        self._values: dict[int, float] = {}

    def value(self, rows: np.ndarray) -> float:
        """Computes the metric once per set of rows: the draws are the same for all models."""
        key = hash(rows.tobytes())
        if key not in self._values:
            self._values[key] = self._metric(rows)
        return self._values[key]


def _predictions(
    sessions: Sequence[Session], model: str, column: Column, classifier: str
) -> _Predictions | None:
    """Reads the class probabilities of the first session that has them, sorted by tile."""
    for session in sessions:
        if (session.model, session.task) != (model, column.task):
            continue
        existing = session.tile_columns(column.split)
        names = [name for name in existing if name.startswith(f"{classifier}/")]
        if names:
            unit = next((name for name in _UNITS if name in existing), "name")
            columns = list(dict.fromkeys(["name", "label", unit, *names]))
            table = session.read_tiles(column.split, columns)
            table["unit"] = table[unit].astype(str)
            table = table.set_index("name").sort_index()
            scores = table[names].set_axis([int(name.rpartition("/")[2]) for name in names], axis=1)
            metric = _accuracy if classifier == KNN.key else _auroc
            return _Predictions(
                table[["label", "unit"]],
                "tile" if unit == "name" else unit,
                metric(scores, table["label"].to_numpy()),
            )
    return None


def _compare(difference: Difference, a: _Predictions | None, b: _Predictions | None) -> Difference:
    def not_compared(problem: str) -> Difference:
        return dataclasses.replace(difference, problem=problem)

    if a is None or b is None:
        model = difference.model if a is None else difference.reference
        return not_compared(f"{model} has no predictions")
    names_a, names_b = a.tiles.index, b.tiles.index
    if not names_a.equals(names_b):
        only_a, only_b = len(names_a.difference(names_b)), len(names_b.difference(names_a))
        return not_compared(
            f"they were evaluated on different tiles, {only_a:,} only by {difference.model} and "
            f"{only_b:,} only by {difference.reference}"
        )
    if not a.tiles["label"].equals(b.tiles["label"]):
        return not_compared("the same tiles have different labels")
    units = a.tiles["unit"].to_numpy()
    interval = bootstrap_interval(lambda rows: a.value(rows) - b.value(rows), units, level=_LEVEL)
    if math.isnan(interval.low):
        return not_compared(f"all tiles are of one {a.unit}")
    return dataclasses.replace(
        difference,
        interval=interval,
        n_tiles=len(units),
        n_units=len(np.unique(units)),
        unit=a.unit,
    )


def _accuracy(scores: pd.DataFrame, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    classes = scores.columns.to_numpy()
    correct = classes[scores.to_numpy().argmax(1)] == labels
    return lambda rows: float(correct[rows].mean())


def _auroc(scores: pd.DataFrame, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    return Auroc(scores[list(np.unique(labels))].to_numpy(), labels)
