"""Tiles in the order of their numbers, read ahead by workers, without the unreadable ones."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Sequence

import numpy as np
import openslide
import torch
from loguru import logger
from torch.utils.data import DataLoader

from g2l_plugin.slides.block_reader import BlockReader
from g2l_plugin.slides.loader import as_it_is, explain_dead_workers, start_worker, start_workers
from g2l_plugin.slides.lost_tiles import LostTiles
from g2l_plugin.slides.slide import SlideError
from g2l_plugin.slides.slide_source import SlideTiles

_PREFETCHED = 2
"""Blocks that each worker reads ahead."""

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
        (n, 3, height, width), pinned if there is a GPU.

    Raises:
        UserError: A worker was killed.
    """
    readable = _ReadableTiles(tiles, size)
    longest = max((len(block) for block in blocks), default=0)
    # One block more than are on their way: that which is being copied.
    n_rows = (workers * _PREFETCHED + 2) * longest
    reader = BlockReader(readable, n_rows, multiprocessing.get_start_method())
    loader = DataLoader(
        reader,
        batch_sampler=reader,  # type: ignore[arg-type]
        collate_fn=as_it_is,
        num_workers=workers,
        prefetch_factor=_PREFETCHED if workers else None,
        worker_init_fn=functools.partial(start_worker, None),
    )
    reader.start(blocks)
    read = start_workers(loader)
    for numbers in blocks:
        with explain_dead_workers(_ADVICE):
            rows = np.array(next(read))
        there = ~readable.lost.flags(numbers)
        pinned = torch.cuda.is_available()
        batch = reader.tiles.new_empty((int(there.sum()), *readable.tile_shape), pin_memory=pinned)
        np.take(reader.tiles.numpy(), rows[there], axis=0, out=batch.numpy(), mode="clip")
        reader.release(rows)
        yield numbers[there], batch


class _ReadableTiles:
    """Tiles as `BlockReader` reads them; an unreadable one is black, and flagged as lost."""

    def __init__(self, tiles: SlideTiles, size: tuple[int, int]) -> None:
        self.tile_shape = (3, size[1], size[0])
        self.lost = LostTiles(len(tiles), max_lost=1.0)
        self._tiles = tiles

    def __getitem__(self, number: int) -> torch.Tensor:
        if number not in self.lost:
            slide = int(self._tiles.slide_of_tile[number])
            try:
                return self._tiles.read_itself(number)
            except SlideError as error:
                self._lose(slide, *self._tiles.span(slide), str(error))
            except openslide.OpenSlideError as error:
                x, y = self._tiles.xy[number].tolist()
                message = f"Slide {self._tiles.paths[slide]} is damaged at ({x}, {y}): {error}."
                self._lose(slide, number, number + 1, message)
        return torch.zeros(self.tile_shape, dtype=torch.uint8)

    def _lose(self, slide: int, start: int, stop: int, message: str) -> None:
        if not self.lost.any(*self._tiles.span(slide)):  # warn once per slide, not once per tile
            logger.warning(f"{message} Its unreadable tiles are left out and counted.")
        self.lost.add(start, stop, message)
