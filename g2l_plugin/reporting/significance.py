"""Whether a model is better than another one, or only looks it: paired bootstrap over patients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.bootstrap import Interval, bootstrap_interval
from g2l_plugin.evaluation.probe import Auroc
from g2l_plugin.reporting.predictions import read_scores
from g2l_plugin.reporting.sessions import Session
from g2l_plugin.reporting.table import Column, ResultTable

_CLASSIFIERS = {"knn": "knn", "logistic": "logistic"}
"""Groups of measures that are compared, with the classifier whose scores tell them."""

LEVEL = 0.95
"""Level of the intervals."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much a model differs from the reference on a task.

    Attributes:
        column: Task, split and measure.
        title: What the measure is called.
        model: The model.
        reference: The model it is compared with.
        interval: The model's figure less the reference's; None where they were not compared.
        n_tiles: Tiles (or slides) that both were evaluated on.
        n_units: How many of them are independent of each other.
        unit: What is independent: `patient`, `slide` or `tile`.
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
    def is_told(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    @property
    def reading(self) -> str:
        """The difference in a plain sentence."""
        if self.interval is None:
            return f"Not compared: {self.problem}."
        if not self.is_told:
            return "The interval includes 0: no difference is shown."
        which = "better" if self.interval.value > 0 else "worse"
        return f"The interval excludes 0: {self.model} is {which}."


def compare_models(
    tables: Sequence[ResultTable], sessions: Sequence[Session], reference: str | None = None
) -> list[Difference]:
    """Compares every model with a reference on each task, by the predictions for the same tiles.

    The draws are of patients, each with all its tiles, and the same for both models. The first
    session of a model and task is taken: its kNN votes and logistic probe do not change with runs.

    Args:
        tables: The tables of the report.
        sessions: The sessions.
        reference: Name of the model to compare with; None takes the best one of each column.

    Returns:
        The differences; those that could not be told say why.

    Raises:
        UserError: No session is of the reference.
    """
    models = list(dict.fromkeys(session.model for session in sessions))
    if reference is not None and reference not in models:
        raise UserError(f"No result is of --reference {reference}. Models: {', '.join(models)}.")
    pairs = [pair for table in tables for pair in _pairs(table, reference)]
    differences = []
    shown = None
    for pair, classifier in tqdm(pairs, "Comparing models", leave=False):
        if not pair.problem:
            if shown != pair.column:  # the reference of one column at a time
                shown = pair.column
                of_reference = _evaluate(sessions, pair.reference, pair.column, classifier)
            of_model = _evaluate(sessions, pair.model, pair.column, classifier)
            pair = _compare(pair, of_model, of_reference)
        differences.append(pair)
    return differences


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """Labels and units of the tiles of a model, and its figure of some of them."""

    tiles: pd.DataFrame
    figure: Callable[[np.ndarray], float]


def _evaluate(
    sessions: Sequence[Session], model: str, column: Column, classifier: str
) -> _Evaluated | None:
    for session in sessions:
        if (session.model, session.task) == (model, column.task):
            scores = read_scores(session, column.split, classifier)
            if scores is not None:
                tiles, scores = scores[["label", "unit"]], scores.drop(columns=["label", "unit"])
                figure = _accuracy if classifier == "knn" else _auroc
                return _Evaluated(tiles, _Remembered(figure(scores, tiles["label"].to_numpy())))
    return None


class _Remembered:
    """A figure of rows, computed once for each: the draws are the same for all models."""

    def __init__(self, figure: Callable[[np.ndarray], float]) -> None:
        self._figure = figure
        self._known: dict[int, float] = {}

    def __call__(self, rows: np.ndarray) -> float:
        key = hash(rows.tobytes())
        if key not in self._known:
            self._known[key] = self._figure(rows)
        return self._known[key]


def _pairs(table: ResultTable, reference: str | None) -> Iterator[tuple[Difference, str]]:
    """Yields what is to be compared, with the classifier whose scores tell it."""
    classifier = _CLASSIFIERS.get(table.group.key)
    if classifier is None:
        return
    for index, column in enumerate(table.columns):
        told = {
            row.model: figure["mean"]
            for row in table.rows
            if not row.published
            and (figure := row.cells[index].figure)
            and not math.isnan(figure["mean"])
        }
        other = reference or max(told, key=lambda model: told[model], default="")
        problem = "" if other in told else f"{other} has no figure of this task"
        for model in told:
            if model != other:
                pair = Difference(column, table.group.title, model, other, problem=problem)
                yield pair, classifier


def _compare(difference: Difference, a: _Evaluated | None, b: _Evaluated | None) -> Difference:
    def not_compared(problem: str) -> Difference:
        return dataclasses.replace(difference, problem=problem)

    if a is None or b is None:
        who = difference.model if a is None else difference.reference
        return not_compared(f"{who} left no predictions")
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
    interval = bootstrap_interval(lambda rows: a.figure(rows) - b.figure(rows), units, level=LEVEL)
    if math.isnan(interval.low):
        return not_compared(f"all tiles are of one {a.tiles.attrs['unit']}")
    return dataclasses.replace(
        difference,
        interval=interval,
        n_tiles=len(units),
        n_units=len(np.unique(units)),
        unit=a.tiles.attrs["unit"],
    )


def _accuracy(scores: pd.DataFrame, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    classes = scores.columns.to_numpy()
    correct = classes[scores.to_numpy().argmax(1)] == labels
    return lambda rows: float(correct[rows].mean())


def _auroc(scores: pd.DataFrame, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    return Auroc(scores[list(np.unique(labels))].to_numpy(), labels)
