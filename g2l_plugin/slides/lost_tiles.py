"""Counting of tiles that cannot be read, over all workers, with a limit."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed

from g2l_plugin.errors import UserError


class LostTiles:
    """One flag per tile for "cannot be read", in memory that all workers of a device share.

    Flags and not counts: a tile counts once, even if two workers lose it at the same time or it is
    lost in every epoch.
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

    def __contains__(self, number: int) -> bool:
        return bool(self._flags.numpy()[number])  # ten times as fast as torch's indexing

    def flags(self, numbers: np.ndarray) -> np.ndarray:
        """Flags of these tiles, bool (len(numbers),)."""
        return self._flags.numpy()[numbers]

    def any(self, start: int, stop: int) -> bool:
        """Says whether any tile from start to before stop is lost."""
        return bool(self._flags[start:stop].any())

    def add(self, start: int, stop: int, message: str) -> None:
        """Flags the tiles from start to before stop.

        Args:
            start: The first.
            stop: The one after the last.
            message: Why they are lost.

        Raises:
            UserError: More tiles are lost than `max_lost` allows.
        """
        self._flags[start:stop] = True
        lost, total = int(self._flags.sum()), len(self._flags)
        if lost * self._n_devices > self._max_lost * total:
            raise UserError(
                f"{lost:,} of {total:,} tiles cannot be read, more than the {self._max_lost:.1%} "
                "that `max_lost` (MAX_LOST, --max-lost) allows. Repair the files, or raise the "
                f"limit. The last error: {message}"
            )

    def numbers(self) -> np.ndarray:
        """Numbers of the lost tiles, ascending, int64."""
        return self._flags.nonzero().flatten().numpy()
