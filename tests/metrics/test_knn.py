import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.knn import KNNVoting, knn_accuracy, knn_scores


def make(n, seed, n_classes=3, width=8, n_patients=10):
    generator = np.random.default_rng(seed)
    labels = generator.integers(n_classes, size=n)
    values = generator.normal(size=(n, width)) + 1.2 * np.eye(n_classes, width)[labels]
    names = np.array([f"{seed}/{i}" for i in range(n)])
    patients = np.array([f"patient {i % n_patients}" for i in range(n)])
    return Embeddings(values.astype(np.float32), labels, names, {"patient": patients})


def test_neighbours_are_found_by_angle_not_by_length():
    train = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 2.0]])
    labels = np.array([0, 0, 1, 1])
    test = np.array([[100.0, 1.0], [0.01, 0.1], [1.0, 0.0]])
    assert knn_accuracy(train, labels, test, np.array([0, 1, 1]), k=1) == 2 / 3


def test_the_majority_of_k_neighbours_decides():
    angles = np.array([0.0, 0.2, 0.25, 0.3])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 1, 1, 1])
    test, expected = np.array([[1.0, 0.01]]), np.array([1])
    assert knn_accuracy(train, labels, test, expected, k=1) == 0
    assert knn_accuracy(train, labels, test, expected, k=4) == 1


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 30), st.sampled_from(["cosine", "euclidean"]))
def test_equal_votes_give_what_scikit_learn_gives(seed, k, metric):
    train, test = make(60, seed), make(20, seed + 100)
    theirs = KNeighborsClassifier(k, metric=metric).fit(train.values, train.labels)
    ours = knn_scores(train.values, train.labels, test.values, 3, k, metric, temperature=None)
    np.testing.assert_allclose(ours, theirs.predict_proba(test.values), atol=1e-6)
    np.testing.assert_array_equal(ours.argmax(1), theirs.predict(test.values))


def test_a_vote_weighs_the_exponential_of_the_similarity():
    train, test = make(50, 0), make(9, 1)
    scores = knn_scores(train.values, train.labels, test.values, 3, k=5, temperature=0.07)
    for row, query in zip(scores, test.values, strict=True):
        votes = {}
        for value, label in zip(train.values, train.labels, strict=True):
            cosine = query @ value / np.linalg.norm(query) / np.linalg.norm(value)
            votes.setdefault(float(cosine), int(label))
        expected = np.zeros(3)
        for cosine in sorted(votes, reverse=True)[:5]:
            expected[votes[cosine]] += math.exp(cosine / 0.07)
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-4)


def test_with_a_tiny_temperature_the_nearest_neighbour_decides_without_overflow():
    train, test = make(50, 0), make(9, 1)
    sharp = knn_scores(train.values, train.labels, test.values, 3, k=20, temperature=1e-6)
    first = knn_scores(train.values, train.labels, test.values, 3, k=1, temperature=None)
    np.testing.assert_allclose(sharp, first, atol=1e-6)


def test_the_metric_gives_accuracies_scores_settings_and_an_interval_over_patients():
    train, test = make(200, 0), make(100, 1)
    result = KNNVoting(k=7).compute(train, test)
    scores = result.scores["knn"]
    assert scores.shape == (100, 3)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    predicted = scores.argmax(1)
    assert result.values["KNNAccuracy"] == np.mean(predicted == test.labels)
    assert result.values["KNNBalancedAccuracy"] == pytest.approx(
        balanced_accuracy_score(test.labels, predicted)
    )
    assert result.details["knn"] == {"k": 7, "distance": "cosine", "temperature": 0.07}
    ends = result.details["intervals"]["KNNAccuracy"]
    assert 0 < ends["low"] < result.values["KNNAccuracy"] < ends["high"] < 1


def test_a_class_that_is_not_evaluated_has_its_column_and_one_not_trained_on_is_an_error():
    train, test = make(60, 0, n_classes=2), make(20, 1, n_classes=2)
    train.labels[0] = 4
    with pytest.raises(UserError, match="No training tile has class 4"):
        KNNVoting(k=3).compute(test, train)
    result = KNNVoting(k=3).compute(train, test)
    assert result.scores["knn"].shape == (20, 5)
    assert not result.scores["knn"][:, 2:4].any()


def test_impossible_settings_are_an_error():
    train, test = make(10, 0), make(5, 1)
    with pytest.raises(UserError, match="k is 20, but there are 10 embeddings"):
        KNNVoting().compute(train, test)
    with pytest.raises(UserError, match="k is 0"):
        KNNVoting(k=0)
    with pytest.raises(UserError, match="temperature 0.07 with distance euclidean"):
        KNNVoting(k=3, distance="euclidean").compute(train, test)
    with pytest.raises(UserError, match="temperature 0 with distance cosine"):
        KNNVoting(k=3, temperature=0).compute(train, test)
