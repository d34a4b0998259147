"""What a model said of each tile: the tables that our measures leave beside results.json."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.reporting.sessions import Session

_UNITS = ("patient", "slide")


def columns_of(session: Session, split: str) -> list[str]:
    """Names of the columns of a session's table of tiles; none where there is no table.

    Raises:
        UserError: The table is damaged.
    """
    measured = session.measured.get(split)
    if measured is None or measured.predictions is None:
        return []
    try:
        return pyarrow.parquet.read_schema(measured.predictions).names
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(measured.predictions, error) from error


def read_columns(session: Session, split: str, columns: Sequence[str]) -> pd.DataFrame:
    """Reads some columns of a session's table of tiles; those that it lacks are left out.

    Raises:
        UserError: The table is damaged.
    """
    there = columns_of(session, split)
    path = session.measured[split].predictions
    try:
        return pd.read_parquet(path, columns=[name for name in columns if name in there])
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def read_scores(session: Session, split: str, classifier: str) -> pd.DataFrame | None:
    """Reads class probabilities of the tiles, in the order of their names.

    Args:
        session: The session.
        split: `val` or `test`.
        classifier: `knn` or `logistic`.

    Returns:
        A row a tile, by its name: `label`, `unit` (the patient, else the slide, else the tile), and
        a column a class, of its number. `attrs["unit"]` says which unit it is. None where the
        session has no such probabilities.
    """
    there = columns_of(session, split)
    scores = [name for name in there if name.startswith(f"{classifier}/")]
    if not scores:
        return None
    unit = next((name for name in _UNITS if name in there), "name")
    table = read_columns(session, split, list(dict.fromkeys(["name", "label", unit, *scores])))
    table["unit"] = table[unit].astype(str)
    table = table.set_index("name").sort_index()[["label", "unit", *scores]]
    table.columns = [
        "label",
        "unit",
        *(int(name.rpartition("/")[2]) for name in scores),
    ]
    table.attrs["unit"] = "tile" if unit == "name" else unit
    return table


def subsample(table: pd.DataFrame, n_rows: int) -> pd.DataFrame:
    """Takes rows that are evenly spread over a table."""
    if len(table) <= n_rows:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, n_rows).round().astype(int)]


def _damaged(path: object, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged ({in_one_line(error)}). Run its benchmark again, or leave it out."
    )
