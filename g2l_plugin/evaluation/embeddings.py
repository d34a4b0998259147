"""Embeddings of labelled tiles: what every measure is taken on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from loguru import logger
from tqdm import tqdm

from g2l_plugin.errors import UserError, in_one_line

MANIFEST = "manifest.csv"
"""Name of the table that eva's writers of embeddings leave beside them."""

_COLUMNS = ("origin", "embeddings", "target", "split")
_GROUPS = {"patient_id": "patient", "wsi_id": "slide", "center": "centre"}


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of N tiles (or slides) by one encoder, with what is known of each.

    Attributes:
        values: float32 (N, D).
        labels: Class of each, int64 (N,).
        names: Name of each, str (N,): unique, and the same whatever the encoder.
        groups: What else each belongs to, str (N,), by name: `patient`, `slide`, `centre`, ...
        split: Which split of the task they are: `train`, `val` or `test`.
    """

    values: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    groups: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    split: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def units(self) -> np.ndarray:
        """What is independent of each other, str (N,): patients, else slides, else the tiles."""
        for name in ("patient", "slide"):
            if name in self.groups:
                return self.groups[name]
        return self.names


def read_embeddings(folder: str | Path, split: str) -> Embeddings:
    """Reads what eva's `ClassificationEmbeddingsWriter` has written.

    Where a file holds several embeddings, those of the tiles of a slide, their mean is taken.
    Metadata columns of the manifest become groups: eva's `patient_id` is `patient`, `wsi_id` is
    `slide`, and others keep their names. What was read last stays in memory, and is shared: leave
    it as it is.

    Args:
        folder: The folder that holds manifest.csv.
        split: Which rows to take: `train`, `val` or `test`.

    Raises:
        UserError: There are none, or they cannot be read, or they are not finite.
    """
    path = Path(folder) / MANIFEST
    return _read(Path(folder), split, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=4)  # a task's splits, and the teacher's
def _read(folder: Path, split: str, changed: int) -> Embeddings:
    """Reads a split of a folder whose manifest changed at that time."""
    table = _read_manifest(folder)
    table = table[table["split"] == split]
    if table.empty:
        raise UserError(f"{folder / MANIFEST} has no rows of the split {split!r}.")
    files = [folder / name for name in table["embeddings"]]
    # Threads make it slower: unpickling holds the interpreter's lock.
    rows = [_read_mean(file) for file in tqdm(files, f"Reading {split} embeddings", leave=False)]
    if len({row.shape for row in rows}) > 1:
        raise UserError(
            f"{folder} holds embeddings of several widths, so of several models. Delete it, or set "
            "OVERWRITE=true, and compute them again."
        )
    values = np.stack(rows)
    if not np.isfinite(values).all():
        broken = int((~np.isfinite(values).all(axis=1)).sum())
        raise UserError(
            f"{broken:,} of {len(values):,} {split} embeddings in {folder} are not finite. Check "
            "the model and its precision, and compute them again (OVERWRITE=true)."
        )
    return Embeddings(
        values,
        table["target"].to_numpy(np.int64),
        table["origin"].astype(str).to_numpy(),
        _groups(table),
        split,
    )


def splits_of(folder: str | Path) -> list[str]:
    """The splits that a folder holds embeddings of, in the order of their first rows.

    Raises:
        UserError: It holds none.
    """
    return list(dict.fromkeys(_read_manifest(Path(folder))["split"].dropna()))


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Puts several splits of a task together; groups that one of them lacks are left out."""
    groups = set.intersection(*(set(part.groups) for part in parts))
    return Embeddings(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.names for part in parts]),
        {name: np.concatenate([part.groups[name] for part in parts]) for name in groups},
    )


def _read_manifest(folder: Path) -> pd.DataFrame:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"There are no embeddings in {folder}: {path} is missing. Compute them first: "
            "`eva predict_fit` does, and `eva fit` takes what it left."
        )
    table = pd.read_csv(path)
    if missing := [column for column in _COLUMNS if column not in table]:
        raise UserError(f"{path} has no column {', '.join(missing)}: it is not one of eva's.")
    return table


def _groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    groups = {}
    for column in table.columns.difference(_COLUMNS):
        values = table[column]
        if values.isna().all():
            continue
        if values.isna().any():
            logger.warning(
                f"{values.isna().sum():,} of {len(values):,} tiles have no {column}: it is left "
                "out of the measures."
            )
            continue
        groups[_GROUPS.get(column, column)] = values.astype(str).to_numpy()
    return groups


def _read_mean(file: Path) -> np.ndarray:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many ways to say it
        raise UserError(
            f"{file} cannot be read ({in_one_line(error)}). Compute the embeddings again: "
            "OVERWRITE=true eva predict_fit ..."
        ) from error
    tensors = saved if isinstance(saved, list) else [saved]
    return torch.stack([tensor.float().flatten() for tensor in tensors]).mean(0).numpy()
