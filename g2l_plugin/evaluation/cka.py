"""Linear centred kernel alignment (CKA) between two embeddings of the same tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchmetrics import Metric
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embeddings import Embeddings
from g2l_plugin.evaluation.neighbours import choose_device

_LEAST_TILES = 4
"""Tiles that the unbiased estimator needs: it divides by n - 3."""

_BATCH_SIZE = 8192


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes linear CKA: 1 for embeddings equal up to rotation and scale, 0 for unrelated ones.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 3 with linear kernels.

    Args:
        x: Embeddings (N, D1).
        y: Embeddings of the same N tiles (N, D2).

    Returns:
        The alignment, a scalar in [0, 1]; NaN where one embedding is constant.
    """
    x, y = (_centred(z) for z in (x, y))
    if len(x) < max(x.shape[1], y.shape[1]):  # the N x N Gram matrices are the smaller ones
        gram_x, gram_y = x @ x.T, y @ y.T
        return (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def cka_between(a: Embeddings, b: Embeddings, device: str = "auto") -> dict[str, float]:
    """Compares the embeddings of two encoders of the same tiles, matched by their names.

    Args:
        a: Embeddings by one encoder.
        b: Embeddings by the other one, of the same tiles in any order.
        device: Where to compute; `auto` takes a CUDA device where there is one.

    Returns:
        `LinearCKA` as in `linear_cka`, and `LinearCKAUnbiased` as in `LinearCKA(unbiased=True)`.

    Raises:
        UserError: They are not of the same tiles.
    """
    order_a, order_b = np.argsort(a.names), np.argsort(b.names)
    if not np.array_equal(a.names[order_a], b.names[order_b]):
        only_a = len(np.setdiff1d(a.names, b.names))
        only_b = len(np.setdiff1d(b.names, a.names))
        raise UserError(
            f"CKA needs two embeddings of the same tiles: of {len(a):,} and {len(b):,}, {only_a:,} "
            f"are only in the first and {only_b:,} only in the second. Compute both of one dataset."
        )
    metric = LinearCKA(a.values.shape[1], b.values.shape[1]).to(choose_device(device))
    for start in tqdm(range(0, len(a), _BATCH_SIZE), "CKA", leave=False):
        rows = slice(start, start + _BATCH_SIZE)
        batch_a, batch_b = a.values[order_a[rows]], b.values[order_b[rows]]
        metric.update(torch.from_numpy(batch_a), torch.from_numpy(batch_b))
    biased = metric.compute()
    return {
        "LinearCKA": biased.item(),
        "LinearCKAUnbiased": _unbiased_alignment(metric.xx, metric.yy, metric.xy).item(),
    }


class LinearCKA(Metric):
    """Linear CKA of any number of tiles, in memory that does not grow with them.

    It sums moments of the embeddings in double precision, so that the result does not depend on
    how tiles are put into batches or spread over devices. NaN where one embedding is constant.

    Source: the biased estimator is Kornblith et al. 2019, arXiv 1905.00414, equation 3; the
    unbiased one has HSIC_1 in the place of HSIC (Song et al. 2012, "Feature Selection via
    Dependence Maximization"; Nguyen et al. 2021, arXiv 2010.15327). With few tiles and many
    features the biased one is near 1 even for unrelated embeddings.
    """

    full_state_update = False
    higher_is_better = True

    xx: torch.Tensor
    yy: torch.Tensor
    xy: torch.Tensor

    def __init__(self, x_width: int, y_width: int, unbiased: bool = False, **kwargs: Any) -> None:
        """Initializes the metric.

        Args:
            x_width: Width D1 of the first embeddings.
            y_width: Width D2 of the second ones.
            unbiased: Whether to give the unbiased estimator, which needs 4 tiles.
            **kwargs: Of torchmetrics' `Metric`.
        """
        super().__init__(**kwargs)
        self.unbiased = unbiased
        rows, columns = x_width + 2, y_width + 2
        for name, shape in {
            "xx": (rows, rows),
            "yy": (columns, columns),
            "xy": (rows, columns),
        }.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds tiles.

        Args:
            x: Embeddings (N, D1).
            y: Embeddings of the same tiles (N, D2).
        """
        x, y = (_with_moments(z.detach().to(self.xx.device)) for z in (x, y))
        self.xx += x.T @ x
        self.yy += y.T @ y
        self.xy += x.T @ y

    @override
    def compute(self) -> torch.Tensor:
        """Gives the alignment of all tiles so far, a scalar."""
        align = _unbiased_alignment if self.unbiased else _biased_alignment
        return align(self.xx, self.yy, self.xy)


class MinibatchCKA(Metric):
    """Linear CKA as the mean over mini-batches, for what is too wide for `LinearCKA`.

    Each update is a mini-batch; those of fewer than 4 tiles are left out. NaN where one embedding
    is constant in every batch.

    Source: Nguyen et al. 2021, arXiv 2010.15327, equations 3 and 4.
    """

    full_state_update = False
    higher_is_better = True

    xx: torch.Tensor
    yy: torch.Tensor
    xy: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Initializes the metric; the arguments are torchmetrics'."""
        super().__init__(**kwargs)
        for name in ("xx", "yy", "xy"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds a mini-batch.

        Args:
            x: Embeddings (N, D1).
            y: Embeddings of the same tiles (N, D2).
        """
        if len(x) < _LEAST_TILES:
            return
        gram_x, gram_y = (_gram(z.detach().to(self.xx.device)) for z in (x, y))
        self.xx += _hsic_1(gram_x, gram_x)
        self.yy += _hsic_1(gram_y, gram_y)
        self.xy += _hsic_1(gram_x, gram_y)

    @override
    def compute(self) -> torch.Tensor:
        """Gives the alignment of all mini-batches so far, a scalar."""
        return _normalised(self.xy, self.xx, self.yy)


def _centred(embeddings: torch.Tensor) -> torch.Tensor:
    """Columns with mean zero, in double precision (on the CPU: not every device has doubles)."""
    embeddings = embeddings.detach().cpu().double()
    return embeddings - embeddings.mean(0)


def _with_moments(x: torch.Tensor) -> torch.Tensor:
    """Puts 1 before and |x|² behind each row: all sums that HSIC needs are products of two such."""
    x = x.double()
    return torch.cat([torch.ones_like(x[:, :1]), x, x.square().sum(1, keepdim=True)], dim=1)


def _biased_alignment(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    def hsic(sums: torch.Tensor) -> torch.Tensor:
        means = sums[1:-1, :1] * sums[:1, 1:-1] / sums[0, 0]
        return (sums[1:-1, 1:-1] - means).square().sum()

    if _is_constant(xx) or _is_constant(yy):
        return xy.new_tensor(torch.nan)
    return _normalised(hsic(xy), hsic(xx), hsic(yy))


def _unbiased_alignment(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    n = xy[0, 0]

    def hsic_1(sums: torch.Tensor) -> torch.Tensor:
        """HSIC_1 n (n - 3); K and L are the Gram matrices x xᵀ and y yᵀ with zero diagonals."""
        sum_x, sum_y, products = sums[1:-1, 0], sums[0, 1:-1], sums[1:-1, 1:-1]
        squares = sums[-1, -1]  # of |x|² |y|², the diagonals
        trace_kl = products.square().sum() - squares
        sum_k = sum_x @ sum_x - sums[-1, 0]
        sum_l = sum_y @ sum_y - sums[0, -1]
        sum_kl = (
            sum_x @ products @ sum_y - sum_x @ sums[1:-1, -1] - sum_y @ sums[-1, 1:-1] + squares
        )
        return trace_kl + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * sum_kl

    if n < _LEAST_TILES or _is_constant(xx) or _is_constant(yy):
        return xy.new_tensor(torch.nan)
    return _normalised(hsic_1(xy), hsic_1(xx), hsic_1(yy))


def _is_constant(sums: torch.Tensor) -> torch.Tensor:
    """Whether the variance is nothing but what rounding leaves of it."""
    squares, sum_x, n = sums[-1, 0], sums[1:-1, 0], sums[0, 0]
    return squares - sum_x @ sum_x / n <= 1e-13 * squares


def _gram(x: torch.Tensor) -> torch.Tensor:
    """Products of all pairs of rows; HSIC_1 is the same wherever the origin is."""
    x = x.double()
    x = x - x[0]
    return x @ x.T


def _hsic_1(gram_x: torch.Tensor, gram_y: torch.Tensor) -> torch.Tensor:
    """The unbiased estimator of HSIC from two Gram matrices (N, N)."""
    n = len(gram_x)
    gram_x, gram_y = (gram - gram.diag().diag() for gram in (gram_x, gram_y))
    sums_x, sums_y = gram_x.sum(0), gram_y.sum(0)
    total = (gram_x * gram_y).sum() + sums_x.sum() * sums_y.sum() / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (sums_x @ sums_y)) / (n * (n - 3))


def _normalised(xy: torch.Tensor, xx: torch.Tensor, yy: torch.Tensor) -> torch.Tensor:
    return xy / (xx.sqrt() * yy.sqrt())
