"""How alike student and teacher see the same tiles, with intervals over patients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.nn import functional

from g2l_plugin.metrics.cka import LEAST_TILES

_LEAST_PATIENTS = 5
"""Number of patients for an interval: that of two would be 13 standard errors to each side."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value, and the values without each patient in turn: the jackknife's.

    Attributes:
        value: The value over all tiles; NaN if undefined.
        without: The value without the tiles of each patient; empty for fewer than two patients.
    """

    value: float
    without: tuple[float, ...] = ()

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two values over the same tiles, as paired values."""
        pairs = zip(self.without, other.without, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval by the delete-one-patient jackknife.

        Tiles of one patient resemble each other, so patients are left out, not tiles. A bootstrap
        would count tiles twice, and pairs of equal tiles bias CKA.

        Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11.

        Args:
            level: Probability that the interval covers the value.

        Returns:
            Both ends; NaN for fewer than five patients, of which nothing can be said.
        """
        n = len(self.without)
        if n < _LEAST_PATIENTS:
            return math.nan, math.nan
        error = math.sqrt((n - 1) * np.var(self.without))
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
        return self.value - half, self.value + half

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"value": self.value, "without": list(self.without)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Estimate:
        """Restores what `to_dict` returned."""
        return cls(values["value"], tuple(values["without"]))


def unbiased_cka(x: torch.Tensor, y: torch.Tensor, patients: np.ndarray | None = None) -> Estimate:
    """Computes unbiased linear CKA of the same tiles: 1 for alike, near 0 for unrelated ones.

    The usual, biased estimator is far above 0 for unrelated embeddings as long as there are not
    many more tiles than features. This one is right for any number of tiles.

    Source: Song et al. 2012, "Feature Selection via Dependence Maximization" (HSIC_1); Nguyen et
    al. 2021, arXiv 2010.15327.

    Args:
        x: Embeddings (N, D1).
        y: Embeddings of the same N tiles (N, D2).
        patients: Patient of each tile, (N,); None computes no interval.

    Returns:
        The alignment, at most 1; NaN for fewer than 4 tiles or if an encoder is constant.

    Examples:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0], [5.0, 1.0]])
        >>> rotated = torch.stack([-x[:, 1], x[:, 0]], dim=1)
        >>> round(unbiased_cka(x, 5 * rotated).value, 4)
        1.0
    """
    gram_x, gram_y = _gram(x), _gram(y)  # (N, N)
    kept = _leave_one_out(patients, len(x), gram_x.device)  # (1 + patients, N)
    xy, xx, yy = (
        _hsic_1(*pair, kept) for pair in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))
    )
    aligned = xy / (xx.sqrt() * yy.sqrt())
    too_few = kept.sum(1) < LEAST_TILES
    aligned[too_few | ~aligned.isfinite()] = torch.nan
    value, *without = aligned.tolist()
    return Estimate(value, tuple(without))


def _hsic_1(k: torch.Tensor, m: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Computes HSIC_1 times n (n - 3), the numerator of the unbiased CKA, for subsets of tiles.

    Source: Song et al. 2012, "Feature Selection via Dependence Maximization".

    Args:
        k: Inner products of centred embeddings, with a zero diagonal, (N, N).
        m: The same of another encoder.
        kept: Which tiles each subset has, 0 or 1, (subsets, N).

    Returns:
        A value for each subset, (subsets,).
    """
    n = kept.sum(1)
    sums_k, sums_m = kept @ k, kept @ m  # (subsets, N)
    trace = ((kept @ (k * m)) * kept).sum(1)
    totals = (sums_k * kept).sum(1) * (sums_m * kept).sum(1)
    cross = (sums_k * sums_m * kept).sum(1)
    return trace + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross


def shared_neighbours(
    x: torch.Tensor, y: torch.Tensor, patients: np.ndarray | None = None, k: int = 10
) -> Estimate:
    """Computes the share of each tile's k nearest tiles that two encoders have in common.

    This is recall@k of one encoder's neighbours by the other's, in cosine distance, averaged over
    tiles. It sees the local order that kNN voting depends on, and CKA the global one.

    Args:
        x: Embeddings (N, D1).
        y: Embeddings of the same N tiles (N, D2).
        patients: Patient of each tile, (N,); None computes no interval.
        k: Neighbours of each tile; at most N - 1.

    Returns:
        The share, 0 to 1; NaN for fewer than two tiles.
    """
    k = min(k, len(x) - 1)
    if k < 1:
        return Estimate(math.nan)
    near_x, near_y = _nearest(x, k), _nearest(y, k)  # (N, k)
    shared = (near_x[:, :, None] == near_y[:, None, :]).any(2).double().mean(1)  # (N,)
    kept = _leave_one_out(patients, len(x), shared.device)
    value, *without = (kept @ shared / kept.sum(1)).tolist()
    return Estimate(value, tuple(without))


def effective_rank(embeddings: torch.Tensor) -> float:
    """Computes the effective rank: about how many directions the embeddings use.

    It is the exponential of the entropy of the singular values of the centred embeddings. A
    student whose embeddings collapse has a low one.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".

    Args:
        embeddings: (N, D).

    Returns:
        From 1 to the smaller of N and D; NaN if all embeddings are the same.

    Examples:
        >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        2.0
    """
    # The Gram matrix of the smaller side has the squares of the singular values.
    centred = _centred(embeddings)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return round(float(entropy.exp()), 9)


def _centred(embeddings: torch.Tensor) -> torch.Tensor:
    """Centres the columns in double precision, on the CPU where the device lacks doubles."""
    embeddings = embeddings.detach()
    embeddings = (embeddings.cpu() if embeddings.device.type == "mps" else embeddings).double()
    return embeddings - embeddings.mean(0)


def _gram(embeddings: torch.Tensor) -> torch.Tensor:
    """Inner products of the centred embeddings, (N, N), with a zero diagonal.

    The unbiased estimator does not change with the mean; without it, less is lost to rounding.
    """
    centred = _centred(embeddings)
    return (centred @ centred.T).fill_diagonal_(0)


def _nearest(embeddings: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest tiles of each tile, without itself, int64 (N, k).

    Unlike `g2l_plugin.metrics.neighbours.nearest`, it accepts the embeddings of a run that fails.
    """
    normalised = functional.normalize(embeddings.detach().double().cpu(), dim=1)
    return (normalised @ normalised.T).fill_diagonal_(-math.inf).topk(k).indices


def _leave_one_out(patients: np.ndarray | None, n: int, device: torch.device) -> torch.Tensor:
    """Which tiles are kept: all of them, then all but each patient's, double (1 + patients, N)."""
    everything = torch.ones(1, n, dtype=torch.float64, device=device)
    codes = np.zeros(n, int) if patients is None else np.unique(patients, return_inverse=True)[1]
    n_patients = int(codes.max(initial=0)) + 1
    if n_patients < 2:
        return everything
    others = torch.from_numpy(codes)[None] != torch.arange(n_patients)[:, None]
    return torch.cat([everything, others.to(device).double()])
