"""Tiles read from the slides of a cohort, with substitutes for unreadable ones."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
import openslide
import pandas as pd
import torch
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.slides.index import SlideIndex
from g2l_plugin.slides.lost_tiles import LostTiles
from g2l_plugin.slides.reader import SlideReader
from g2l_plugin.slides.slide import SlideError
from g2l_plugin.slides.squares import SQUARE, number_squares
from g2l_plugin.slides.tile_source import Origins

_NEIGHBOURS = (1, -1, 2, -2, 3, -3, 4, -4)
"""Substitutes to try first: tiles of the same slide, by the difference of their numbers."""

_OTHER_TILES = 8
"""Random tiles of all slides to try if no neighbour can be read."""


class SlideTiles:
    """The tiles of slides, read from the slides (a `TileSource`).

    If a tile cannot be read, it counts as lost, and a neighbour in its slide or a tile of another
    slide is read in its place. A lost tile has the same substitute in every epoch.

    Attributes:
        paths: The slides.
        slide_of_tile: Position in `paths` of each tile's slide, ascending, int32 (tiles,).
        group_of_tile: Number of each tile's group, ascending, int32 (tiles,).
        xy: Upper left corners in pixels of level 0, int32 (tiles, 2).
        block_tiles: Neighbours that go into the same shard of a pack: few, so that a shard mixes
            many slides.
    """

    block_tiles = 16

    def __init__(
        self,
        slides: Sequence[SlideIndex],
        size: tuple[int, int],
        max_lost: float = 0.01,
        max_open_slides: int = 64,
    ) -> None:
        """Initializes the tiles; no slide is opened yet.

        Args:
            slides: The slides and the places of their tiles.
            size: Width and height of the tiles.
            max_lost: Largest share of tiles that may be unreadable, 0 to 1.
            max_open_slides: Slides that each process keeps open.
        """
        self.paths = [slide.path for slide in slides]
        self._identities = [f"{s.path.name} {s.bytes} {s.plan}" for s in slides]
        self._patients = np.array([slide.patient for slide in slides], str)
        self._known = np.array([slide.knows_patient for slide in slides], bool)
        self._centres = np.array([slide.centre for slide in slides], str)
        self.reader = SlideReader(self.paths, [s.plan for s in slides], size, max_open_slides)
        self._shape = (3, size[1], size[0])
        self._max_lost = max_lost
        # Flat arrays, 16 bytes per tile: ten million tiles are 160 MB, shared by forked workers.
        counts = [len(slide.xy) for slide in slides]
        self.slide_of_tile = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.group_of_tile = _number_groups(slides)
        self.xy = np.concatenate([np.empty((0, 2), np.int32), *(slide.xy for slide in slides)])
        self._lost = LostTiles(len(self.xy), max_lost)

    def __len__(self) -> int:
        """Tiles of all slides."""
        return len(self.xy)

    @property
    def group_sizes(self) -> np.ndarray:
        """Tiles of each group, (groups,): neighbours, at most 64, that share compressed pixels."""
        sizes = np.bincount(self.group_of_tile)
        return sizes[sizes > 0]

    @property
    def origins(self) -> Origins:
        """The slides."""
        return Origins("slides", self._patients, self._known, self._centres, self.slide_of_tile)

    def keep(self, numbers: np.ndarray) -> None:
        """Keeps only these tiles, ascending, and renumbers them from 0."""
        self.slide_of_tile, self.xy = self.slide_of_tile[numbers], self.xy[numbers]
        self.group_of_tile = self.group_of_tile[numbers]
        self._lost = LostTiles(len(numbers), self._max_lost)

    def read(self, number: int) -> torch.Tensor:
        """Reads a tile, or its substitute, uint8 RGB (3, height, width); see `read_into`."""
        tile = np.empty(self._shape, np.uint8)
        self.read_into(number, tile)
        return torch.from_numpy(tile)

    def read_into(self, number: int, out: np.ndarray) -> None:
        """Reads a tile, or its substitute.

        Args:
            number: Number of the tile.
            out: Where to write it, uint8 RGB (3, height, width).

        Raises:
            UserError: More tiles are lost than `max_lost` allows, or no substitute can be read.
        """
        for candidate in self._candidates(number):
            if candidate in self._lost:
                continue
            slide = int(self.slide_of_tile[candidate])
            try:
                return self.read_itself(candidate, out)
            except SlideError as error:
                self._lose(slide, *self.span(slide), str(error))
            except openslide.OpenSlideError as error:
                x, y = self.xy[candidate].tolist()
                message = f"Slide {self.paths[slide]} is damaged at ({x}, {y}): {error}."
                self._lose(slide, candidate, candidate + 1, message)
        raise UserError(
            f"Neither {self.paths[self.slide_of_tile[number]]} nor {_OTHER_TILES} tiles of other "
            "slides can be read. Bring the slides back, and resume from the last checkpoint."
        )

    def read_encoded(self, number: int) -> None:
        """None: a slide's own JPEG files do not lie on the grid of the tiles."""
        return None

    def read_itself(self, number: int, out: np.ndarray) -> None:
        """Reads a tile, without a substitute.

        Args:
            number: Number of the tile.
            out: Where to write it, uint8 RGB (3, height, width).

        Raises:
            SlideError: Its slide cannot be opened.
            openslide.OpenSlideError: The slide is damaged there.
        """
        slide, (x, y) = int(self.slide_of_tile[number]), self.xy[number].tolist()
        self.reader.read(slide, x, y, out)

    def span(self, slide: int) -> tuple[int, int]:
        """The number of the first tile of a slide, and of the one after its last."""
        start, stop = np.searchsorted(self.slide_of_tile, [slide, slide + 1]).tolist()
        return start, stop

    def substitutes(self, numbers: np.ndarray) -> np.ndarray:
        """Says which of these tiles were replaced by a substitute on this device, bool (tiles,)."""
        return self._lost.flags(numbers)

    def lost(self) -> np.ndarray:
        """Numbers of the tiles that no process of this device could read, ascending, int64."""
        return self._lost.numbers()

    def locate(self, numbers: np.ndarray) -> pd.DataFrame:
        """Lists number, slide (path) and upper left corner (level 0) of tiles."""
        slides = [self.paths[slide] for slide in self.slide_of_tile[numbers]]
        x, y = self.xy[numbers].T
        return pd.DataFrame({"tile": numbers, "slide": slides, "x": x, "y": y})

    def describe(self) -> str:
        """Numbers of tiles and slides, for the log."""
        return f"{len(self):,} tiles of {len(np.unique(self.slide_of_tile)):,} slides"

    def fingerprint(self) -> str:
        """SHA-256 of the slides' names, sizes and ways of reading, and of the tiles' places.

        The folder of the slides does not change it, and a copy with other times does not.
        """
        digest = hashlib.sha256(os.fsencode("\n".join(self._identities)))
        digest.update(self.slide_of_tile.tobytes())
        digest.update(self.xy.tobytes())
        return digest.hexdigest()

    def _candidates(self, number: int) -> Iterator[int]:
        """The tile, its neighbours in the slide, then tiles of any slide; always the same."""
        yield number
        for distance in _NEIGHBOURS:
            neighbour = number + distance
            if 0 <= neighbour < len(self) and (
                self.slide_of_tile[neighbour] == self.slide_of_tile[number]
            ):
                yield neighbour
        rng = np.random.default_rng(number)
        yield from rng.integers(len(self), size=_OTHER_TILES).tolist()

    def _lose(self, slide: int, start: int, stop: int, message: str) -> None:
        if not self._lost.any(*self.span(slide)):  # warn once per slide, not once per tile
            logger.warning(f"{message} Substitute tiles are read in place of unreadable ones.")
        self._lost.add(start, stop, message)


def _number_groups(slides: Sequence[SlideIndex]) -> np.ndarray:
    """Numbers the groups of all slides, int32 (tiles,).

    A group is a square of the grid, of which an index lists the tiles one after the other. At the
    edge of the tissue squares have few tiles, and some of them together make a group.
    """
    sizes: list[int] = []
    for slide in slides:
        square = number_squares(slide.xy, slide.plan)
        starts = np.flatnonzero((np.diff(square, axis=0) != 0).any(axis=1)) + 1
        edges = [0, *starts.tolist(), len(slide.xy)]
        group = 0
        for begin, end in itertools.pairwise(edges):
            if group and group + end - begin > SQUARE**2:
                sizes.append(group)
                group = 0
            group += end - begin
        sizes.append(group)
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
