"""Writing the tiles of a source into shards in LitData's format.

The format (https://github.com/Lightning-AI/litData) is chunks of thousands of JPEG files and an
`index.json`. Each shard mixes tiles of many slides, so that a loader can read whole shards and
still mix slides. A shard is written in one piece, so a stopped command goes on with the next.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.files import hash_file, new_file, write_text
from g2l_plugin.parallel.failures import WorkerCrash
from g2l_plugin.parallel.jobs import run_jobs
from g2l_plugin.slides.mixing import shuffled_blocks
from g2l_plugin.slides.packed_source import TILES
from g2l_plugin.slides.tile_source import TileSource

SHARD_TILES = 2048
"""Tiles per shard, about 80 MB."""

_PARTIAL = ".partial-"
"""Start of the names of folders for what a process writes and does not leave."""


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
    source: PackableTiles,
    folder: Path,
    seed: int,
    quality: int,
    workers: int | None = None,
    scheduler: str | None = None,
    needs: Sequence[Path] = (),
) -> int:
    """Writes the tiles of a source into shards, or those that an earlier call has not written.

    Args:
        source: The tiles.
        folder: Folder for the shards. What is there is of the same source, seed and quality.
        seed: Seed of their order.
        quality: JPEG quality, 1 to 100, without chroma subsampling.
        workers: Processes; None starts one per usable CPU core.
        scheduler: Address of a Dask scheduler whose workers write the shards in their place.
            Paths in the source, and the folder, are absolute then.
        needs: Files and folders that the source reads, which such workers must see.

    Returns:
        The number of tiles that could not be read and have substitutes.

    Raises:
        UserError: Too many tiles cannot be read, a process was killed, or the cluster cannot be
            used.
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
    kept = len(source) - sum(len(shards[number]) for number in missing)
    progress = tqdm(
        desc=f"Packing {folder.name} tiles",
        initial=kept,
        total=len(source),
        unit="tile",
        dynamic_ncols=True,
    )
    if scheduler is None:
        outcomes = run_jobs(writer.write, missing, workers)
    else:
        outcomes = _write_on_cluster(writer, missing, scheduler, needs)
    with progress, contextlib.closing(outcomes):
        for number, crash in outcomes:
            if isinstance(crash, WorkerCrash):
                fewer = " with fewer (--workers)" if scheduler is None else ""
                raise UserError(
                    f"A process that packed was killed ({crash}): memory may have run out. Run the "
                    f"same command again{fewer}: it goes on."
                )
            progress.update(len(shards[number]))
    return _write_index(writer, source)


def _write_on_cluster(
    writer: _ShardWriter, numbers: Sequence[int], scheduler: str, needs: Sequence[Path]
) -> Generator[tuple[int, Any], None, None]:
    """Writes shards on the workers of a cluster; yields what `run_jobs` does."""
    # On the disk: ten million tiles are 200 MB, too much to send with each of 5,000 shards.
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=writer.folder) as partial:
        file = Path(partial) / "writer.pickle"
        file.write_bytes(pickle.dumps(writer))
        jobs = [(file, number) for number in numbers]
        needs = [file, *needs]
        for (_, number), outcome in run_jobs(_write_shard, jobs, scheduler=scheduler, needs=needs):
            yield number, outcome


def _write_shard(job: tuple[Path, int]) -> None:
    file, number = job
    writer: _ShardWriter = pickle.loads(file.read_bytes())
    writer.write(number)


def has_shards(pack: Path) -> bool:
    """Says whether any shard of a pack is written, of either split."""
    return any(pack.glob("*/*.bin"))


class _ShardWriter:
    """Writes single shards of a source, in any process and order."""

    def __init__(
        self, source: PackableTiles, folder: Path, shards: list[np.ndarray], quality: int
    ) -> None:
        # Sorted, so that neighbours are read together: the order within a shard does not matter.
        self.shards = [np.sort(shard) for shard in shards]
        self.folder = folder
        self._source = source
        self._quality = quality

    def record_path(self, number: int) -> Path:
        """The file that says that a shard is written."""
        return self.folder / f".shard-{number}.json"

    def write(self, number: int) -> None:
        """Writes a shard, and then the record that it is there."""
        from litdata.streaming.writer import BinaryWriter

        tiles = self.shards[number]
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=self.folder) as partial:
            writer = BinaryWriter(partial, chunk_size=SHARD_TILES, chunk_index=number)
            for place, tile in enumerate(tiles.tolist()):
                writer.add_item(place, self._encode(tile))
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
