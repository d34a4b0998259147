"""How many tiles a GPU distils in a second, from counted operations and measured shares."""

from __future__ import annotations

import numpy as np

PRODUCT_SHARE = 658 / 989
"""Share of the nominal speed in a large matrix product in bfloat16, measured on an H200."""

STEP_SHARES = {32: 0.48, 64: 0.50, 128: 0.51}
"""Share of that product in an eager step, by its batch, measured there too: docs/training.md."""

COMPILED_SHARE = 0.61
"""Share of that product in a step with COMPILE=true and batches of 32, measured there too."""

MICRO_SHARE = 188 * 1267.7e9 / 658e12
"""Share of that product in an eager step of micro-batches: 188 tiles/s, measured there too. A tile
then costs 1,267.7 GFLOP, the student's second forward pass among them."""


def step_flops(teachers: int, student: int, in_parts: bool = False) -> int:
    """Operations of a tile in a step.

    A backward pass costs two forward passes; micro-batches compute the student's once more.

    Args:
        teachers: Operations of the teachers' forward pass; 0 where their embeddings are cached.
        student: Operations of the student's.
        in_parts: Whether the step is one of micro-batches.
    """
    return teachers + (4 if in_parts else 3) * student


def step_share(batch: int, in_parts: bool = False, compiled: bool = False) -> float:
    """The share of a large matrix product's speed that a step reaches.

    Micro-batches were measured eager alone: compiled, they are no slower.
    """
    if in_parts:
        return MICRO_SHARE
    if compiled:
        return COMPILED_SHARE
    return float(np.interp(batch, list(STEP_SHARES), list(STEP_SHARES.values())))


def tiles_per_second(tflops: float, flops: int, share: float = 1.0) -> float:
    """Tiles/s of a GPU.

    Args:
        tflops: Its nominal speed in TFLOP/s.
        flops: Operations of a tile.
        share: Share of a large matrix product's speed; 1 gives the limit.
    """
    return tflops * 1e12 * PRODUCT_SHARE * share / flops
