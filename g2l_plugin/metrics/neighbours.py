"""Exact nearest neighbours among embeddings."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from g2l_plugin.errors import UserError

Distance = Literal["cosine", "euclidean"]

_CELLS = 2**24
"""Similarities held in memory at a time, 4 bytes each."""


_of_run: contextvars.ContextVar[torch.device | None] = contextvars.ContextVar(
    "device", default=None
)


@contextlib.contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Makes `auto` the device of a run while it computes metrics: CPU or CUDA.

    A run on the CPU beside a GPU takes nothing of it, and each rank stays on its own.
    """
    token = _of_run.set(device if device.type in ("cpu", "cuda") else None)
    try:
        yield
    finally:
        _of_run.reset(token)


def choose_device(name: str) -> torch.device:
    """Device of a name; `auto` is that of the run, or else CUDA if there is a GPU, or the CPU."""
    if name != "auto":
        return torch.device(name)
    if (device := _of_run.get()) is not None:
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    k: int,
    distance: Distance = "cosine",
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
    device: str = "auto",
    description: str = "Finding neighbours",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest references of each query, exactly and in single precision.

    All similarities are computed, a block of queries at a time. So it needs memory for one copy of
    the references in addition to the embeddings. Among equally near references the first ones win.
    scikit-learn's neighbours run on the CPU only, and can't exclude a tile's own slide.

    Args:
        queries: Embeddings (M, D).
        references: Embeddings (N, D).
        k: Neighbours of each query.
        distance: `cosine` or `euclidean`.
        exclude: Groups of the queries (M,) and of the references (N,), e.g. their slides.
            References of the query's own group are skipped.
        device: Where to compute; `auto` uses a CUDA device if there is one.
        description: Text of the progress bar.

    Returns:
        Indices of the references (M, k), nearest first, and their cosine similarities or Euclidean
        distances (M, k).

    Raises:
        UserError: A query has fewer than k references, an embedding is not finite, or it is all
            zeros with `cosine`.
    """
    if distance not in ("cosine", "euclidean"):
        raise UserError(f"Unknown distance {distance!r}. Expected cosine or euclidean.")
    groups = None if exclude is None else _common_codes(*exclude)
    _check_available(k, len(references), groups)
    check_values(queries, distance)
    if references is not queries:
        check_values(references, distance)
    target = choose_device(device)
    pool = to_device(references, target)
    # Centred, because distances between points far from the origin would lose precision.
    centre = pool.mean(0) if distance == "euclidean" else None
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
    """Copies embeddings to a device in single precision."""
    return torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).to(device)


def _project(embeddings: torch.Tensor, centre: torch.Tensor | None) -> torch.Tensor:
    """Maps embeddings so that dot products rank neighbours: normalised (cosine) or centred."""
    return F.normalize(embeddings, dim=1) if centre is None else embeddings - centre


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Uses full precision for matrix products: trainers lower it, which would mix up neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _largest(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns and values of each row's k largest, descending; ties go to the first columns."""
    values, columns = matrix.topk(min(k + 1, matrix.shape[1]), dim=1)
    last, columns = values[:, k - 1], columns[:, :k].contiguous()
    if values.shape[1] > k:  # topk picks any of several equal values
        for row in torch.nonzero(last == values[:, k]).flatten().tolist():
            candidates = torch.nonzero(matrix[row] >= last[row]).flatten()
            order = matrix[row, candidates].argsort(descending=True, stable=True)[:k]
            columns[row] = candidates[order]
    columns = columns.sort(dim=1).values
    values = matrix.gather(1, columns)
    order = values.argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order), values.gather(1, order)


def n_available(n_references: int, groups: tuple[np.ndarray, np.ndarray] | None = None) -> int:
    """Largest k that every query has: the references outside its group, at least.

    Args:
        n_references: Number of references.
        groups: Groups of the queries (M,) and of the references (N,), names or numbers.
    """
    if groups is None or not len(groups[0]):
        return n_references
    queries, references = _common_codes(*groups)
    counts = np.bincount(references, minlength=queries.max() + 1)
    return n_references - int(counts[queries].max())


def _common_codes(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the group names, the same name alike in both arrays."""
    _, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    return codes[: len(a)], codes[len(a) :]


def _check_available(
    k: int, n_references: int, groups: tuple[np.ndarray, np.ndarray] | None
) -> None:
    available = n_available(n_references, groups)
    if not 1 <= k <= available:
        others = "" if groups is None else " outside a tile's own group"
        raise UserError(
            f"k is {k}, but there are {available:,} embeddings{others} to choose neighbours from. "
            "Set k between 1 and that number, or provide more embeddings."
        )


def check_values(embeddings: np.ndarray, distance: Distance) -> None:
    """Raises a UserError if embeddings (N, D) are not finite or have no cosine similarity."""
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    if broken := int((~np.isfinite(norms)).sum()):
        raise UserError(
            f"{broken:,} of {len(norms):,} embeddings are not finite. Check the model and its "
            "precision, and compute them again."
        )
    if distance == "cosine" and (empty := int((norms == 0).sum())):
        raise UserError(
            f"{empty:,} of {len(norms):,} embeddings are all zeros and have no cosine similarity. "
            "Check the model, or use `distance: euclidean`."
        )
