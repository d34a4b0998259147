"""The table of gene expression beside a task's tiles: a row per tile, a column per gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_file

FILE = "genes.parquet"
"""Name of the table, beside the manifest."""

FOLD = "fold"
"""Metadata of a tile: the number of the fold that tests it. All other folds train on it."""

_TILE = "path"
"""Column of the tile's name, as in the manifest. All other columns are genes."""


def write_genes(path: Path, names: Sequence[str], genes: Sequence[str], values: np.ndarray) -> None:
    """Writes the expression of each gene in each tile.

    Args:
        path: The parquet file.
        names: Names of the tiles (N,).
        genes: Names of the genes (G,).
        values: log(1 + count), float64 (N, G). In single precision, the solver of HEST-Benchmark
            stops elsewhere, which changes its result by 2e-5.
    """
    table = pd.DataFrame(values, columns=list(genes))
    table.insert(0, _TILE, list(names), allow_duplicates=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        table.to_parquet(partial, index=False)


def read_genes(path: str | Path, names: Sequence[str] | np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Reads the expression in some tiles, in their order.

    Args:
        path: The parquet file.
        names: Names of the tiles (N,).

    Returns:
        log(1 + count) float64 (N, G), and the names of the genes (G,).

    Raises:
        UserError: The file cannot be read, or lacks a tile.
    """
    try:
        table = pd.read_parquet(path).set_index(_TILE)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The genes of the tiles cannot be read from {path} ({in_one_line(error)}). Expected "
            "the table that `g2l prepare hest` writes beside the manifest."
        ) from error
    rows = table.index.get_indexer(pd.Index(names))
    if (missing := rows < 0).any():
        raise UserError(
            f"{path} lacks {missing.sum():,} of {len(rows):,} tiles, such as "
            f"{names[int(missing.argmax())]}. Run `g2l prepare hest` again, and embed its tiles."
        )
    return table.to_numpy(np.float64)[rows], table.columns.tolist()
