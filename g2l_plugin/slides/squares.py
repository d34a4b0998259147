"""Squares of neighbouring tiles that are read together, because they share compressed pixels."""

from __future__ import annotations

import math

import numpy as np

from g2l_plugin.slides.slide import ReadPlan

SQUARE = 8
"""Largest side of a square, in tiles."""


def number_squares(xy: np.ndarray, plan: ReadPlan) -> np.ndarray:
    """Numbers the squares that tiles of a grid are in.

    Args:
        xy: Upper left corners of the tiles in pixels of level 0, (tiles, 2).
        plan: How they are read.

    Returns:
        Column and row of each tile's square, int64 (tiles, 2).
    """
    numbers = []
    for axis in (0, 1):
        file_tile = plan.file_tile[axis] if plan.file_tile else None
        ends = np.cumsum(_sides(plan.read_size[axis], file_tile))
        turn, place = np.divmod(xy[:, axis].astype(np.int64) // plan.level0_size[axis], ends[-1])
        numbers.append(turn * len(ends) + np.searchsorted(ends, place, side="right"))
    return np.stack(numbers, axis=1)


def _sides(tile: int, file_tile: int | None) -> list[int]:
    """Sides of consecutive squares, so that few of the file's tiles lie in two squares.

    Where tiles are 256 px and those of the file 240, every 15th edge of a tile is one of the file's
    too. Squares of 8 and 7 tiles in turn meet it, and decode a tenth less than squares of 8.

    Args:
        tile: Side of the tiles, in pixels of the level.
        file_tile: Side of the file's tiles; None if unknown.
    """
    meeting = file_tile // math.gcd(tile, file_tile) if file_tile else 1  # in tiles
    if meeting <= SQUARE:
        return [SQUARE // meeting * meeting]
    if meeting <= 2 * SQUARE:
        return [-(-meeting // 2), meeting // 2]
    return [SQUARE]
