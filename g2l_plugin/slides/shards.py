"""Writing the tiles of a source into shards in LitData's format.

The format (https://github.com/Lightning-AI/litData) is chunks of thousands of JPEG files and an
`index.json`. Each shard mixes tiles of many slides, so that a loader can read whole shards and
still mix slides. A shard is written in one piece, so a stopped command goes on with the next.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from g2l_plugin.files import hash_file, new_file, write_text
from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.slides.mixing import shuffled_blocks
from g2l_plugin.slides.packed_source import TILES
from g2l_plugin.slides.tile_source import TileSource
from g2l_plugin.slides.workers import explain_dead_workers

SHARD_TILES = 2048
"""Tiles per shard, about 80 MB."""


_PARTIAL = ".partial-"
"""Start of the names of folders in which a process writes a shard."""


class PackableTiles(TileSource, Protocol):
    """A source whose tiles have a place in their slide or image.

    Attributes:
        xy: Upper left corner of each tile, in pixels of the slide or image, int32 (tiles, 2).
        block_tiles: Neighbouring tiles that are read together, and go into the same shard.
    """

    xy: np.ndarray
    block_tiles: int

    def read_encoded(self, number: int) -> bytes | None:
        """Reads a tile as the JPEG file that it is kept in; None if it is not kept so."""


def write_shards(
    source: PackableTiles, folder: Path, seed: int, quality: int, workers: int | None = None
) -> int:
    """Writes the tiles of a source into shards, or those that an earlier call has not written.

    Args:
        source: The tiles.
        folder: Folder for the shards. What is there is of the same source, seed and quality.
        seed: Seed of their order.
        quality: JPEG quality, 1 to 100, without chroma subsampling.
        workers: Processes; None starts one per usable CPU core.

    Returns:
        The number of tiles that could not be read and have substitutes.

    Raises:
        UserError: Too many tiles cannot be read, or a process was killed.
        OSError: The disk is full.
    """
    if (folder / "index.json").exists():
        return int(
            pq.read_table(folder / TILES, columns=["substitute"])["substitute"].to_numpy().sum()
        )
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(f"{_PARTIAL}*"):  # of a process that was killed
        shutil.rmtree(partial)
    shards = _mixed_shards(source.group_sizes, source.block_tiles, seed)
    writer = _ShardWriter(source, folder, shards, quality)
    missing = [number for number in range(len(shards)) if not writer.record_path(number).exists()]
    workers = min(workers or usable_cpus(), len(missing))
    loader = DataLoader(
        writer,
        batch_size=None,
        sampler=missing,
        # One process reads here: a worker would only wait for this one.
        num_workers=workers if workers > 1 else 0,
        prefetch_factor=1 if workers > 1 else None,
    )
    kept = sum(len(shard) for shard in shards) - sum(len(shards[number]) for number in missing)
    progress = _progress(writer.done, kept, len(source), f"Packing {folder.name} tiles")
    with progress, explain_dead_workers():
        for _ in loader:
            pass
    return _write_index(writer, source)


def has_shards(pack: Path) -> bool:
    """Says whether any shard of a pack is written, of either split."""
    return any(pack.glob("*/*.bin"))


class _ShardWriter(torch.utils.data.Dataset):
    """Writes shard after shard, in a worker of PyTorch's loader.

    Attributes:
        done: Tiles written of each shard, int64 (shards,), in shared memory.
    """

    def __init__(
        self, source: PackableTiles, folder: Path, shards: list[np.ndarray], quality: int
    ) -> None:
        self.done = torch.zeros(len(shards), dtype=torch.int64).share_memory_()
        # Sorted, so that neighbours are read together: the order within a shard does not matter.
        self.shards = [np.sort(shard) for shard in shards]
        self.folder = folder
        self._source = source
        self._quality = quality

    def record_path(self, number: int) -> Path:
        """The file that says that a shard is written."""
        return self.folder / f".shard-{number}.json"

    def __getitem__(self, number: int) -> int:
        from litdata.streaming.writer import BinaryWriter

        torch.set_num_threads(1)  # there is one process per core
        tiles = self.shards[number]
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=self.folder) as partial:
            writer = BinaryWriter(partial, chunk_size=SHARD_TILES, chunk_index=number)
            for place, tile in enumerate(tiles.tolist()):
                writer.add_item(place, self._encode(tile))
                self.done[number] += 1
            writer.done()
            (described,) = Path(partial).glob("*index.json")
            index = json.loads(described.read_text())
            (chunk,) = index["chunks"]
            written = Path(partial) / chunk["filename"]
            record = {
                "chunk": chunk | {"filename": f"chunk-0-{number}.bin"},
                "config": index["config"],
                "sha256": hash_file(written),
                "substitutes": np.flatnonzero(self._source.substitutes(tiles)).tolist(),
            }
            written.replace(self.folder / record["chunk"]["filename"])
        write_text(self.record_path(number), json.dumps(record))
        return number

    def _encode(self, tile: int) -> bytes:
        if (kept := self._source.read_encoded(tile)) is not None:
            return kept
        pixels = np.ascontiguousarray(self._source.read(tile).numpy().transpose(1, 2, 0))
        # Without subsampling, because stains differ in colour.
        return simplejpeg.encode_jpeg(pixels, self._quality, colorsubsampling="444")


def _write_index(writer: _ShardWriter, source: PackableTiles) -> int:
    """Writes LitData's index and the table of the tiles; returns the number of substitutes."""
    records = [
        json.loads(writer.record_path(number).read_text()) for number in range(len(writer.shards))
    ]
    substitute = np.zeros(len(source), bool)
    for tiles, record in zip(writer.shards, records, strict=True):
        substitute[tiles[record["substitutes"]]] = True
    order = np.concatenate(writer.shards)
    x, y = source.xy[order].T
    table = pa.table(
        {
            "origin": pa.array(source.origins.of_tile[order], pa.int32()),
            "x": pa.array(x, pa.int32()),
            "y": pa.array(y, pa.int32()),
            "substitute": pa.array(substitute[order]),
        }
    ).replace_schema_metadata({"shards": json.dumps([record["sha256"] for record in records])})
    with new_file(writer.folder / TILES) as partial:
        pq.write_table(table, partial)
    index = {
        "chunks": [record["chunk"] for record in records],
        "config": records[0]["config"] | {"chunk_size": SHARD_TILES},
    }
    write_text(writer.folder / "index.json", json.dumps(index))
    for number in range(len(records)):
        writer.record_path(number).unlink()
    return int(substitute.sum())


def _mixed_shards(group_sizes: np.ndarray, block_tiles: int, seed: int) -> list[np.ndarray]:
    """Divides tiles into shards, each made of blocks of neighbours from many slides."""
    blocks = shuffled_blocks(group_sizes, block_tiles, np.random.default_rng(seed))
    order = np.concatenate(blocks) if blocks else np.empty(0, np.int64)
    return np.split(order, range(SHARD_TILES, len(order), SHARD_TILES))


@contextlib.contextmanager
def _progress(done: torch.Tensor, kept: int, total: int, description: str) -> Iterator[None]:
    """Shows a progress bar of the counts that the processes keep in shared memory."""
    finished = threading.Event()
    with tqdm(
        desc=description, initial=kept, total=total, unit="tile", dynamic_ncols=True
    ) as progress:

        def watch() -> None:
            while not finished.wait(0.5):
                progress.update(kept + int(done.sum()) - progress.n)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
            progress.update(kept + int(done.sum()) - progress.n)
