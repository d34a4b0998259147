"""Exact nearest neighbours among embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from g2l_plugin.errors import UserError

Metric = Literal["cosine", "euclidean"]

_CELLS = 2**24
"""Similarities in memory at a time, of 4 bytes each."""


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the CUDA device where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@torch.inference_mode()
def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    k: int,
    metric: Metric = "cosine",
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
    device: str = "auto",
    description: str = "Seeking neighbours",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest references of each query, in single precision and without index.

    All similarities are computed, some queries at a time: what it takes beside the embeddings is
    one copy of the references. Of references that are equally near the first ones are taken.

    Args:
        queries: Embeddings (M, D).
        references: Embeddings (N, D).
        k: Neighbours of each query.
        metric: `cosine` or `euclidean`.
        exclude: Groups of the queries (M,) and of the references (N,), e.g. their slides: a
            reference of the query's own group never counts.
        device: Where to compute; `auto` takes a CUDA device where there is one.
        description: What the progress bar says.

    Returns:
        Indices of the references (M, k), nearest first, and their cosine similarities or Euclidean
        distances (M, k).

    Raises:
        UserError: There are fewer than k references for a query, an embedding is not finite, or
            has no direction (all zeros) with `cosine`.
    """
    if metric not in ("cosine", "euclidean"):
        raise UserError(f"Unknown metric {metric!r}. Expected cosine or euclidean.")
    groups = None if exclude is None else _common_codes(*exclude)
    _check_available(k, len(references), groups)
    check_values(queries, metric)
    if references is not queries:
        check_values(references, metric)
    target = choose_device(device)
    pool = to_device(references, target)
    # Distances between points far from the origin would lose their last digits.
    centre = pool.mean(0) if metric == "euclidean" else None
    pool = _project(pool, centre)
    half_squares = pool.square().sum(1) / 2
    codes = None if groups is None else [torch.from_numpy(part).to(target) for part in groups]
    indices = np.empty((len(queries), k), np.int64)
    values = np.empty((len(queries), k), np.float32)
    step = max(1, _CELLS // len(references))
    with full_precision():
        for start in tqdm(range(0, len(queries), step), description, leave=False):
            rows = slice(start, start + step)
            block = _project(to_device(queries[rows], target), centre)
            nearness = block @ pool.T
            if centre is not None:
                nearness -= half_squares
            if codes is not None:
                nearness.masked_fill_(codes[0][rows, None] == codes[1], -torch.inf)
            found, near = _largest(nearness, k)
            if centre is not None:
                near = torch.stack([(block - pool[column]).norm(dim=1) for column in found.T], 1)
            indices[rows], values[rows] = found.cpu().numpy(), near.cpu().numpy()
    return indices, values


def to_device(embeddings: np.ndarray, device: torch.device) -> torch.Tensor:
    """Embeddings in single precision on a device."""
    return torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).to(device)


def _project(embeddings: torch.Tensor, centre: torch.Tensor | None) -> torch.Tensor:
    """Where a dot product tells what is near: on the sphere, or about the centre."""
    return F.normalize(embeddings, dim=1) if centre is None else embeddings - centre


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Trainers lower the precision of matrix products, which would mistake neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _largest(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns and values of each row's k largest, descending; of equal ones the first columns."""
    values, columns = matrix.topk(min(k + 1, matrix.shape[1]), dim=1)
    last, columns = values[:, k - 1], columns[:, :k].contiguous()
    if values.shape[1] > k:  # topk takes any of the equal ones
        for row in torch.nonzero(last == values[:, k]).flatten().tolist():
            candidates = torch.nonzero(matrix[row] >= last[row]).flatten()
            order = matrix[row, candidates].argsort(descending=True, stable=True)[:k]
            columns[row] = candidates[order]
    columns = columns.sort(dim=1).values
    values = matrix.gather(1, columns)
    order = values.argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order), values.gather(1, order)


def _common_codes(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers groups, the same for the same name in both."""
    _, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    return codes[: len(a)], codes[len(a) :]


def _check_available(
    k: int, n_references: int, groups: tuple[np.ndarray, np.ndarray] | None
) -> None:
    available = n_references
    if groups is not None and len(groups[0]):
        counts = np.bincount(groups[1], minlength=groups[0].max() + 1)
        available -= int(counts[groups[0]].max())
    if not 1 <= k <= available:
        others = "" if groups is None else " of other groups than their own"
        raise UserError(
            f"k is {k}, and there are {available:,} embeddings{others} to choose neighbours from. "
            "Give a k from 1 to that number, or more embeddings."
        )


def check_values(embeddings: np.ndarray, metric: Metric) -> None:
    """Raises a UserError where embeddings (N, D) are not finite, or have no cosine similarity."""
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    if broken := int((~np.isfinite(norms)).sum()):
        raise UserError(
            f"{broken:,} of {len(norms):,} embeddings are not finite. Check the model and its "
            "precision, and compute them again."
        )
    if metric == "cosine" and (empty := int((norms == 0).sum())):
        raise UserError(
            f"{empty:,} of {len(norms):,} embeddings are all zeros and have no cosine similarity. "
            "Check the model, or use the metric euclidean."
        )
