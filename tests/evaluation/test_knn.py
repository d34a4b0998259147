import numpy as np

from g2l_plugin.evaluation.knn import knn_accuracy


def test_neighbours_are_sought_by_angle_not_by_length():
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
