"""Reads counts from an AnnData file (.h5ad) without AnnData: some spots, some genes.

Source: the format's documentation, https://anndata.readthedocs.io/en/latest/fileformat-prose.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from g2l_plugin.errors import UserError, in_one_line

_ROWS = 4096
"""Rows of a dense matrix that are read at a time: 33,538 genes need 0.5 GB."""


def read_counts(path: Path, spots: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """Reads the counts of spots and genes, in the given order.

    Args:
        path: The file. Its matrix is dense, or sparse by rows or columns (CSR, CSC).
        spots: Names of the spots, which are its observations.
        genes: Names of the genes, which are its variables.

    Returns:
        Counts, float64 (spots, genes).

    Raises:
        UserError: The file cannot be read, lacks a spot or a gene, names one twice, or has values
            that are no counts.
    """
    try:
        with h5py.File(path) as file:
            rows = _find(spots, _names(file["obs"]), "spot", path)
            columns = _find(genes, _names(file["var"]), "gene", path)
            counts = _read(file["X"], rows, columns)
    except (OSError, KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read as AnnData ({in_one_line(error)}). Download it again."
        ) from error
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise UserError(
            f"{path} has values that are negative or no numbers. Expected counts of genes."
        )
    return counts


def read_text(values: h5py.Dataset) -> list[str]:
    """All values of a dataset of text, of any shape, as a flat list."""
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values[...].ravel().tolist()]


def _names(table: h5py.Group) -> list[str]:
    return read_text(table[table.attrs["_index"]])


def _find(wanted: Sequence[str], names: list[str], kind: str, path: Path) -> np.ndarray:
    index = pd.Index(names)
    asked = pd.Index(wanted)
    if (missing := ~asked.isin(index)).any():
        raise UserError(
            f"{path} lacks {missing.sum():,} of {len(asked):,} {kind}s, such as "
            f"{asked[int(missing.argmax())]}. Download all parts of the task again."
        )
    if (twice := index[index.duplicated()].intersection(asked)).size:
        raise UserError(f"{path} has two {kind}s called {twice[0]}. Expected each name once.")
    return index.get_indexer(asked)


def _read(x: h5py.Dataset | h5py.Group, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    if isinstance(x, h5py.Dataset):
        parts = [x[start : start + _ROWS][:, columns] for start in range(0, x.shape[0], _ROWS)]
        return np.concatenate(parts)[rows].astype(np.float64)
    matrix = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}
    kind = matrix[x.attrs["encoding-type"]]
    content = (x["data"][...], x["indices"][...], x["indptr"][...])
    found = kind(content, shape=tuple(x.attrs["shape"]))
    return found[:, columns][rows].toarray().astype(np.float64)
