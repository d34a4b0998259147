"""What a measure of embeddings is, and what it gives."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import numpy as np

from g2l_plugin.evaluation.embeddings import Embeddings


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a measure found.

    Attributes:
        values: The figures, by the name that they have in eva's results.json, e.g. `KNNAccuracy`.
        undefined: Figures that cannot be told here, with the reason.
        scores: Class probabilities of each evaluated tile (M, C), by classifier, e.g. `knn`.
        details: More, in plain values: settings, curves, confidence intervals.
    """

    values: dict[str, float]
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


class Measure(abc.ABC):
    """Something to be told of an encoder by its embeddings."""

    @abc.abstractmethod
    def measure(self, train: Embeddings, evaluated: Embeddings) -> Outcome:
        """Measures embeddings.

        Args:
            train: Embeddings of the training split; measures that need none leave it alone.
            evaluated: Embeddings of the split that is evaluated.

        Raises:
            UserError: The measure cannot be taken with its settings, e.g. k exceeds the tiles.
        """
