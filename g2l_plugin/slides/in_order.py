"""Tiles in the order of their numbers, read ahead by workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openslide
import torch
from loguru import logger
from torch.utils.data import DataLoader, Subset

from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.lost_tiles import LostTiles
from g2l_plugin.slides.slide import SlideError
from g2l_plugin.slides.slide_source import SlideTiles
from g2l_plugin.slides.workers import explain_dead_workers, rank_and_devices, read_blocks

_ADVICE = "use fewer --workers. Then run the same command again: it continues from here."


def read_in_order(
    tiles: SlideTiles, size: tuple[int, int], blocks: Sequence[np.ndarray], workers: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Reads blocks of tiles; a tile that cannot be read is left out, and has no substitute.

    Args:
        tiles: The tiles of some slides.
        size: Width and height of a tile.
        blocks: Numbers of the tiles of each block, neighbours together: a worker reads a block.
        workers: Processes that read; 0 reads in this one.

    Yields:
        Of each block, the numbers of the tiles that could be read, and these tiles, uint8
        (n, 3, height, width), pinned if a GPU is used.

    Raises:
        UserError: A worker was killed.
    """
    readable = _ReadableTiles(tiles, size)
    read = read_blocks(readable, blocks, workers, _ADVICE)
    for numbers, block in zip(blocks, read, strict=True):
        there = ~readable.lost.flags(numbers)
        yield numbers[there], block if there.all() else block[torch.from_numpy(there)]


def some_batches(
    loader: Any, n_tiles: int, rank: int = 0, n_devices: int = 1
) -> Iterator[TileBatch]:
    """Reads some tiles of a loader's dataset, always the same, without moving the loader.

    Args:
        loader: A `TileLoader` or a loader of PyTorch.
        n_tiles: Number of tiles on all devices; fewer if the dataset has fewer.
        rank: Rank of this device.
        n_devices: Number of devices; each reads as many tiles.

    Yields:
        Batches of the loader's size, the last one may be smaller.
    """
    dataset = loader.dataset
    chosen = np.random.default_rng(0).permutation(len(dataset))[:n_tiles]
    # Ascending, so that neighbours are read together.
    numbers = np.sort(chosen[: len(chosen) // n_devices * n_devices])[rank::n_devices]
    batches = _in_batches(numbers, loader.batch_size)
    if isinstance(dataset, TileDataset):
        for part, tiles in zip(
            batches, read_blocks(dataset, batches, loader.num_workers), strict=True
        ):
            yield TileBatch(tiles, part, dataset.tiles.substitutes(part))
        return
    reader = DataLoader(
        Subset(dataset, numbers.tolist()), loader.batch_size, num_workers=loader.num_workers
    )
    with explain_dead_workers():
        for part, tiles in zip(batches, reader, strict=True):
            yield TileBatch(TileBatch.of(tiles).tiles, part)


class OrderedLoader:
    """Batches of all tiles of a dataset, in the order of their numbers.

    Several devices have as many tiles each: the first ones are repeated to fill up.
    """

    def __init__(self, dataset: TileDataset, batch_size: int = 32, num_workers: int = 0) -> None:
        """Initializes the loader.

        Args:
            dataset: The tiles, after `setup`.
            batch_size: Tiles per batch on each device.
            num_workers: Processes that read; 0 reads in this one.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers

    def __len__(self) -> int:
        """Batches on each device."""
        return -(-len(self._numbers()) // self.batch_size)

    def __iter__(self) -> Iterator[TileBatch]:
        """Yields the batches of this device.

        Raises:
            UserError: A worker was killed, or too many tiles are lost.
        """
        batches = _in_batches(self._numbers(), self.batch_size)
        read = read_blocks(self.dataset, batches, self.num_workers)
        for numbers, tiles in zip(batches, read, strict=True):
            yield TileBatch(tiles, numbers)

    def _numbers(self) -> np.ndarray:
        """Numbers of this device's tiles, neighbours together."""
        rank, n_devices = rank_and_devices()
        share = -(-len(self.dataset) // n_devices)
        return np.arange(rank * share, (rank + 1) * share) % len(self.dataset)


def _in_batches(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


class _ReadableTiles:
    """Tiles as a `BlockReader` reads them; an unreadable one is black, and flagged as lost."""

    def __init__(self, tiles: SlideTiles, size: tuple[int, int]) -> None:
        self.tile_shape = (3, size[1], size[0])
        self.lost = LostTiles(len(tiles), max_lost=1.0)
        self._tiles = tiles

    def read_into(self, number: int, out: np.ndarray) -> None:
        if number not in self.lost:
            slide = int(self._tiles.slide_of_tile[number])
            try:
                return self._tiles.read_itself(number, out)
            except SlideError as error:
                self._lose(slide, *self._tiles.span(slide), str(error))
            except openslide.OpenSlideError as error:
                x, y = self._tiles.xy[number].tolist()
                message = f"Slide {self._tiles.paths[slide]} is damaged at ({x}, {y}): {error}."
                self._lose(slide, number, number + 1, message)
        out[...] = 0

    def _lose(self, slide: int, start: int, stop: int, message: str) -> None:
        if not self.lost.any(*self._tiles.span(slide)):  # warn once per slide, not once per tile
            logger.warning(f"{message} Its unreadable tiles are left out and counted.")
        self.lost.add(start, stop, message)
