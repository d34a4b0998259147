"""A batch of tiles, as the loader yields it and the training step receives it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class TileBatch(NamedTuple):
    """A batch of tiles and, on the host, their numbers in the dataset.

    Attributes:
        tiles: uint8 (B, 3, H, W).
        numbers: Number of each tile in the dataset, int64 (B,); None if tiles have no numbers.
        substitutes: Whether a substitute was read in place of each tile, bool (B,); None if
            unknown.
        epoch: Number of the epoch, from 0.
    """

    tiles: torch.Tensor
    numbers: np.ndarray | None = None
    substitutes: np.ndarray | None = None
    epoch: int = 0

    @classmethod
    def of(cls, batch: Any) -> TileBatch:
        """Converts what a data loader yields.

        Args:
            batch: A `TileBatch`, tiles (B, 3, H, W), or eva's (data, targets, metadata).
        """
        if isinstance(batch, cls):
            return batch
        return cls(batch if isinstance(batch, torch.Tensor) else batch[0])
