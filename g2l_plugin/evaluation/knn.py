"""k-nearest-neighbour voting: the training-free benchmark of an encoder."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import recall_score
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.bootstrap import bootstrap_interval
from g2l_plugin.evaluation.embeddings import Embeddings
from g2l_plugin.evaluation.measure import Measure, Outcome
from g2l_plugin.evaluation.neighbours import Metric, nearest


class KNNVoting(Measure):
    """Accuracy of the vote of the nearest training tiles: `KNNAccuracy`, `KNNBalancedAccuracy`.

    Source: the weighted vote of DINO (Caron et al. 2021, arXiv 2104.14294, appendix), with its
    k = 20 and temperature 0.07; without a temperature it is scikit-learn's KNeighborsClassifier.
    """

    def __init__(
        self,
        k: int = 20,
        metric: Metric = "cosine",
        temperature: float | None = 0.07,
        device: str = "auto",
    ) -> None:
        """Initializes the measure.

        Args:
            k: Training tiles that vote.
            metric: `cosine` or `euclidean`.
            temperature: A vote weighs exp(cosine / temperature); None gives each the same weight.
            device: Where to compute; `auto` takes a CUDA device where there is one.
        """
        self.k, self.metric, self.temperature, self.device = k, metric, temperature, device

    @override
    def measure(self, train: Embeddings, evaluated: Embeddings) -> Outcome:
        labels = evaluated.labels
        scores = knn_scores(
            train.values,
            train.labels,
            evaluated.values,
            n_classes=int(max(train.labels.max(), labels.max())) + 1,
            k=self.k,
            metric=self.metric,
            temperature=self.temperature,
            device=self.device,
        )
        predicted = scores.argmax(1)
        correct = predicted == labels
        interval = bootstrap_interval(lambda rows: correct[rows].mean(), evaluated.units)
        present = np.unique(labels)
        return Outcome(
            values={
                "KNNAccuracy": interval.value,
                "KNNBalancedAccuracy": float(
                    recall_score(labels, predicted, labels=present, average="macro")
                ),
            },
            scores={"knn": scores},
            details={
                "knn": {"k": self.k, "metric": self.metric, "temperature": self.temperature},
                "intervals": {"KNNAccuracy": interval.ends()},
            },
        )


def knn_scores(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    embeddings: np.ndarray,
    n_classes: int,
    k: int = 20,
    metric: Metric = "cosine",
    temperature: float | None = 0.07,
    device: str = "auto",
) -> np.ndarray:
    """Computes the share of each class in the vote of the nearest training tiles.

    The predicted class is the one of the largest share; where two are equal, the lower one
    (`argmax`), as in scikit-learn.

    Args:
        train_embeddings: (N, D).
        train_labels: Classes (N,), below `n_classes`.
        embeddings: (M, D).
        n_classes: Number of classes C.
        k: Training tiles that vote.
        metric: `cosine` or `euclidean`.
        temperature: A vote weighs exp(cosine / temperature); None gives each the same weight.
        device: Where to compute; `auto` takes a CUDA device where there is one.

    Returns:
        Shares, float32 (M, C), that sum to 1.

    Raises:
        UserError: There are fewer than k training tiles, or the temperature is not above 0, or is
            given for another metric than the cosine.
    """
    if temperature is not None and (metric != "cosine" or temperature <= 0):
        raise UserError(
            f"The temperature {temperature} with the metric {metric}: expected one above 0, with "
            "cosine. Give temperature null for votes of the same weight."
        )
    indices, similarities = nearest(
        embeddings, train_embeddings, k, metric, device=device, description="kNN voting"
    )
    weights = np.ones_like(similarities)
    if temperature is not None:  # the nearest one's weight is 1, so that none overflows
        weights = np.exp((similarities - similarities[:, :1]) / temperature)
    votes = np.zeros((len(embeddings), n_classes), np.float32)
    np.add.at(votes, (np.arange(len(embeddings))[:, None], train_labels[indices]), weights)
    return votes / votes.sum(1, keepdims=True)


def knn_accuracy(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
    k: int = 20,
) -> float:
    """Classifies test tiles by the vote of their nearest training tiles in cosine distance.

    Every vote weighs the same; of classes with as many votes the lower one is taken.

    Args:
        train_embeddings: (N, D).
        train_labels: (N,).
        test_embeddings: (M, D).
        test_labels: (M,).
        k: Neighbours that vote.

    Returns:
        The share of test tiles whose class is found, 0 to 1.

    Raises:
        UserError: There are fewer than k training tiles.
    """
    n_classes = int(train_labels.max()) + 1
    scores = knn_scores(
        train_embeddings, train_labels, test_embeddings, n_classes, k, temperature=None
    )
    return float((scores.argmax(1) == test_labels).mean())
