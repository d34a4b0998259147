"""The order of reading tiles, and the order of training on them.

Neighbouring tiles share compressed pixels, so a block of neighbours is faster to read than the same
number of random tiles; but a batch should mix many slides. So the blocks of all slides are shuffled
and read one after the other into a buffer, from which batches are drawn at random. This module
handles tile numbers only, no pixels.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import numpy as np


def shuffled_blocks(
    group_sizes: np.ndarray,
    block_tiles: int,
    rng: np.random.Generator,
    rank: int = 0,
    n_devices: int = 1,
) -> list[np.ndarray]:
    """Cuts groups of tiles into blocks, and shuffles the blocks.

    A group that is not larger than a block is one. Larger ones are cut at random places.

    Args:
        group_sizes: Tiles of each group, (groups,); neighbours have consecutive numbers.
        block_tiles: Largest number of tiles in a block.
        rng: Random generator, in the same state on all devices.
        rank: Rank of this device.
        n_devices: Devices that share the blocks, each the same number of tiles. The remainder,
            fewer tiles than devices, is left out.

    Returns:
        Tile numbers of each block of this device, int64.
    """
    ends = np.cumsum(group_sizes)
    begins = ends - group_sizes
    is_one = (group_sizes > 0) & (group_sizes <= block_tiles)
    cuts = [np.stack([begins[is_one], ends[is_one]], axis=1)]
    for group in np.flatnonzero(group_sizes > block_tiles).tolist():
        begin, end = begins[group], ends[group]
        inner = np.arange(begin + rng.integers(1, block_tiles + 1), end, block_tiles)
        edges = np.concatenate([[begin], inner, [end]])
        cuts.append(np.stack([edges[:-1], edges[1:]], axis=1))
    blocks = rng.permutation(np.concatenate(cuts))
    lengths = blocks[:, 1] - blocks[:, 0]
    before = np.cumsum(lengths) - lengths
    share = int(lengths.sum()) // n_devices
    starts = blocks[:, 0] + np.clip(share * rank - before, 0, lengths)
    stops = blocks[:, 0] + np.clip(share * (rank + 1) - before, 0, lengths)
    return [np.arange(a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True) if a < b]


class MixingBuffer:
    """Decides which tile goes into which slot of a buffer, and which slots make each batch.

    Attributes:
        content: Number of the tile in each slot, int64 (capacity,); undefined for empty slots.
    """

    def __init__(
        self, blocks: Sequence[np.ndarray], batch_size: int, capacity: int, rng: np.random.Generator
    ) -> None:
        """Initializes an empty buffer.

        Args:
            blocks: Tile numbers, in the order of reading.
            batch_size: Tiles per batch.
            capacity: Slots; raised to a batch and the longest block if it is smaller.
            rng: Random generator that draws the batches.
        """
        longest = max((len(block) for block in blocks), default=0)
        self._blocks = blocks
        self._next = 0
        self._batch_size = batch_size
        self._rng = rng
        capacity = max(capacity, batch_size + longest)
        self.content = np.zeros(capacity, np.int64)
        # The first `_n` slots of the order are full, the others are empty.
        self._order = np.arange(capacity)
        self._n = 0

    def fill(self) -> Iterator[np.ndarray]:
        """Adds blocks while there is room; yields the slots of each."""
        while self._next < len(self._blocks):
            block = self._blocks[self._next]
            if self._n + len(block) > len(self._order):
                break
            slots = self._order[self._n : self._n + len(block)].copy()
            self.content[slots] = block
            self._n += len(block)
            self._next += 1
            yield slots

    def draw(self) -> np.ndarray:
        """Draws a batch, smaller at the end of the epoch: empties its slots and returns them."""
        size = min(self._batch_size, self._n)
        # A partial Fisher-Yates shuffle moves the drawn slots to the end of the full ones.
        for number, place in enumerate(self._rng.integers(0, self._n - np.arange(size)).tolist()):
            last = self._n - 1 - number
            self._order[[place, last]] = self._order[[last, place]]
        self._n -= size
        return self._order[self._n : self._n + size].copy()

    def skip(self, n_batches: int) -> None:
        """Fills the buffer and draws this number of batches, without returning them."""
        for _ in range(n_batches):
            collections.deque(self.fill(), maxlen=0)
            self.draw()

    @property
    def full_slots(self) -> np.ndarray:
        """Slots that hold a tile."""
        return self._order[: self._n].copy()

    @property
    def waiting(self) -> Sequence[np.ndarray]:
        """Blocks that are not in the buffer yet."""
        return self._blocks[self._next :]
