"""Pictures in the parquet shards of a dataset on the Hub."""

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
"""How a picture's bytes begin."""


def find_shards(download: Path, columns: Sequence[str], source: str) -> list[Path]:
    """Finds the shards of a download, and checks that all are there and have the columns.

    Args:
        download: Folder of the download.
        columns: The columns that are needed.
        source: What is expected and where it is to be had, for errors.

    Raises:
        UserError: One is missing or cannot be read, or is of another dataset.
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
            there = pq.ParquetFile(shard).schema_arrow.names
        except (OSError, ValueError) as error:
            raise UserError(
                f"{shard} cannot be read ({in_one_line(error)}). Fetch it again: {source}."
            ) from error
        if missing := [column for column in columns if column not in there]:
            raise UserError(f"{shard} has no column {missing[0]}. Expected {source}.")
    return shards


def read_rows(shards: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards, a few in memory at a time, with a progress bar."""
    total = sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards)
    with tqdm(desc="Writing tiles", total=total, unit="tile") as progress:
        for shard in shards:
            for batch in pq.ParquetFile(shard).iter_batches(128, columns=list(columns)):
                yield from batch.to_pylist()
                progress.update(len(batch))


def write_picture(pixels: bytes, output: Path, stem: Path, source: str) -> Path:
    """Writes a picture as it is; one that is there already is left.

    Args:
        pixels: The bytes of a PNG, JPEG or TIFF file.
        output: Folder of the tiles' manifest.
        stem: Where to in that folder, without the suffix.
        source: What is expected, for errors.

    Returns:
        Its path in that folder.

    Raises:
        UserError: It is no such file.
    """
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if pixels.startswith(start)), None)
    if suffix is None:
        raise UserError(f"Tile {stem} is no PNG, JPEG or TIFF. Expected {source}.")
    name = stem.with_name(f"{stem.name}{suffix}")
    if not (output / name).is_file():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        with new_file(output / name) as partial:
            partial.write_bytes(pixels)
    return name
