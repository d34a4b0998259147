"""Linear centred kernel alignment between two embeddings of the same tiles."""

from __future__ import annotations

import torch


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


def _centred(embeddings: torch.Tensor) -> torch.Tensor:
    """Columns with mean zero, in double precision (on the CPU: not every device has doubles)."""
    embeddings = embeddings.detach().cpu().double()
    return embeddings - embeddings.mean(0)
