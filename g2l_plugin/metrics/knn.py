"""k-nearest-neighbour voting: a benchmark of an encoder that trains nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import recall_score
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult, check_classes
from g2l_plugin.metrics.neighbours import Distance, nearest

KNN = MetricFamily(
    key="knn",
    title="kNN accuracy",
    about="A vote of the nearest training tiles; nothing is trained.",
    pattern="KNNAccuracy",
    column="kNN accuracy",
)


class KNNVoting(EmbeddingMetric):
    """Accuracy of a vote of the nearest training tiles: `KNNAccuracy`, `KNNBalancedAccuracy`.

    Source: the weighted vote of DINO (Caron et al. 2021, arXiv 2104.14294, appendix), with its
    k = 20 and temperature 0.07. Without a temperature it equals scikit-learn's
    `KNeighborsClassifier`.

    Examples:
        >>> import numpy as np
        >>> values = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], np.float32)
        >>> labels = np.array([0, 0, 1, 1])
        >>> train = Embeddings(values, labels, np.array(["a", "b", "c", "d"]))
        >>> test = Embeddings(values[:3] + 0.1, np.array([0, 0, 0]), np.array(["e", "f", "g"]))
        >>> result = KNNVoting(k=1, device="cpu").compute(train, test)
        >>> round(result.values["KNNAccuracy"], 2)
        0.67
    """

    def __init__(
        self,
        k: int = 20,
        distance: Distance = "cosine",
        temperature: float | None = 0.07,
        device: str = "auto",
    ) -> None:
        """Initializes the metric.

        Args:
            k: Number of training tiles that vote.
            distance: `cosine` or `euclidean`.
            temperature: A vote weighs exp(cosine / temperature); None gives all votes equal weight.
            device: Where to compute; `auto` uses a CUDA device if there is one.

        Raises:
            UserError: k is below 1, or the temperature is not above 0 or is used with a distance
                other than cosine.
        """
        _check_settings(k, distance, temperature)
        self.k, self.distance, self.temperature, self.device = k, distance, temperature, device

    @property
    @override
    def names(self) -> Sequence[str]:
        return ["KNNAccuracy", "KNNBalancedAccuracy"]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        labels = evaluated.labels
        check_classes(train.labels, labels)
        scores = knn_scores(
            train.values,
            train.labels,
            evaluated.values,
            n_classes=int(max(train.labels.max(), labels.max())) + 1,
            k=self.k,
            distance=self.distance,
            temperature=self.temperature,
            device=self.device,
        )
        predicted = scores.argmax(1)
        correct = predicted == labels
        interval = bootstrap_interval(lambda rows: correct[rows].mean(), evaluated.units)
        present = np.unique(labels)
        return MetricResult(
            values={
                "KNNAccuracy": interval.value,
                "KNNBalancedAccuracy": float(
                    recall_score(labels, predicted, labels=present, average="macro")
                ),
            },
            scores={"knn": scores},
            details={
                "knn": {"k": self.k, "distance": self.distance, "temperature": self.temperature},
                "intervals": {"KNNAccuracy": interval.ends()},
            },
        )


def knn_scores(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    embeddings: np.ndarray,
    n_classes: int,
    k: int = 20,
    distance: Distance = "cosine",
    temperature: float | None = 0.07,
    device: str = "auto",
) -> np.ndarray:
    """Computes the share of each class in the vote of the nearest training tiles.

    The predicted class is the `argmax`; ties go to the lower class, as in scikit-learn.

    Args:
        train_embeddings: (N, D).
        train_labels: Classes (N,), below `n_classes`.
        embeddings: (M, D).
        n_classes: Number of classes C.
        k: Number of training tiles that vote.
        distance: `cosine` or `euclidean`.
        temperature: A vote weighs exp(cosine / temperature); None gives all votes equal weight.
        device: Where to compute; `auto` uses a CUDA device if there is one.

    Returns:
        Shares, float32 (M, C); each row sums to 1.

    Raises:
        UserError: There are fewer than k training tiles, or the temperature is not above 0 or is
            used with a distance other than cosine.
    """
    _check_settings(k, distance, temperature)
    indices, similarities = nearest(
        embeddings, train_embeddings, k, distance, device=device, description="kNN voting"
    )
    weights = np.ones_like(similarities)
    if temperature is not None:  # relative to the nearest tile, so that nothing overflows
        weights = np.exp((similarities - similarities[:, :1]) / temperature)
    votes = np.zeros((len(embeddings), n_classes), np.float32)
    np.add.at(votes, (np.arange(len(embeddings))[:, None], train_labels[indices]), weights)
    return votes / votes.sum(1, keepdims=True)


def _check_settings(k: int, distance: Distance, temperature: float | None) -> None:
    if k < 1:
        raise UserError(f"k is {k}. Expected 1 or more tiles that vote (KNN_K).")
    if temperature is not None and (distance != "cosine" or temperature <= 0):
        raise UserError(
            f"Got temperature {temperature} with distance {distance}. Expected a temperature above "
            "0 with distance cosine; set `temperature: null` for votes of equal weight."
        )


def knn_accuracy(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
    k: int = 20,
) -> float:
    """Classifies test tiles by an equal vote of their nearest training tiles in cosine distance.

    Ties go to the lower class.

    Args:
        train_embeddings: (N, D).
        train_labels: (N,).
        test_embeddings: (M, D).
        test_labels: (M,).
        k: Number of training tiles that vote.

    Returns:
        Share of correctly classified test tiles, 0 to 1.

    Raises:
        UserError: There are fewer than k training tiles.
    """
    n_classes = int(train_labels.max()) + 1
    scores = knn_scores(
        train_embeddings, train_labels, test_embeddings, n_classes, k, temperature=None
    )
    return float((scores.argmax(1) == test_labels).mean())
