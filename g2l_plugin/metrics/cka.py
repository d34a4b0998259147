"""Linear centred kernel alignment (CKA) of two encoders' embeddings of the same tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchmetrics import Metric
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import MetricFamily, MetricResult
from g2l_plugin.metrics.neighbours import choose_device

LEAST_TILES = 4
"""Number of tiles that the unbiased estimator needs: it divides by n - 3."""

_BATCH_SIZE = 8192

CKA = MetricFamily(
    key="cka",
    title="CKA with the teacher",
    about="Unbiased linear centred kernel alignment of the embeddings with the teacher's: 0 for "
    "unrelated ones. The teacher has 1 and is not ranked.",
    pattern="LinearCKAUnbiased",
    column="CKA with the teacher",
)
BIASED_CKA = MetricFamily(
    key="biased_cka",
    title="Biased CKA with the teacher",
    about="The estimator of the published values, shown next to them only: with few tiles and many "
    "features it is near 1 even for unrelated embeddings.",
    pattern="LinearCKA",
)


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes linear CKA: 1 for embeddings equal up to rotation and scale, 0 for unrelated ones.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 3 with linear kernels.

    Args:
        x: Embeddings (N, D1).
        y: Embeddings of the same N tiles (N, D2).

    Returns:
        The alignment, a scalar in [0, 1]; NaN if all embeddings of one encoder are the same.

    Examples:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
        >>> rotated = torch.stack([-x[:, 1], x[:, 0]], dim=1)
        >>> round(linear_cka(x, 5 * rotated).item(), 4)
        1.0
        >>> round(linear_cka(x, x[:, :1]).item(), 4)
        0.4743
    """
    x, y = (_centred(z) for z in (x, y))
    if len(x) < max(x.shape[1], y.shape[1]):  # the N x N Gram matrices are smaller
        gram_x, gram_y = x @ x.T, y @ y.T
        return (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def cka_between(a: Embeddings, b: Embeddings, device: str = "auto") -> dict[str, float]:
    """Computes CKA of two encoders' embeddings of the same tiles, matched by tile name.

    Args:
        a: Embeddings by one encoder.
        b: Embeddings by the other encoder, of the same tiles in any order.
        device: Where to compute; `auto` uses a CUDA device if there is one.

    Returns:
        `LinearCKA` as in `linear_cka`, and `LinearCKAUnbiased` as in `LinearCKA(unbiased=True)`.

    Raises:
        UserError: The tiles differ, or their images.
    """
    order_a, order_b = np.argsort(a.names), np.argsort(b.names)
    if not np.array_equal(a.names[order_a], b.names[order_b]):
        only_a = len(np.setdiff1d(a.names, b.names))
        only_b = len(np.setdiff1d(b.names, a.names))
        raise UserError(
            f"CKA needs embeddings of the same tiles. Of {len(a):,} and {len(b):,} tiles, "
            f"{only_a:,} are only in the first and {only_b:,} only in the second. Compute both on "
            "one dataset."
        )
    if a.images and b.images and a.images != b.images:
        raise UserError(
            "CKA needs embeddings of the same images. These tiles have the same names, but their "
            "files changed between the two embeddings. Compute the older ones again."
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


def align(evaluated: Embeddings, teacher: Embeddings) -> MetricResult:
    """Computes linear CKA with the teacher's embeddings; undefined of too few or equal ones."""
    values = cka_between(evaluated, teacher)
    few = len(evaluated) < LEAST_TILES
    reasons = {
        "LinearCKA": "all embeddings of one encoder are the same",
        "LinearCKAUnbiased": f"the unbiased estimator needs {LEAST_TILES} tiles"
        if few
        else "the embeddings of one encoder hardly differ",
    }
    undefined = {name: reasons[name] for name, value in values.items() if np.isnan(value)}
    return MetricResult(
        {name: value for name, value in values.items() if name not in undefined}, undefined
    )


class LinearCKA(Metric):
    """Linear CKA of any number of tiles, in constant memory.

    It sums moments of the embeddings in double precision. So the result does not depend on how
    tiles are batched or spread over devices. It is NaN if all embeddings of one encoder are the
    same.

    Source: the biased estimator is Kornblith et al. 2019, arXiv 1905.00414, equation 3. The
    unbiased one replaces HSIC by HSIC_1 (Song et al. 2012, "Feature Selection via Dependence
    Maximization"; Nguyen et al. 2021, arXiv 2010.15327). With few tiles and many features, the
    biased one is near 1 even for unrelated embeddings.
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
            y_width: Width D2 of the second embeddings.
            unbiased: Whether to compute the unbiased estimator, which needs 4 tiles.
            **kwargs: Arguments of torchmetrics' `Metric`.
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
        """Computes the alignment of all tiles so far, a scalar."""
        align = _unbiased_alignment if self.unbiased else _biased_alignment
        return align(self.xx, self.yy, self.xy)


def _centred(embeddings: torch.Tensor) -> torch.Tensor:
    """Centres the columns in double precision, on the CPU because some devices lack doubles."""
    embeddings = embeddings.detach().cpu().double()
    return embeddings - embeddings.mean(0)


def _with_moments(x: torch.Tensor) -> torch.Tensor:
    """Puts 1 before and |x|² after each row: products of two such give all sums HSIC needs."""
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

    if n < LEAST_TILES or _is_constant(xx) or _is_constant(yy):
        return xy.new_tensor(torch.nan)
    return _normalised(hsic_1(xy), hsic_1(xx), hsic_1(yy))


def _is_constant(sums: torch.Tensor) -> torch.Tensor:
    """Whether the variance is zero within rounding."""
    squares, sum_x, n = sums[-1, 0], sums[1:-1, 0], sums[0, 0]
    return squares - sum_x @ sum_x / n <= 1e-13 * squares


def _normalised(xy: torch.Tensor, xx: torch.Tensor, yy: torch.Tensor) -> torch.Tensor:
    return xy / (xx.sqrt() * yy.sqrt())
