"""The interface of a metric of embeddings, and its result."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings


@dataclasses.dataclass(frozen=True)
class MetricFamily:
    """Metrics that share a table: their titles and how to read them.

    In every family, larger values are better.

    Attributes:
        key: Short identifier.
        title: Title of the table.
        about: Explanation in a sentence or two.
        pattern: Regular expression that matches the full names of its metrics. If it has a group
            `k`, that group is the number of neighbours.
        column: Column title in a table of several families; None if it has no column there.
        neutral: Value of an encoder without bias; None if there is no such value.
    """

    key: str
    title: str
    about: str
    pattern: str
    column: str | None = None
    neutral: float | None = None


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

    Args:
        metrics: The metrics.
        train: Embeddings of the training split.
        evaluated: Embeddings of the evaluated split.

    Raises:
        UserError: A metric can't be computed, or the training split lacks an evaluated class.
    """
    if unknown := sorted(set(evaluated.labels) - set(train.labels)):
        raise UserError(
            f"The evaluated split has the classes {', '.join(map(str, unknown))}, but the training "
            "split has not. Check the `split` column, or MAX_TILES."
        )
    result = merge([metric.compute(train, evaluated) for metric in metrics])
    for name, reason in result.undefined.items():
        logger.warning(f"{name} is undefined: {reason}")
    return result


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
