"""The interface of a metric of embeddings, and its result."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings


@dataclasses.dataclass(frozen=True)
class MetricFamily:
    """Metrics that share a table: their titles and how to read them.

    Larger values are better, unless a family says otherwise.

    Attributes:
        key: Short identifier.
        title: Title of the table.
        about: Explanation in a sentence or two.
        pattern: Regular expression that matches the full names of its metrics. If it has a group
            `k`, that group is a number that the metric depends on, e.g. of neighbours.
        column: Column title in a table of several families; None if it has no column there.
        neutral: Value of an encoder without bias; None if there is no such value.
        curve: What k counts, as the title of the axis of a plot against k; None for no plot.
        smaller_is_better: Whether smaller values are better.
    """

    key: str
    title: str
    about: str
    pattern: str
    column: str | None = None
    neutral: float | None = None
    curve: str | None = None
    smaller_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """Result of a metric.

    Attributes:
        values: Values by their name in eva's results.json, e.g. `KNNAccuracy`.
        undefined: Names of the values that are undefined here, with the reason.
        scores: Class probabilities of each evaluated tile (M, C), by classifier, e.g. `knn`.
        details: Settings, curves and confidence intervals, as plain values for JSON.
    """

    values: dict[str, float]
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


class EmbeddingMetric(abc.ABC):
    """A metric that judges an encoder by its embeddings."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the values, for a report of why they are undefined."""
        return [type(self).__name__]

    @abc.abstractmethod
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        """Computes the metric.

        Args:
            train: Embeddings of the training split; some metrics don't use them.
            evaluated: Embeddings of the evaluated split.

        Raises:
            UserError: The metric can't be computed with its settings, e.g. k exceeds the number of
                tiles.
        """


def compute_all(
    metrics: Iterable[EmbeddingMetric], train: Embeddings, evaluated: Embeddings
) -> MetricResult:
    """Computes several metrics and merges their results.

    A metric that can't be computed on these tiles is undefined, and the others are computed: their
    embeddings may have taken hours.

    Args:
        metrics: The metrics.
        train: Embeddings of the training split.
        evaluated: Embeddings of the evaluated split.
    """
    result = merge(_compute_or_say_why_not(metric, train, evaluated) for metric in metrics)
    for name, reason in result.undefined.items():
        logger.warning(f"{name} is undefined: {reason}")
    return result


def _compute_or_say_why_not(
    metric: EmbeddingMetric, train: Embeddings, evaluated: Embeddings
) -> MetricResult:
    try:
        return metric.compute(train, evaluated)
    except UserError as error:
        return MetricResult({}, dict.fromkeys(metric.names, str(error)))


def check_classes(train: np.ndarray, evaluated: np.ndarray) -> None:
    """Raises a UserError if evaluated tiles have a class (M,) that no training tile (N,) has."""
    if unknown := sorted(set(evaluated.tolist()) - set(train.tolist())):
        raise UserError(
            f"No training tile has class {', '.join(map(str, unknown))}, but evaluated tiles have. "
            "Check the `split` column and MAX_TILES, or leave these tiles out."
        )


def merge(results: Iterable[MetricResult]) -> MetricResult:
    """Merges the results of several metrics; details that are dictionaries are merged too."""
    merged = MetricResult({})
    for result in results:
        merged.values.update(result.values)
        merged.undefined.update(result.undefined)
        merged.scores.update(result.scores)
        for name, value in result.details.items():
            if isinstance(value, dict) and isinstance(merged.details.get(name), dict):
                merged.details[name] = merged.details[name] | value
            else:
                merged.details[name] = value
    return merged
