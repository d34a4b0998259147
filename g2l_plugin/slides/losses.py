"""Which tiles were lost to damage, over all workers, and when that is too many."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed

from g2l_plugin.errors import UserError


class LostTiles:
    """A flag for every tile that cannot be read, in memory that all workers share.

    Flags and not counts: two workers that lose a tile at once, or a tile that is lost in every
    epoch, count once.
    """

    def __init__(self, n_tiles: int, max_lost: float) -> None:
        """Initializes the flags.

        Args:
            n_tiles: Tiles of the dataset.
            max_lost: Largest share of them that may be lost, 0 to 1.
        """
        self._flags = torch.zeros(n_tiles, dtype=torch.bool).share_memory_()
        self._max_lost = max_lost
        # Each device reads its part of the tiles, and sees the losses of that part.
        initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._n_devices = torch.distributed.get_world_size() if initialized else 1

    def __contains__(self, index: int) -> bool:
        return bool(self._flags.numpy()[index])  # ten times as fast as torch's own

    def at(self, tiles: np.ndarray) -> np.ndarray:
        """Which of some tiles are lost, bool (tiles,)."""
        return self._flags.numpy()[tiles]

    def any(self, start: int, stop: int) -> bool:
        """Tells whether any of the tiles start to stop is lost."""
        return bool(self._flags[start:stop].any())

    def add(self, start: int, stop: int, message: str) -> None:
        """Adds the tiles start to stop.

        Args:
            start: The first.
            stop: The one after the last.
            message: Why they are lost.

        Raises:
            UserError: More are lost than may be.
        """
        self._flags[start:stop] = True
        lost, total = int(self._flags.sum()), len(self._flags)
        if lost * self._n_devices > self._max_lost * total:
            raise UserError(
                f"{lost:,} of {total:,} tiles cannot be read, more than the {self._max_lost:.1%} "
                f"that `max_lost` (MAX_LOST, --max-lost) allows. The last: {message}"
            )

    def indices(self) -> np.ndarray:
        """The lost tiles, ascending."""
        return self._flags.nonzero().flatten().numpy()
