"""In which order tiles are read, and in which they are trained on: blocks into a buffer.

Neighbouring tiles share compressed pixels, so that a block of neighbours is read in less time than
as many tiles of chance; but a batch shall mix many slides. So the blocks of all slides are shuffled
and read one after the other into a buffer, from which batches are drawn. Only numbers here, no
pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def shuffled_blocks(
    group_sizes: np.ndarray,
    block_tiles: int,
    rng: np.random.Generator,
    rank: int = 0,
    n_devices: int = 1,
) -> list[np.ndarray]:
    """Cuts the tiles of every slide into blocks, at other places each time, and shuffles these.

    Args:
        group_sizes: Tiles of each slide, (slides,); a slide's tiles, and neighbours, follow each
            other.
        block_tiles: Most tiles of a block.
        rng: Source of chance; the same for all devices.
        rank: Of this device.
        n_devices: Among which the blocks are divided, into parts of the same number of tiles: the
            remainder, fewer tiles than there are devices, is left out.

    Returns:
        Numbers of the tiles of each block of this device, int64.
    """
    cuts = [np.empty((0, 2), np.int64)]
    for begin, size in zip(np.cumsum(group_sizes) - group_sizes, group_sizes, strict=True):
        inner = np.arange(rng.integers(1, block_tiles + 1), size, block_tiles)
        edges = begin + np.concatenate([[0], inner, [size]])
        cuts.append(np.stack([edges[:-1], edges[1:]], axis=1)[: max(size, 0)])
    blocks = rng.permutation(np.concatenate(cuts))
    lengths = blocks[:, 1] - blocks[:, 0]
    before = np.cumsum(lengths) - lengths
    share = int(lengths.sum()) // n_devices
    starts = blocks[:, 0] + np.clip(share * rank - before, 0, lengths)
    stops = blocks[:, 0] + np.clip(share * (rank + 1) - before, 0, lengths)
    return [np.arange(a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True) if a < b]


class MixingBuffer:
    """Says which tile goes into which slot of a buffer, and which slots make each batch.

    Attributes:
        content: Number of the tile in each slot, int64 (capacity,), undefined where none is.
    """

    def __init__(
        self, blocks: Sequence[np.ndarray], batch_size: int, capacity: int, rng: np.random.Generator
    ) -> None:
        """Initializes the buffer, empty.

        Args:
            blocks: Tiles, in the order in which they are read.
            batch_size: Tiles of a batch.
            capacity: Slots; it holds at least a batch and a block.
            rng: Source of chance of the batches.
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
        """Takes in the blocks for which there is room; yields the slots of each."""
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
        """Empties the slots of a batch, which is smaller at the end; returns them."""
        size = min(self._batch_size, self._n)
        # To the end of the full slots, one by one: a partial Fisher-Yates shuffle.
        for number, place in enumerate(self._rng.integers(0, self._n - np.arange(size)).tolist()):
            last = self._n - 1 - number
            self._order[[place, last]] = self._order[[last, place]]
        self._n -= size
        return self._order[self._n : self._n + size].copy()

    @property
    def full_slots(self) -> np.ndarray:
        """The slots that hold a tile."""
        return self._order[: self._n].copy()

    @property
    def waiting(self) -> Sequence[np.ndarray]:
        """The blocks that are not taken in yet."""
        return self._blocks[self._next :]
