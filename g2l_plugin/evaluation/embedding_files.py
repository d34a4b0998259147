"""Reads the embeddings that eva writes to disk, and keeps them in memory."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from eva.core.data.datasets import EmbeddingsClassificationDataset
from loguru import logger
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.metrics.embeddings import Embeddings

MANIFEST = "manifest.csv"
"""Table that eva writes next to the embeddings."""

MODEL_FILE = "model.json"
"""File next to the embeddings that identifies their model and images."""

TRAINING_PATIENTS = "training_patients"
"""Key of the patients in it that a student was distilled on, hashed; absent if unknown."""

_COLUMNS = ("origin", "embeddings", "target", "split")
_GROUPS = {"patient_id": "patient", "wsi_id": "slide", "center": "centre"}


def read_embeddings(folder: str | Path, split: str) -> Embeddings:
    """Reads the embeddings that eva's `ClassificationEmbeddingsWriter` wrote.

    If a file holds several embeddings (the tiles of a slide), their mean is used. Metadata columns
    of the manifest become groups: eva's `patient_id` becomes `patient`, `wsi_id` becomes `slide`,
    `center` becomes `centre`, and others keep their names. The result is cached and shared: don't
    modify it.

    Args:
        folder: The folder that holds manifest.csv.
        split: Split to read: `train`, `val` or `test`.

    Raises:
        UserError: The embeddings are missing, unreadable or not finite.
    """
    path = Path(folder) / MANIFEST
    return _read(Path(folder), split, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=4)  # a task's splits, and the teacher's
def _read(folder: Path, split: str, changed: int) -> Embeddings:
    """Reads a split; the manifest's modification time is part of the cache key."""
    table = read_manifest(folder)
    table = table[table["split"] == split]
    if table.empty:
        raise UserError(f"{folder / MANIFEST} has no rows of the split {split!r}.")
    files = [folder / name for name in table["embeddings"]]
    # Without threads: unpickling holds the interpreter's lock, so they make it slower.
    rows = [_read_mean(file) for file in tqdm(files, f"Reading {split} embeddings", leave=False)]
    if len({row.shape for row in rows}) > 1:
        raise UserError(
            f"{folder} holds embeddings of several widths, so of several models. Delete it or set "
            "OVERWRITE=true, then compute them again."
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
        pd.to_numeric(table["target"]).to_numpy(np.int64),
        table["origin"].astype(str).to_numpy(),
        _groups(table),
        split,
        images=((read_model(folder) or {}).get("images") or {}).get(split, ""),
    )


def read_model(folder: str | Path) -> dict[str, Any] | None:
    """Reads which model embeddings are of: `name`, `sha256`, `complete` and `Speed`'s fields.

    Args:
        folder: The folder of the embeddings.

    Returns:
        The content of model.json; None if `EmbeddingsWriter` did not write the embeddings.
    """
    path = Path(folder) / MODEL_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def splits_of(folder: str | Path) -> list[str]:
    """Lists the splits of the embeddings in a folder, in the order of their first rows.

    Raises:
        UserError: The folder holds no embeddings.
    """
    return list(dict.fromkeys(read_manifest(Path(folder))["split"].dropna()))


class EmbeddingsInMemory(EmbeddingsClassificationDataset):
    """eva's `EmbeddingsClassificationDataset`, with the embeddings in memory.

    eva opens a file for every tile in every epoch, and so fits a head at 4,000 tiles/s at most.
    This opens each file once, for all epochs, runs and metrics: 327,680 tiles of 1,024 features
    need 1.3 GB. Set `num_workers: 0` in the data loader.
    """

    @override
    def setup(self) -> None:
        super().setup()
        assert self._split is not None
        self._values = torch.from_numpy(read_embeddings(self._root, self._split).values)

    @override
    def _set_multiprocessing_start_method(self) -> None:
        """Does nothing: eva makes data loaders spawn workers that open files; here none do."""

    @override
    def load_embeddings(self, index: int) -> torch.Tensor:
        return self._values[index]


def read_manifest(folder: Path) -> pd.DataFrame:
    """Reads the manifest of embeddings, as text: `origin`, `embeddings`, `target`, `split`, ...

    Raises:
        UserError: There is none, or eva did not write it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"There are no embeddings in {folder}: {path} is missing. Compute them first with "
            "`eva predict_fit`; `eva fit` then uses them."
        )
    # As text: patient 007 is not 7.
    table = pd.read_csv(path, dtype=str, na_values=[""], keep_default_na=False)
    if missing := [column for column in _COLUMNS if column not in table]:
        raise UserError(
            f"{path} has no column {', '.join(missing)}. Expected a manifest that eva wrote."
        )
    return table


def _groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    groups = {}
    for column in table.columns.difference(_COLUMNS):
        values = table[column]
        if values.isna().all():
            continue
        if values.isna().any():
            logger.warning(
                f"{values.isna().sum():,} of {len(values):,} tiles have no {column}; the "
                "metrics ignore it."
            )
            continue
        groups[_GROUPS.get(column, column)] = values.astype(str).to_numpy()
    return groups


def _read_mean(file: Path) -> np.ndarray:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UserError(
            f"{file} cannot be read ({in_one_line(error)}). Compute the embeddings again: "
            "OVERWRITE=true eva predict_fit ..."
        ) from error
    tensors = saved if isinstance(saved, list) else [saved]
    return torch.stack([tensor.float().flatten() for tensor in tensors]).mean(0).numpy()
