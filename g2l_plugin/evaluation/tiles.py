"""The tiles of a dataset: whether their images are those of before, and what is known of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from g2l_plugin.errors import UserError
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

    Raises:
        UserError: Images are missing.
    """
    with _complete(dataset):
        return _hash_images(dataset)


def hash_names(dataset: Any) -> str:
    """Identifies the tiles of a dataset, one of eva's that is set up, by number and names.

    Raises:
        UserError: Images are missing.
    """
    digest = hashlib.sha256()
    with _complete(dataset):
        for index in range(len(dataset)):
            digest.update(f"{dataset.filename(index)}\n".encode())
    return f"{len(dataset)} {digest.hexdigest()}"


@contextlib.contextmanager
def _complete(dataset: Any) -> Iterator[None]:
    """Says which dataset lacks images: eva's know how many there should be, and count on it."""
    try:
        yield
    except (IndexError, FileNotFoundError) as error:
        root = getattr(dataset, "_root", "its folder")
        first = f" (first: {error.filename})" if isinstance(error, FileNotFoundError) else ""
        raise UserError(
            f"{type(dataset).__name__} in {root} is incomplete: images of its {len(dataset):,} in "
            f"this split are missing{first}. Download or unpack it again."
        ) from error


def _hash_images(dataset: Any) -> str:
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


def name_classes(given: Sequence[str] | None, own: Sequence[str] | None) -> list[str] | None:
    """Names of the classes, in the order of their numbers.

    Args:
        given: Names of a config; None if it has none.
        own: Labels of the dataset, in the order of their numbers; None if it does not know them.

    Returns:
        The labels if they are words; else the names of the config.

    Raises:
        UserError: The config and the dataset do not agree.
    """
    if own is None or given is None:
        named = own if given is None else given
        return None if named is None else list(named)
    are_numbers = all(label.isdecimal() for label in own)
    if list(given) == list(own) or (are_numbers and len(given) == len(own)):
        return list(given)
    raise UserError(
        f"The config names the classes {', '.join(given)}, and the dataset has {', '.join(own)}, "
        "in the order of their numbers. Set `classes` to the dataset's, or give the labels as "
        "numbers from 0 in the config's order."
    )


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
