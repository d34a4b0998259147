import itertools
import math

import numpy as np
import pytest
from sklearn.cluster import KMeans

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.clustering_score import ClusteringScore
from g2l_plugin.metrics.embeddings import Embeddings


def tiles_of(values, labels, centres, order=None):
    order = np.arange(len(labels)) if order is None else order
    listed = np.array([f"tiles/ID/{row}" for row in order])
    names = np.array([f"tile {row}" for row in range(len(labels))])
    groups = {"centre": np.asarray(centres), "listed": listed}
    return Embeddings(np.asarray(values, np.float32), np.asarray(labels), names, groups)


def draw(by, n=10, noise=0.02):
    """Two classes from each of two centres, clustered by class or by centre."""
    labels, centres = np.tile([0, 0, 1, 1], n), np.tile(["A", "B", "A", "B"], n)
    codes = labels if by == "class" else (centres == "B").astype(int)
    values = np.eye(2)[codes] + noise * np.random.default_rng(0).normal(size=(4 * n, 2))
    return tiles_of(values, labels, centres)


def rand_by_hand(truth, found):
    """Adjusted Rand index by its definition over all pairs of tiles."""
    both = one = other = 0
    for a, b in itertools.combinations(range(len(truth)), 2):
        both += truth[a] == truth[b] and found[a] == found[b]
        one += truth[a] == truth[b]
        other += found[a] == found[b]
    expected = one * other / math.comb(len(truth), 2)
    return (both - expected) / ((one + other) / 2 - expected)


def silhouette_by_hand(values, found):
    scores = []
    for tile in range(len(values)):
        means = {}
        for cluster in set(found.tolist()):
            members = [o for o in range(len(values)) if found[o] == cluster and o != tile]
            distances = [1 - float(values[tile] @ values[o]) for o in members]
            means[cluster] = sum(distances) / len(distances) if distances else None
        own = means.pop(found[tile])
        nearest = min(means.values())
        scores.append(0.0 if own is None else (nearest - own) / max(own, nearest))
    return np.mean(scores)


def test_the_score_equals_that_of_a_direct_loop():
    rng = np.random.default_rng(3)
    labels, places = np.arange(48) % 3, np.arange(48) // 3 % 2
    keep = ~((labels == 2) & (places == 1))  # one combination is missing
    labels, places = labels[keep], places[keep]
    values = rng.normal(size=(len(labels), 3)) + 2 * np.eye(3)[labels] + np.eye(3)[places]
    order = rng.permutation(len(labels))
    tiles = tiles_of(values, labels, np.array(["A", "B"])[places], order)
    listed = np.argsort(order)
    rows = np.concatenate(
        [
            [row for row in listed if labels[row] == label and places[row] == place]
            for label in sorted({0, 1}, key=lambda own: min(order[labels == own]))
            for place in sorted({0, 1}, key=lambda own: min(order[places == own]))
        ]
    )
    own = tiles.values[rows] / np.linalg.norm(tiles.values[rows], axis=1, keepdims=True)
    best = max(
        range(2, 31),
        key=lambda n: silhouette_by_hand(
            own, KMeans(n, init="random", n_init=20, random_state=1337).fit(own).labels_
        ),
    )
    scores = []
    for trial in range(2):
        found = KMeans(best, init="random", n_init=5, random_state=1337 + trial).fit(own).labels_
        scores.append(rand_by_hand(labels[rows], found) - rand_by_hand(places[rows], found))
    result = ClusteringScore("tiles", n_trials=2).compute(tiles, tiles)
    assert result.values == {"ClusteringScore/trials=2": pytest.approx(np.mean(scores), abs=1e-9)}
    assert result.details["clustering_score"]["clusters"] == [best]
    assert result.details["clustering_score"]["combinations"] == 1


@pytest.mark.parametrize(("by", "score"), [("class", 1), ("centre", -1)])
def test_clusters_of_classes_score_1_and_clusters_of_centres_minus_1(by, score):
    tiles = draw(by)
    result = ClusteringScore("tiles", n_trials=2).compute(tiles, tiles)
    assert result.values["ClusteringScore/trials=2"] == pytest.approx(score, abs=0.05)


def test_only_50_trials_are_as_published_and_0_leave_the_score_out():
    assert ClusteringScore("tiles").names == ["ClusteringScore"]
    assert ClusteringScore("tiles", n_trials=5).names == ["ClusteringScore/trials=5"]
    tiles = draw("class")
    assert ClusteringScore("tiles", n_trials=0).compute(tiles, tiles).values == {}
    with pytest.raises(UserError, match="number of trials is -1"):
        ClusteringScore("tiles", n_trials=-1)


@pytest.mark.parametrize(
    ("labels", "centres", "reason"),
    [
        ([0, 1] * 20, ["A"] * 40, "all tiles have the same centre, A"),
        ([0, 1] * 20, ["A", "B"] * 20, "no two centres have tiles of the same two classes"),
        ([0, 0, 1, 1] * 7, ["A", "B"] * 14, "have only 28 tiles for 30 clusters"),
    ],
)
def test_undefined_values_have_their_reason(labels, centres, reason):
    values = np.random.default_rng(0).normal(size=(len(labels), 3))
    tiles = tiles_of(values, labels, centres)
    result = ClusteringScore("tiles").compute(tiles, tiles)
    assert result.values == {} and reason in result.undefined["ClusteringScore"]


def test_embeddings_that_are_all_alike_are_told():
    labels, centres = [0, 0, 1, 1] * 9, ["A", "B"] * 18
    tiles = tiles_of(np.ones((36, 3)), labels, centres)
    with pytest.raises(UserError, match="all alike"):
        ClusteringScore("tiles").compute(tiles, tiles)
