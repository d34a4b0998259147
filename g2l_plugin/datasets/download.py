"""Finding the parts of a download, and reading the parquet shards of a dataset on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_file

_SHARD = re.compile(r"(?P<start>.*)-\d{5}-of-(?P<total>\d{5})\.parquet")
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\x00": ".tif", b"MM\x00*": ".tif"}
"""First bytes of an image file to its suffix."""


def find_root(
    download: Path, parts: Sequence[str], source: str, subfolders: Sequence[str] = ("",)
) -> Path:
    """Finds the folder of a download that contains all its parts.

    Args:
        download: The folder that the user gave.
        parts: Files and folders that must exist, relative to the folder to find.
        source: Where to get the download and how to unpack it, for errors.
        subfolders: Folders below `download` that may contain the parts; "" is `download`.

    Returns:
        The folder.

    Raises:
        UserError: No folder contains all parts. The error names the first missing part of the
            folder that contains the most.
    """
    if not download.is_dir():
        raise UserError(f"The folder {download} does not exist. Expected {source}.")
    folders = [download / name for name in subfolders if (download / name).is_dir()]
    missing = {
        folder: [part for part in parts if not (folder / part).exists()] for folder in folders
    }
    best = min(folders or [download], key=lambda folder: len(missing.get(folder, parts)))
    if absent := missing.get(best, list(parts)):
        raise UserError(f"{best / absent[0]} is missing. Expected {source}.")
    return best


def relative(path: Path, root: Path) -> str:
    """Path relative to the root, with forward slashes as in a manifest."""
    return path.relative_to(root).as_posix()


def safe_name(name: str) -> str:
    """Replaces characters that are awkward in a path by underscores."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def find_shards(download: Path, columns: Sequence[str], source: str) -> list[Path]:
    """Finds the parquet shards of a download and checks that none is missing.

    Args:
        download: Folder of the download.
        columns: Columns that every shard must have.
        source: What is expected and where to get it, for errors.

    Raises:
        UserError: A shard is missing, cannot be read, or lacks a column.
    """
    found = download.rglob("*.parquet")
    shards = sorted(
        path
        for path in found
        if not any(p.startswith(".") for p in path.relative_to(download).parts)
    )
    if not shards:
        raise UserError(f"No parquet files in {download}. Expected {source}.")
    for shard in shards:
        if name := _SHARD.fullmatch(shard.name):
            for number in range(int(name["total"])):
                other = shard.with_name(f"{name['start']}-{number:05d}-of-{name['total']}.parquet")
                if not other.exists():
                    raise UserError(f"{other} is missing. Expected {source}.")
        try:
            names = pq.ParquetFile(shard).schema_arrow.names
        except (OSError, ValueError) as error:
            raise UserError(
                f"{shard} cannot be read ({in_one_line(error)}). Download it again: {source}."
            ) from error
        if missing := [column for column in columns if column not in names]:
            raise UserError(f"{shard} has no column {missing[0]}. Expected {source}.")
    return shards


def read_rows(shards: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards with a progress bar; at most 128 rows are in memory."""
    total = sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards)
    with tqdm(desc="Writing tiles", total=total, unit="tile") as progress:
        for shard in shards:
            for batch in pq.ParquetFile(shard).iter_batches(128, columns=list(columns)):
                yield from batch.to_pylist()
                progress.update(len(batch))


def write_image(content: bytes, output: Path, stem: Path, source: str) -> Path:
    """Writes the bytes of an image file unchanged; an existing file is kept.

    Args:
        content: A PNG, JPEG or TIFF file.
        output: Folder of the manifest.
        stem: Path of the file in that folder, without its suffix.
        source: What is expected, for errors.

    Returns:
        Path of the file in `output`.

    Raises:
        UserError: The bytes are none of these formats.
    """
    suffix = next(
        (suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), None
    )
    if suffix is None:
        raise UserError(f"Tile {stem} is not a PNG, JPEG or TIFF file. Expected {source}.")
    name = stem.with_name(f"{stem.name}{suffix}")
    if not (output / name).is_file():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        with new_file(output / name) as partial:
            partial.write_bytes(content)
    return name
