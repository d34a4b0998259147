"""PathoROB's robustness index as published: with its k, its tiles and its paired subsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings, take
from g2l_plugin.metrics.listed_tiles import OUT_OF_DOMAIN, in_domain, subsets_of
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult
from g2l_plugin.metrics.neighbour_kinds import (
    KINDS,
    NO_INFORMATIVE,
    count_kinds,
    of_units,
    pathorob_index,
    why_uninformative,
)
from g2l_plugin.metrics.neighbours import n_available

PUBLISHED_PATHOROB = MetricFamily(
    key="pathorob_published",
    title="Robustness index (PathoROB, as published)",
    about="PathoROB's own k, tiles and paired subsets: may be set beside its leaderboard. Above "
    "0.5, biology outweighs the hospital (arXiv 2507.17845).",
    pattern=r"PublishedPathoROBIndex/k=(?P<k>\d+)",
)


class PublishedPathoROBIndex(EmbeddingMetric):
    """PathoROB's robustness index SO / (SO + OS) as its leaderboard has it.

    SO counts neighbours of the same class and another centre, OS those of another class and the
    same centre, among the k nearest by cosine similarity from other slides.

    k is a constant of each dataset: 11 (camelyon), 61 (TCGA 2x2) and 46 (Tolkach ESCA). It is the
    median over PathoROB's models of the k at which kNN tells the classes best.

    TCGA's classes and centres are not balanced. So its index is *paired*: each subset of tcga_2x2
    has two classes from two centres, equally many tiles of each of the four. Neighbours are found
    within a subset, and the counts of all subsets are added.

    Source: Kömen et al. 2025 (arXiv 2507.17845), the robustness index; k and subsets as in
    https://github.com/bifold-pathomics/PathoROB.
    """

    def __init__(self, tiles: str, k: int, paired: bool = False, device: str = "auto") -> None:
        """Initializes the metric.

        Args:
            tiles: List of PathoROB with the tiles, e.g. `camelyon`.
            k: Number of neighbours.
            paired: Whether neighbours are of the same subset of the list.
            device: Where to compute; `auto` uses a CUDA device if there is one.

        Raises:
            UserError: k is below 1.
        """
        if k < 1:
            raise UserError(f"k is {k}. Expected PathoROB's number of neighbours, e.g. `k: 11`.")
        self.tiles, self.k, self.paired, self.device = tiles, k, paired, device

    @property
    @override
    def names(self) -> Sequence[str]:
        return [f"PublishedPathoROBIndex/k={self.k}"]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        _, units = np.unique(evaluated.units, return_inverse=True)
        n_units = int(units.max()) + 1
        counts = np.zeros((n_units, len(KINDS)), np.int64)
        subsets = self._subsets(evaluated)
        for name, rows in subsets.items():
            subset = take(evaluated, rows)
            if reason := self._why_undefined(subset):
                return self._undefined(f"in {name}, {reason}")
            counts += count_kinds(
                subset,
                subset.groups["centre"],
                subset.groups["slide"],
                units[rows],
                n_units,
                self.k,
                device=self.device,
            )[-1]
        # A patient without a tile in the list is not resampled.
        counts = counts[counts.any(axis=1)]
        total = counts.sum(0)
        if np.isnan(pathorob_index(total)):
            return self._undefined(NO_INFORMATIVE)
        interval = bootstrap_interval(of_units(pathorob_index, counts), np.arange(len(counts)))
        (name,) = self.names
        settings = {"tiles": self.tiles, "k": self.k, "paired": self.paired}
        neighbours = dict(zip(KINDS, total.tolist(), strict=True))
        return MetricResult(
            {name: interval.value},
            details={
                "pathorob": settings | {"subsets": len(subsets), "neighbours": neighbours},
                "intervals": {name: interval.ends()},
            },
        )

    def _subsets(self, tiles: Embeddings) -> dict[str, np.ndarray]:
        if not self.paired:
            return {self.tiles: in_domain(tiles, self.tiles)}
        subsets = subsets_of(tiles, self.tiles)
        return {name: rows for name, rows in subsets.items() if name != OUT_OF_DOMAIN}

    def _why_undefined(self, tiles: Embeddings) -> str | None:
        if reason := why_uninformative(tiles, "centre"):
            return reason
        if "slide" not in tiles.groups:
            return "the slide of the tiles is unknown"
        slides = tiles.groups["slide"]
        available = n_available(len(tiles), (slides, slides))
        if available < self.k:
            return f"a tile has only {available:,} others of another slide"
        return None

    def _undefined(self, reason: str) -> MetricResult:
        return MetricResult({}, dict.fromkeys(self.names, reason))
