"""Packing: the tiles of an index are written once into shards, which are fast to stream.

The shards are in LitData's format (https://github.com/Lightning-AI/litData): chunks of thousands of
JPEG files and an `index.json`, on a disk or in an object store. Each shard mixes tiles of many
slides, so that a loader can read whole shards and still mix slides.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from PIL import Image
from tqdm import tqdm

from g2l_plugin.errors import UserError, message_in
from g2l_plugin.files import new_folder, write_text
from g2l_plugin.parallel import usable_cpus
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.index import read_settings
from g2l_plugin.slides.mixing import shuffled_blocks
from g2l_plugin.slides.packed_source import PackedTiles, import_litdata

SHARD_TILES = 2048
"""Tiles per shard, about 80 MB."""

_BLOCK_TILES = 16
"""Neighbours that go into the same shard: few, so that a shard mixes many slides."""


def pack_tiles(
    index_dir: str | Path,
    output: str | Path,
    n_val_tiles: int = 2048,
    n_val_patients: int = 20,
    quality: int = 95,
    max_lost: float = 0.01,
    workers: int | None = None,
) -> None:
    """Packs the tiles of an index into shards, with training and validation separate.

    Validation tiles are chosen with the seed of the index.

    Args:
        index_dir: Folder of the index.
        output: Folder for the shards, which must not exist.
        n_val_tiles: Tiles for validation, as in `TileDataset`.
        n_val_patients: Patients held out for them, as in `TileDataset`.
        quality: JPEG quality, 1 to 100, without chroma subsampling.
        max_lost: Maximum share of tiles that may be unreadable, 0 to 1.
        workers: Number of processes; None uses one per CPU core.

    Raises:
        UserError: There is no index, the output exists, too many tiles are lost, or the disk is
            full.
    """
    import_litdata()
    output = Path(output).expanduser()
    if output.exists():
        raise UserError(f"{output} exists. Remove it, or pack into another folder.")
    settings = read_settings(index_dir)
    seed = settings["cohort"]["seed"]
    written: dict[str, Any] = {
        "index": settings,
        "quality": quality,
        "seed": seed,
        "n_val_tiles": n_val_tiles,
        "n_val_patients": n_val_patients,
    }
    with _explain_full_disk(output), new_folder(output) as partial:
        for split in ("train", "val"):
            dataset = TileDataset(
                settings["cohort"]["root"],
                **settings["grid"],
                keep_duplicates=settings["keep_duplicates"],
                split=split,
                n_val_tiles=n_val_tiles,
                n_val_patients=n_val_patients,
                seed=seed,
                index_dir=str(index_dir),
                max_lost=max_lost,
            )
            dataset.setup()
            _pack_split(dataset, partial, split, seed, quality, workers)
            written[f"{split}_tiles"] = len(dataset)
        write_text(partial / "pack.json", json.dumps(written, indent=1) + "\n")


@contextlib.contextmanager
def _explain_full_disk(output: Path) -> Iterator[None]:
    """Turns the errors of a full disk, here or in one of LitData's processes, into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reasons = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
        reason = next((reason for reason in reasons if reason in str(error)), None)
        if reason is None or isinstance(error, UserError):
            raise
        raise UserError(
            f"Packing into {output} failed: {reason}. Free space there and in the folder for "
            f"temporary files, {tempfile.gettempdir()}, and pack again."
        ) from error


def _pack_split(
    dataset: TileDataset, folder: Path, split: str, seed: int, quality: int, workers: int | None
) -> None:
    litdata = import_litdata()
    shards = _mixed_shards(dataset.tiles.group_sizes, seed)
    encode = _EncodeShard(dataset, quality, len(shards))
    try:
        with _progress(encode.done, len(dataset), f"Packing {split} tiles"):
            litdata.optimize(
                encode,
                list(enumerate(shards)),
                str(folder / split),
                chunk_size=SHARD_TILES,
                num_workers=min(workers or usable_cpus(), len(shards)),
                start_method="fork" if hasattr(os, "fork") else "spawn",
                verbose=False,
            )
    except RuntimeError as error:  # LitData's report of an error in one of its processes
        if message := message_in(str(error)):
            raise UserError(message) from error
        raise
    n_written = len(PackedTiles(str(folder), split))
    if n_written != len(dataset):
        raise UserError(
            f"Only {n_written:,} of {len(dataset):,} {split} tiles were packed. Check that the "
            "disk has space, and pack again."
        )
    if lost := len(dataset.lost_tiles()):
        logger.warning(f"{lost} {split} tiles cannot be read. Substitute tiles are packed instead.")


def _mixed_shards(group_sizes: np.ndarray, seed: int) -> list[np.ndarray]:
    """Divides tiles into shards, each made of blocks of neighbours from many slides."""
    blocks = shuffled_blocks(group_sizes, _BLOCK_TILES, np.random.default_rng(seed))
    order = np.concatenate(blocks) if blocks else np.empty(0, np.int64)
    return np.split(order, range(SHARD_TILES, len(order), SHARD_TILES))


@contextlib.contextmanager
def _progress(done: torch.Tensor, total: int, description: str) -> Iterator[None]:
    """Shows a progress bar of the counts that the processes keep in shared memory."""
    finished = threading.Event()
    with tqdm(desc=description, total=total, unit="tile", dynamic_ncols=True) as progress:

        def watch() -> None:
            while not finished.wait(0.5):
                progress.update(int(done.sum()) - progress.n)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
            progress.update(int(done.sum()) - progress.n)


class _EncodeShard:
    """Encodes the tiles of a shard in one of LitData's processes.

    Attributes:
        done: Tiles encoded of each shard, int64 (shards,), in shared memory.
    """

    def __init__(self, dataset: TileDataset, quality: int, n_shards: int) -> None:
        self.done = torch.zeros(n_shards, dtype=torch.int64).share_memory_()
        self._dataset = dataset
        self._quality = quality

    def __call__(self, shard: tuple[int, np.ndarray]) -> Iterator[bytes]:
        number, tiles = shard
        torch.set_num_threads(1)  # there is one process per core
        # Sorted, so that neighbours are read together: the order within a shard does not matter.
        for index in np.sort(tiles).tolist():
            tile = self._dataset[index].numpy().transpose(1, 2, 0)
            buffer = io.BytesIO()
            # Without subsampling, because stains differ in colour.
            Image.fromarray(tile).save(buffer, "JPEG", quality=self._quality, subsampling=0)
            self.done[number] += 1
            yield buffer.getvalue()
