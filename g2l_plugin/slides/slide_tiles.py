"""The tiles of a cohort's slides, by their number; one that cannot be read is replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openslide
import torch
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.slides.index import SlideIndex
from g2l_plugin.slides.losses import LostTiles
from g2l_plugin.slides.reader import SlideReader
from g2l_plugin.slides.slide import SlideError

_NEIGHBOURS = (1, -1, 2, -2, 3, -3, 4, -4)
"""Which tiles of a slide, by their distance in the table, stand in for one that is damaged."""

_OTHER_SLIDES = 8
"""How many tiles of all slides are tried when none of the neighbours can be read."""


class SlideTiles:
    """The tiles of slides, read from the slides.

    A tile that cannot be read is replaced by a neighbour in its slide, or by a tile of another
    slide, the same each time, and counted as lost.

    Attributes:
        paths: The slides.
        slide_of_tile: Number of each tile's slide, ascending, int32 (tiles,).
        xy: Upper left corners in pixels of level 0, int32 (tiles, 2).
    """

    def __init__(
        self,
        slides: Sequence[SlideIndex],
        size: tuple[int, int],
        max_lost: float = 0.01,
        max_open_slides: int = 64,
    ) -> None:
        """Initializes the tiles; no slide is opened yet.

        Args:
            slides: The slides and where their tiles are.
            size: Width and height of the tiles.
            max_lost: Largest share of tiles that may turn out to be unreadable, 0 to 1.
            max_open_slides: Slides that each process keeps open.
        """
        self.paths = [slide.path for slide in slides]
        self.reader = SlideReader(self.paths, [s.plan for s in slides], size, max_open_slides)
        self._max_lost = max_lost
        # Flat arrays, 12 bytes a tile: ten million tiles are 120 MB, shared by forked workers.
        counts = [len(slide.xy) for slide in slides]
        self.slide_of_tile = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.xy = np.concatenate([np.empty((0, 2), np.int32), *(slide.xy for slide in slides)])
        self._lost = LostTiles(len(self.xy), max_lost)

    def __len__(self) -> int:
        """Tiles of all slides."""
        return len(self.xy)

    @property
    def group_sizes(self) -> np.ndarray:
        """Tiles of each slide, (slides,): a slide's tiles follow each other, as do neighbours."""
        return np.bincount(self.slide_of_tile, minlength=len(self.paths))

    def keep(self, tiles: np.ndarray) -> None:
        """Keeps only these tiles, ascending, and numbers them anew."""
        self.slide_of_tile, self.xy = self.slide_of_tile[tiles], self.xy[tiles]
        self._lost = LostTiles(len(tiles), self._max_lost)

    def read(self, index: int) -> torch.Tensor:
        """Reads a tile, or what stands in for it.

        Returns:
            uint8 RGB (3, height, width).

        Raises:
            UserError: More tiles are lost than may be, or nothing can be read at all.
        """
        for candidate in self._candidates(index):
            if candidate in self._lost:
                continue
            number = int(self.slide_of_tile[candidate])
            x, y = self.xy[candidate].tolist()
            try:
                return torch.from_numpy(self.reader.read(number, x, y))
            except SlideError as error:
                self._lose(number, *self._span(number), str(error))
            except openslide.OpenSlideError as error:
                message = f"Slide {self.paths[number]} is damaged at ({x}, {y}): {error}."
                self._lose(number, candidate, candidate + 1, message)
        raise UserError(
            f"Neither {self.paths[self.slide_of_tile[index]]} nor {_OTHER_SLIDES} tiles of other "
            "slides can be read. Bring the slides back, and resume from the last checkpoint."
        )

    def stands_in(self, tiles: np.ndarray) -> np.ndarray:
        """For which of some tiles others were read by this device's workers, bool (tiles,)."""
        return self._lost.at(tiles)

    def lost(self) -> list[tuple[Path, int, int]]:
        """Slide and place (level 0) of the tiles that could not be read, in any process."""
        return [
            (self.paths[self.slide_of_tile[index]], *self.xy[index].tolist())
            for index in self._lost.indices()
        ]

    def describe(self) -> str:
        """Says how many tiles there are, of what."""
        return f"{len(self):,} tiles of {len(self.paths):,} slides"

    def fingerprint(self) -> str:
        """SHA-256 of which tiles of which slides these are, wherever the slides lie."""
        digest = hashlib.sha256("\n".join(path.name for path in self.paths).encode())
        digest.update(self.slide_of_tile.tobytes())
        digest.update(self.xy.tobytes())
        return digest.hexdigest()

    def _candidates(self, index: int) -> Iterator[int]:
        """The tile, its neighbours in the slide, and tiles of any slide: the same each time."""
        yield index
        for distance in _NEIGHBOURS:
            neighbour = index + distance
            if 0 <= neighbour < len(self) and (
                self.slide_of_tile[neighbour] == self.slide_of_tile[index]
            ):
                yield neighbour
        rng = np.random.default_rng(index)
        yield from rng.integers(len(self), size=_OTHER_SLIDES).tolist()

    def _span(self, number: int) -> tuple[int, int]:
        """The first tile of a slide, and the one after its last."""
        start, stop = np.searchsorted(self.slide_of_tile, [number, number + 1]).tolist()
        return start, stop

    def _lose(self, number: int, start: int, stop: int, message: str) -> None:
        if not self._lost.any(*self._span(number)):  # a line a slide, not a tile
            logger.warning(f"{message} Other tiles stand in for what is lost.")
        self._lost.add(start, stop, message)
