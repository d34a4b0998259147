"""Blocks of tiles, read by workers straight into the memory that batches are drawn from."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from g2l_plugin.errors import UserError, in_one_line

_Job = tuple[list[int], list[int]]
"""Rows, and the numbers of the tiles that belong there."""


class BlockReader(Dataset):
    """Reads blocks of tiles into rows of memory that all processes share.

    A worker sends no pixels: it reads each tile into its row, and says that it has. This is the
    dataset and the batch sampler of PyTorch's loader at once, which asks for the next block when it
    hands a worker one.

    Attributes:
        tiles: The rows, uint8 (rows, 3, height, width).
    """

    def __init__(self, dataset: Any, n_rows: int, start_method: str) -> None:
        """Allocates the rows.

        Args:
            dataset: Has `tile_shape`, and `read_into` that reads a tile into a row.
            n_rows: Rows: as many as the buffer has slots, and one for each tile that is on its way.
            start_method: How Python starts the workers: fork, spawn or forkserver.

        Raises:
            UserError: /dev/shm is full.
        """
        self._dataset = dataset
        self.tiles = _allocate((n_rows, *dataset.tile_shape), start_method)
        self._blocks: Sequence[np.ndarray] = []
        self._free: list[int] = []

    def start(self, blocks: Sequence[np.ndarray]) -> None:
        """Begins an epoch, with all rows free.

        Args:
            blocks: Numbers of the tiles of each block, in the order of reading.
        """
        self._blocks = blocks
        self._free = list(range(len(self.tiles)))

    def release(self, rows: np.ndarray) -> None:
        """Gives back rows whose tiles have been used."""
        self._free += rows.tolist()

    def __iter__(self) -> Iterator[_Job]:
        """Yields the blocks that are read next, with the rows for them."""
        for block in self._blocks:
            rows = [self._free.pop() for _ in block]
            yield rows, block.tolist()

    def __getitems__(self, job: _Job) -> list[int]:
        """Reads a block in a worker; returns its rows.

        Raises:
            UserError: A tile cannot be read.
        """
        rows, numbers = job
        tiles = self.tiles.numpy()
        for row, number in zip(rows, numbers, strict=True):
            self._dataset.read_into(number, tiles[row])
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_blocks": [], "_free": []}


def _allocate(shape: tuple[int, ...], start_method: str) -> torch.Tensor:
    """Memory that forked workers share, or, where they are not forked, that can be sent to them."""
    if start_method == "fork":
        # Not in /dev/shm, which has 64 MB in a container.
        memory = mmap.mmap(-1, math.prod(shape))
        return torch.frombuffer(memory, dtype=torch.uint8).reshape(shape)
    try:
        return torch.empty(shape, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise no_shared_memory(error) from error


def no_shared_memory(error: Exception) -> UserError:
    """What to do about a full /dev/shm, of which PyTorch says only that some space is missing."""
    return UserError(
        f"The memory that processes share, /dev/shm, is full: {in_one_line(error)}. Start the "
        "container with a larger --shm-size, or lower N_DATA_WORKERS or `buffer_tiles`."
    )
