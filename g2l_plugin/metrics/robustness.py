"""The robustness index: whether neighbours share the tissue class or the medical centre."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from loguru import logger
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings, take
from g2l_plugin.metrics.listed_tiles import in_domain
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult
from g2l_plugin.metrics.neighbour_kinds import (
    KINDS,
    NO_INFORMATIVE,
    count_kinds,
    de_jong_index,
    of_units,
    own_group,
    pathorob_index,
    why_uninformative,
)
from g2l_plugin.metrics.neighbours import Distance, n_available

_INDICES = ("RobustnessIndex", "PathoROBIndex")

ROBUSTNESS = MetricFamily(
    key="robustness",
    title="Robustness index (de Jong et al.)",
    about="Neighbours of the same class over neighbours of the same centre: above 1, biology "
    "outweighs the hospital (arXiv 2501.18055).",
    pattern=r"RobustnessIndex/k=(?P<k>\d+)",
    column="robustness index",
    neutral=1.0,
    curve="neighbours k",
)
PATHOROB = MetricFamily(
    key="pathorob",
    title="Robustness index (PathoROB's definition)",
    about="Among neighbours that share either class or centre, the share with the class: above "
    "0.5, biology outweighs the hospital (arXiv 2507.17845). The k is ours: only the index as "
    "published may be set beside PathoROB's leaderboard.",
    pattern=r"PathoROBIndex/k=(?P<k>\d+)",
    column="PathoROB index",
    neutral=0.5,
    curve="neighbours k",
)


class RobustnessIndex(EmbeddingMetric):
    """Robustness index in both definitions, `RobustnessIndex/k=K` and `PathoROBIndex/k=K`.

    SS, SO, OS and OO count the k nearest neighbours of all tiles. The first letter says whether a
    neighbour has the same or another class, the second whether it has the same or another centre.

    Source: `RobustnessIndex` is de Jong et al. 2025 (arXiv 2501.18055), (SS + SO) / (SS + OS),
    above 1 if the class outweighs the centre. `PathoROBIndex` is Kömen et al. 2025 (PathoROB,
    arXiv 2507.17845), SO / (SO + OS), 0 to 1. As in its published code, neighbours are found by
    cosine similarity, and tiles of the same slide never count.

    Examples:
        >>> import numpy as np
        >>> values = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]], np.float32)
        >>> labels = np.array([0, 0, 0, 1, 1, 1])
        >>> centres = np.array(["x", "y", "x", "y", "x", "y"])
        >>> tiles = Embeddings(values, labels, np.array(list("abcdef")), {"centre": centres})
        >>> metric = RobustnessIndex(k=[2], exclude=(), device="cpu")
        >>> metric.compute(tiles, tiles).values
        {'RobustnessIndex/k=2': 3.0, 'PathoROBIndex/k=2': 1.0}
    """

    def __init__(
        self,
        k: Sequence[int] = (3, 5, 10, 20),
        centre: str = "centre",
        exclude: Sequence[str] = ("slide", "patient"),
        distance: Distance = "cosine",
        tiles: str | None = None,
        device: str = "auto",
    ) -> None:
        """Initializes the metric.

        Args:
            k: Numbers of neighbours.
            centre: Group that holds the centre, or another confounder.
            exclude: Groups whose tiles are never neighbours of each other; the first known one is
                used. If none is known or given, only the tile itself is excluded.
            distance: `cosine` or `euclidean`.
            tiles: List of PathoROB with the tiles to use, e.g. `camelyon`; None uses all.
            device: Where to compute; `auto` uses a CUDA device if there is one.

        Raises:
            UserError: No k is given, or one below 1.
        """
        if not k or min(k) < 1:
            raise UserError(
                f"The robustness index needs numbers of neighbours above 0, but k is {list(k)}. "
                "Set e.g. `k: [5, 10]`."
            )
        self.k, self.centre, self.exclude = sorted(set(k)), centre, tuple(exclude)
        self.distance, self.tiles, self.device = distance, tiles, device

    @property
    @override
    def names(self) -> Sequence[str]:
        return self._names(self.k)

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        if self.tiles is not None:
            evaluated = take(evaluated, in_domain(evaluated, self.tiles))
        if reason := why_uninformative(evaluated, self.centre):
            return MetricResult({}, dict.fromkeys(self.names, reason))
        excluded, own = own_group(evaluated, self.exclude)
        if excluded is None and self.exclude:
            logger.warning(
                f"Robustness index: the {' or '.join(self.exclude)} of the tiles is unknown, so "
                "tiles of the same one count as neighbours. They share a centre, which lowers the "
                "index."
            )
        available = n_available(len(evaluated), (own, own))
        ks = [k for k in self.k if k <= available]
        undefined = dict.fromkeys(
            self._names(set(self.k) - set(ks)),
            f"a tile has only {available:,} others of another {excluded or 'name'}",
        )
        if not ks:
            return MetricResult({}, undefined)
        names, units = np.unique(evaluated.units, return_inverse=True)
        counts = count_kinds(
            evaluated,
            evaluated.groups[self.centre],
            own,
            units,
            len(names),
            max(ks),
            self.distance,
            self.device,
        )
        settings = {"centre": self.centre, "exclude": excluded or "tile", "distance": self.distance}
        result = _summarise(counts, ks, settings)
        return dataclasses.replace(result, undefined=result.undefined | undefined)

    def _names(self, ks: Iterable[int]) -> list[str]:
        return [f"{index}/k={k}" for index in _INDICES for k in sorted(ks)]


def _summarise(counts: np.ndarray, ks: Sequence[int], settings: dict[str, Any]) -> MetricResult:
    """Computes indices, intervals and curves from counts (K, units, 4)."""
    totals = counts.sum(1)
    values, undefined, intervals, curves = {}, {}, {}, {}
    for name, index, missing in (
        ("RobustnessIndex", de_jong_index, "no neighbour has the same centre"),
        ("PathoROBIndex", pathorob_index, NO_INFORMATIVE),
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
            interval = bootstrap_interval(of_units(index, counts[k - 1]), np.arange(len(counts[0])))
            values[f"{name}/k={k}"] = interval.value
            intervals[f"{name}/k={k}"] = interval.ends()
    neighbours = {str(k): dict(zip(KINDS, totals[k - 1].tolist(), strict=True)) for k in ks}
    details = {
        "robustness": settings | {"neighbours": neighbours},
        "intervals": intervals,
        "curves": curves,
    }
    return MetricResult(values, undefined, details=details)
