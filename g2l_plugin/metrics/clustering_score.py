"""PathoROB's clustering score: whether k-means finds the tissue classes or the centres."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, pairwise_distances, silhouette_score
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings, take
from g2l_plugin.metrics.listed_tiles import in_domain
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult
from g2l_plugin.metrics.neighbour_kinds import why_uninformative
from g2l_plugin.metrics.neighbours import check_values

CLUSTERING = MetricFamily(
    key="clustering_score",
    title="Clustering score (PathoROB, as published)",
    about="Adjusted Rand index of k-means clusters with the classes, minus that with the centres: "
    "-1 to 1, above 0 if clusters follow biology (arXiv 2507.17845).",
    pattern=r"ClusteringScore(/trials=\d+)?",
)

_N_CLUSTERS = range(2, 31)
_SEED = 1337
_TRIALS = 50


class ClusteringScore(EmbeddingMetric):
    """PathoROB's clustering score, `ClusteringScore`: ARI with classes minus ARI with centres.

    For each pair of classes and pair of centres that has tiles of all four combinations, k-means
    clusters the normalised embeddings. The number of clusters, 2 to 30, is that with the largest
    silhouette (cosine; 20 random starts). Then k-means runs 50 times with other seeds (5 random
    starts each). The score is the mean over these trials and over the combinations.

    At 1,536 features, the 36 combinations of TCGA need about 30,000 runs of k-means.

    Source: Kömen et al. 2025 (arXiv 2507.17845), the clustering score; numbers and seeds as in
    https://github.com/bifold-pathomics/PathoROB.
    """

    def __init__(self, tiles: str, n_trials: int = _TRIALS) -> None:
        """Initializes the metric.

        Args:
            tiles: List of PathoROB with the tiles, e.g. `camelyon_reduced`.
            n_trials: Number of trials; with another number than 50, the score is not as published,
                and its name says so. 0 leaves the score out.

        Raises:
            UserError: The number is below 0.
        """
        if n_trials < 0:
            raise UserError(f"The number of trials is {n_trials}. Expected 50, or 0 for no score.")
        self.tiles, self.n_trials = tiles, n_trials

    @property
    @override
    def names(self) -> Sequence[str]:
        return [
            "ClusteringScore" + ("" if self.n_trials == _TRIALS else f"/trials={self.n_trials}")
        ]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        if not self.n_trials:
            return MetricResult({})
        (name,) = self.names
        tiles = take(evaluated, in_domain(evaluated, self.tiles))
        if reason := why_uninformative(tiles, "centre"):
            return MetricResult({}, {name: reason})
        check_values(tiles.values, "cosine")
        combinations = _combine(tiles.labels, tiles.groups["centre"])
        if not combinations:
            return MetricResult({}, {name: "no two centres have tiles of the same two classes"})
        smallest = min(map(len, combinations))
        if smallest <= _N_CLUSTERS[-1]:
            reason = f"two classes of two centres have only {smallest} tiles for 30 clusters"
            return MetricResult({}, {name: reason})
        scores, numbers = [], []
        for rows in tqdm(combinations, "Clustering score", leave=False):
            n_clusters, score = self._score(take(tiles, rows))
            numbers.append(n_clusters)
            scores.append(score)
        return MetricResult(
            {name: float(np.mean([score.mean() for score in scores]))},
            details={
                "clustering_score": {
                    "tiles": self.tiles,
                    "trials": self.n_trials,
                    "combinations": len(combinations),
                    "clusters": numbers,
                    "stdev": float(np.mean([score.std(ddof=1) for score in scores]))
                    if self.n_trials > 1
                    else None,
                }
            },
        )

    def _score(self, tiles: Embeddings) -> tuple[int, np.ndarray]:
        """Chooses the number of clusters, and computes the score of each trial (n_trials,)."""
        values = tiles.values / np.sqrt((tiles.values**2).sum(axis=1))[:, None]
        n_clusters = _choose_number(values)
        scores = []
        for trial in range(self.n_trials):
            found = KMeans(n_clusters, init="random", n_init=5, random_state=_SEED + trial)
            clusters = found.fit(values).labels_
            by_class = adjusted_rand_score(tiles.labels, clusters)
            scores.append(by_class - adjusted_rand_score(tiles.groups["centre"], clusters))
        return n_clusters, np.array(scores)


def _combine(labels: np.ndarray, centres: np.ndarray) -> list[np.ndarray]:
    """Tiles of each two classes and two centres: class by class, and in it centre by centre."""
    pairs = itertools.product(
        itertools.combinations(dict.fromkeys(labels.tolist()), 2),
        itertools.combinations(dict.fromkeys(centres.tolist()), 2),
    )
    found = []
    for pair in pairs:
        cells = [
            np.flatnonzero((labels == label) & (centres == centre))
            for label, centre in itertools.product(*pair)
        ]
        if all(map(len, cells)):
            found.append(np.concatenate(cells))
    return found


def _choose_number(values: np.ndarray) -> int:
    """The number of clusters with the largest silhouette of normalised embeddings (N, D)."""
    # The distances are the same for all numbers of clusters.
    distances = pairwise_distances(values, metric="cosine")
    silhouettes = []
    for n_clusters in tqdm(_N_CLUSTERS, "Choosing the number of clusters", leave=False):
        found = KMeans(n_clusters, init="random", n_init=20, random_state=_SEED).fit(values)
        if found.labels_.max() == 0:
            raise UserError("the embeddings of two classes of two centres are all alike")
        silhouettes.append(silhouette_score(distances, found.labels_, metric="precomputed"))
    return _N_CLUSTERS[int(np.argmax(silhouettes))]
