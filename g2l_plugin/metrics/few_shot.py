"""Classification from a few labelled tiles of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult, check_classes
from g2l_plugin.metrics.neighbours import check_values, choose_device, full_precision, to_device

FEW_SHOT = MetricFamily(
    key="few_shot",
    title="Few-shot balanced accuracy",
    about="The nearest class centroid of k labelled training tiles per class, drawn many times: "
    "the mean over the draws, and an interval that holds 95 % of them (it is not over patients).",
    pattern=r"FewShotBalancedAccuracy/k=(?P<k>\d+)",
    curve="labelled tiles per class, k",
)

_LEVEL = 0.95
"""Share of the draws inside the interval."""


class FewShot(EmbeddingMetric):
    """Balanced accuracy from k labelled tiles per class: `FewShotBalancedAccuracy/k=5`, ...

    Each draw takes k training tiles of every class, of any patient. Embeddings are centred at the
    mean of the drawn ones and scaled to length 1, and an evaluated tile gets the class whose drawn
    tiles have the nearest mean (SimpleShot). A draw at a larger k adds tiles to that at a smaller
    one, and all models get the same tiles, so curves and models are compared on the same draws.

    The value is the mean over the draws; its interval holds 95 % of the draws: what someone who
    labels k tiles per class may get.

    Source: Wang et al. 2019, "SimpleShot", arXiv 1911.04623 (CL2N); in pathology Chen et al. 2024
    (UNI), arXiv 2308.15474, whose code centres at the mean of the drawn tiles too.

    Examples:
        >>> import numpy as np
        >>> values = np.array([[3, 1], [3, 2], [1, 3], [2, 3]], np.float32)
        >>> tiles = Embeddings(values, np.array([0, 0, 1, 1]), np.array(list("abcd")))
        >>> result = FewShot(k=[1, 5], device="cpu").compute(tiles, tiles)
        >>> result.values
        {'FewShotBalancedAccuracy/k=1': 1.0}
        >>> result.undefined
        {'FewShotBalancedAccuracy/k=5': 'of class 0, the training split has only 2'}
    """

    def __init__(
        self,
        k: Sequence[int] = (1, 2, 5, 10, 20, 50),
        n_draws: int = 100,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        """Initializes the metric.

        Args:
            k: Numbers of labelled tiles per class.
            n_draws: Number of draws.
            seed: Seed of the draws.
            device: Where to compute; `auto` uses a CUDA device if there is one.

        Raises:
            UserError: No k is given, or one below 1, or no draw.
        """
        if not k or min(k) < 1 or n_draws < 1:
            raise UserError(
                f"Got k {list(k)} and n_draws {n_draws}. Expected numbers of labelled tiles per "
                "class above 0 and at least one draw, e.g. `k: [1, 5]`."
            )
        self.k, self.n_draws, self.seed, self.device = sorted(set(k)), n_draws, seed, device

    @property
    @override
    def names(self) -> Sequence[str]:
        return [_name(k) for k in self.k]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        check_classes(train.labels, evaluated.labels)
        classes, counts = np.unique(train.labels, return_counts=True)
        if len(classes) < 2:
            raise UserError(
                f"All {len(train):,} training tiles have the same class. Expected two or more."
            )
        rarest = counts.argmin()
        ks = [k for k in self.k if k <= counts[rarest]]
        undefined = {
            _name(k): f"of class {classes[rarest]}, the training split has only {counts[rarest]:,}"
            for k in self.k
            if k not in ks
        }
        if not ks:
            return MetricResult({}, undefined)
        accuracies = self._accuracies(train, evaluated, ks)  # (draws, ks)
        ends = np.quantile(accuracies, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
        return MetricResult(
            {_name(k): float(mean) for k, mean in zip(ks, accuracies.mean(0), strict=True)},
            undefined,
            details={
                "few_shot": {"n_draws": self.n_draws, "seed": self.seed},
                "intervals": {
                    _name(k): {"low": float(low), "high": float(high)}
                    for k, low, high in zip(ks, *ends, strict=True)
                },
            },
        )

    @torch.inference_mode()
    def _accuracies(
        self, train: Embeddings, evaluated: Embeddings, ks: Sequence[int]
    ) -> np.ndarray:
        """Balanced accuracy of each draw at each k, (draws, ks)."""
        for part in (train, evaluated):
            check_values(part.values, "euclidean")
        device = choose_device(self.device)
        pool, queries = (to_device(part.values, device) for part in (train, evaluated))
        # Nothing depends on the origin. Far from it, the differences below would lose precision.
        origin = pool.mean(0)
        pool, queries = pool - origin, queries - origin
        squares = queries.square().sum(1, keepdim=True)
        classes = torch.from_numpy(np.unique(train.labels)).to(device)
        labels = torch.from_numpy(evaluated.labels).to(device)
        present, code, n_tiles = labels.unique(return_inverse=True, return_counts=True)
        accuracies = []
        with full_precision():
            for drawn in self._draws(train.labels, max(ks)):
                support = pool[torch.from_numpy(drawn).to(device)]  # (classes, k, D)
                predicted = classes[_nearest_centroids(queries, squares, support, ks)]  # (M, ks)
                correct = (predicted == labels[:, None]).float()
                hits = correct.new_zeros(len(present), len(ks)).index_add_(0, code, correct)
                accuracies.append((hits / n_tiles[:, None]).mean(0).cpu().numpy())
        return np.stack(accuracies).astype(np.float64)

    def _draws(self, labels: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """Draws k tiles of each class without replacement, in random order, int (classes, k)."""
        generator = np.random.default_rng(self.seed)
        rows = [np.flatnonzero(labels == name) for name in np.unique(labels)]
        for _ in tqdm(range(self.n_draws), "Few-shot draws", leave=False):
            yield np.stack([generator.choice(own, k, replace=False) for own in rows])


def _name(k: int) -> str:
    return f"FewShotBalancedAccuracy/k={k}"


def _nearest_centroids(
    queries: torch.Tensor, squares: torch.Tensor, support: torch.Tensor, ks: Sequence[int]
) -> torch.Tensor:
    """Finds the class with the nearest centroid, from the first k labelled tiles of each class.

    Each k has another centre, so normalising the queries for each would copy them. Instead one
    product gives q·c and q·m of all centroids c and centres m. The normalised query is
    (q - m) / |q - m|, and the nearest c has the largest (q - m)·c / |q - m| - |c|² / 2.

    Args:
        queries: (M, D).
        squares: Their squared lengths, (M, 1).
        support: Labelled tiles of each class, (C, K, D).
        ks: Numbers of labelled tiles to use.

    Returns:
        Positions of the classes, int64 (M, ks).
    """
    centres = torch.stack([support[:, :k].mean((0, 1)) for k in ks])  # (ks, D)
    centroids = torch.stack(
        [
            F.normalize(support[:, :k] - centre, dim=-1).mean(1)
            for k, centre in zip(ks, centres, strict=True)
        ]
    )  # (ks, C, D)
    products = queries @ torch.cat([centroids.flatten(0, 1), centres]).T
    with_centroids, with_centres = products.split([centroids.shape[:2].numel(), len(ks)], dim=1)
    squares = squares - 2 * with_centres + centres.square().sum(1)  # |q - m|², (M, ks)
    lengths = squares.clamp_min(1e-24).sqrt()
    offsets = (centroids * centres[:, None]).sum(-1)  # m·c, (ks, C)
    along = with_centroids.unflatten(1, centroids.shape[:2]) - offsets  # (M, ks, C)
    return (along / lengths[..., None] - centroids.square().sum(-1) / 2).argmax(-1)
