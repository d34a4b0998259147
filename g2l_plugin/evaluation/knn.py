"""k-nearest-neighbour accuracy: the training-free benchmark of an encoder."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier


def knn_accuracy(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
    k: int = 20,
) -> float:
    """Classifies test tiles by the vote of their nearest training tiles in cosine distance.

    Args:
        train_embeddings: (N, D).
        train_labels: (N,).
        test_embeddings: (M, D).
        test_labels: (M,).
        k: Neighbours that vote.

    Returns:
        The share of test tiles whose class is found, 0 to 1.
    """
    classifier = KNeighborsClassifier(n_neighbors=k, metric="cosine")
    classifier.fit(train_embeddings, train_labels)
    return float(classifier.score(test_embeddings, test_labels))
