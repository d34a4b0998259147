"""The tiles of a dataset: whether their images are those of before, and what is known of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from g2l_plugin.evaluation.embedding_files import MANIFEST
from g2l_plugin.files import write_text
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.upstream import image_files


def fingerprint(dataset: Any) -> str:
    """Identifies the images of a dataset, in whatever folder they are.

    Files are known by size and modification time, because reading a benchmark's slides takes hours.
    Images that are in no file are known by their content.

    Args:
        dataset: One of eva's datasets, set up.

    Returns:
        A hash that differs if an image is another one.
    """
    digest = hashlib.sha256()
    if isinstance(dataset, TileDataset):
        digest.update(dataset.fingerprint().encode())  # where the tiles are in their slides
        files: Sequence[tuple[Any, str]] | None = [
            (path, "") for path in getattr(dataset.tiles, "paths", ())
        ]
    else:
        files = image_files(dataset)
    if files is None:
        for index in range(len(dataset)):
            digest.update(np.ascontiguousarray(dataset[index][0]).tobytes())
        return digest.hexdigest()
    for path, place in files:
        stat = os.stat(path)
        digest.update(f"{stat.st_size} {stat.st_mtime_ns} {place}\n".encode())
    return digest.hexdigest()


def write_manifest(
    folder: Path, datasets: Sequence[Any], splits: Sequence[str], metadata_keys: Sequence[str]
) -> None:
    """Writes the manifest of existing embeddings again, with the datasets' present labels.

    Args:
        folder: Folder of the embeddings.
        datasets: eva's datasets, set up, of the tiles that the embeddings are of.
        splits: Split of each dataset.
        metadata_keys: Keys of the tiles' metadata that are columns of the manifest.
    """
    columns = ["origin", "embeddings", "target", "split", *metadata_keys]
    rows = []
    for dataset, split in zip(datasets, splits, strict=True):
        first = {dataset.filename(index): index for index in reversed(range(len(dataset)))}
        for name, index in reversed(first.items()):
            target, metadata = _facts(dataset, index)
            known = [_plain(metadata[key]) for key in metadata_keys]
            rows.append([name, os.path.splitext(name)[0] + ".pt", _plain(target), split, *known])
    table = pd.DataFrame(rows, columns=columns)
    write_text(folder / MANIFEST, table.to_csv(index=False, lineterminator="\n"))


def _facts(dataset: Any, index: int) -> tuple[Any, dict[str, Any]]:
    """Target and metadata of a tile, without its image where the dataset knows them without."""
    if hasattr(dataset, "load_target"):
        return dataset.load_target(index), dataset.load_metadata(index) or {}
    _, target, metadata = dataset[index]
    return target, metadata


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
