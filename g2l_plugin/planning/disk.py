"""What a run writes and reads, in bytes."""

from __future__ import annotations

TILES_PER_SLIDE = 7500
"""Tiles of a slide at 0.5 µm/px. Assumed."""

SLIDE = 1e9
"""Bytes of a slide. Assumed."""

PACKED_TILE = 25e3
"""Bytes of a tile that is packed as JPEG. Assumed."""

CHECKPOINTS = 4
"""Most checkpoints at once: two kept, one being written, last.ckpt."""

_WEIGHT = 4
"""Bytes of a weight in float32."""

_SAVED = 3 * _WEIGHT
"""Bytes of a weight in a checkpoint: itself and AdamW's two moments."""

_TILE_RECORD = 16
"""Bytes of a tile in the index: x, y, tissue, sharpness. Source: `slides/index_files.py`."""

_PICTURE = 100e3
"""Bytes of a slide's picture in the index, rounded up."""


def checkpoint(trained: int) -> int:
    """Bytes of a checkpoint of this number of trained weights."""
    return _SAVED * trained


def weights(parameters: int) -> int:
    """Bytes of a file of weights in float32: of the published student, or a download."""
    return _WEIGHT * parameters


def embeddings(tiles: int, width: int) -> int:
    """Bytes of the teachers' embeddings of one view of each tile, in bfloat16."""
    return 2 * tiles * width


def index(slides: int) -> float:
    """Bytes of the index of slides, with their pictures."""
    return slides * (TILES_PER_SLIDE * _TILE_RECORD + _PICTURE)
