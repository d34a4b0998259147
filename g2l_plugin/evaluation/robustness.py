"""The robustness index: whether neighbours share the tissue, or the centre that prepared it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from loguru import logger
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.bootstrap import bootstrap_interval
from g2l_plugin.evaluation.embeddings import Embeddings
from g2l_plugin.evaluation.measure import Measure, Outcome
from g2l_plugin.evaluation.neighbours import Metric, nearest

_KINDS = ("SS", "SO", "OS", "OO")
_INDICES = ("RobustnessIndex", "PathoROBIndex")


class RobustnessIndex(Measure):
    """Robustness index in both definitions, `RobustnessIndex/k=K` and `PathoROBIndex/k=K`.

    SS, SO, OS and OO count the k nearest neighbours of all tiles, by whether they are of the same
    or another class (first letter) and of the same or another centre (second letter).

    Source: `RobustnessIndex` is de Jong et al. 2025 (arXiv 2501.18055), (SS + SO) / (SS + OS),
    above 1 where the class tells more than the centre. `PathoROBIndex` is Kömen et al. 2025
    (PathoROB, arXiv 2507.17845), SO / (SO + OS), 0 to 1; as in its published code, neighbours are
    sought by cosine, and tiles of the same slide never count.
    """

    def __init__(
        self,
        k: Sequence[int] = (3, 5, 10, 20),
        centre: str = "centre",
        exclude: Sequence[str] = ("slide", "patient"),
        metric: Metric = "cosine",
        device: str = "auto",
    ) -> None:
        """Initializes the measure.

        Args:
            k: Numbers of neighbours.
            centre: The group that names the centre, or another confounder.
            exclude: Groups whose tiles are not neighbours of each other; the first one that is
                known is taken. Where none is, or none is given, only the tile itself is left out.
            metric: `cosine` or `euclidean`.
            device: Where to compute; `auto` takes a CUDA device where there is one.

        Raises:
            UserError: No k is given.
        """
        if not k:
            raise UserError("The robustness index needs numbers of neighbours, e.g. k: [5, 10].")
        self.k, self.centre, self.exclude = sorted(set(k)), centre, tuple(exclude)
        self.metric, self.device = metric, device

    @override
    def measure(self, train: Embeddings, evaluated: Embeddings) -> Outcome:
        if reason := self._why_undefined(evaluated):
            return Outcome({}, {f"{index}/k={k}": reason for index in _INDICES for k in self.k})
        excluded = next((name for name in self.exclude if name in evaluated.groups), None)
        if excluded is None and self.exclude:
            logger.warning(
                f"Robustness index: no {' or '.join(self.exclude)} is known, so that tiles of the "
                "same one count as neighbours. They are of one centre, which lowers the index."
            )
        own = evaluated.names if excluded is None else evaluated.groups[excluded]
        indices, _ = nearest(
            evaluated.values,
            evaluated.values,
            max(self.k),
            self.metric,
            exclude=(own, own),
            device=self.device,
            description="Robustness index",
        )
        labels = evaluated.labels
        _, centres = np.unique(evaluated.groups[self.centre], return_inverse=True)
        counts = _count(
            labels[indices] == labels[:, None],
            centres[indices] == centres[:, None],
            evaluated.units,
        )
        settings = {"centre": self.centre, "exclude": excluded or "tile", "metric": self.metric}
        return _summarise(counts, self.k, settings)

    def _why_undefined(self, evaluated: Embeddings) -> str | None:
        if self.centre not in evaluated.groups:
            return f"no {self.centre} of the tiles is known"
        for name, values in (
            (self.centre, evaluated.groups[self.centre]),
            ("class", evaluated.labels),
        ):
            if len(np.unique(values)) < 2:
                return f"all tiles are of one {name}, {values[0]}"
        return None


def _count(same_class: np.ndarray, same_centre: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Counts SS, SO, OS and OO among the first 1, 2, ... K neighbours of each unit's tiles.

    Args:
        same_class: Whether a neighbour is of the tile's class, bool (N, K), nearest first.
        same_centre: Whether it is of the tile's centre, bool (N, K).
        units: Which unit (patient) each tile is of (N,).

    Returns:
        The counts, in that order, int (K, units, 4).
    """
    _, unit = np.unique(units, return_inverse=True)
    kinds = unit[:, None] * 4 + 2 * ~same_class + ~same_centre
    size = 4 * (unit.max() + 1)
    counts = [np.bincount(column, minlength=size).reshape(-1, 4) for column in kinds.T]
    return np.cumsum(counts, axis=0)


def _de_jong(counts: np.ndarray) -> float:
    ss, so, os, _ = counts
    return float((ss + so) / (ss + os)) if ss + os else np.nan


def _pathorob(counts: np.ndarray) -> float:
    _, so, os, _ = counts
    return float(so / (so + os)) if so + os else np.nan


def _summarise(counts: np.ndarray, ks: Sequence[int], settings: dict[str, Any]) -> Outcome:
    """Turns counts (K, units, 4) into indices, intervals and curves."""
    totals = counts.sum(1)
    values, undefined, intervals, curves = {}, {}, {}, {}
    for name, index, missing in (
        ("RobustnessIndex", _de_jong, "no neighbour is of the same centre"),
        ("PathoROBIndex", _pathorob, "no neighbour shares the class alone or the centre alone"),
    ):
        curve = [index(total) for total in totals]
        curves[name] = {
            "k": list(range(1, len(curve) + 1)),
            "value": [None if np.isnan(value) else value for value in curve],
        }
        for k in ks:
            if np.isnan(curve[k - 1]):
                undefined[f"{name}/k={k}"] = missing
                continue
            interval = bootstrap_interval(
                _of_units(index, counts[k - 1]), np.arange(len(counts[0]))
            )
            values[f"{name}/k={k}"] = interval.value
            intervals[f"{name}/k={k}"] = interval.ends()
    neighbours = {str(k): dict(zip(_KINDS, totals[k - 1].tolist(), strict=True)) for k in ks}
    details = {
        "robustness": settings | {"neighbours": neighbours},
        "intervals": intervals,
        "curves": curves,
    }
    return Outcome(values, undefined, details=details)


def _of_units(
    index: Callable[[np.ndarray], float], counts: np.ndarray
) -> Callable[[np.ndarray], float]:
    """The index of some units, by their counts (units, 4)."""
    return lambda units: index(counts[units].sum(0))
