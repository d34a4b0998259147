"""The dataset: tiles of a cohort's slides, as uint8."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openslide
import torch
from eva.core.data.datasets import MapDataset
from loguru import logger
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.slides import cohort, index
from g2l_plugin.slides import slide as slide_lib

_MAX_VAL_SHARE = 0.1
"""A small cohort gives at most this share of its tiles to validation."""


class TileDataset(MapDataset[Any]):
    """Tiles over the tissue of whole slides, on a non-overlapping grid.

    The slides are indexed once, in `prepare_data`; an index that exists is read. With a `split`,
    the same `n_val_tiles` tiles, chosen with `seed`, are validation and all others are training.
    """

    def __init__(
        self,
        root: str,
        file_paths: Sequence[str] | None = None,
        n_slides: int | None = None,
        width: int = 256,
        height: int = 256,
        target_mpp: float = 0.5,
        overwrite_mpp: float | None = None,
        min_tissue: float = 0.5,
        split: Literal["train", "val"] | None = None,
        n_val_tiles: int = 256,
        seed: int = 0,
        index_dir: str = "data/index",
        index_workers: int | None = None,
        max_open_slides: int = 128,
    ) -> None:
        """Initializes the dataset; no file is touched before `prepare_data`.

        Args:
            root: The folder of the slides.
            file_paths: Slides relative to `root`; None takes all of the folder and its subfolders.
            n_slides: How many slides to keep, chosen with `seed`; None keeps all.
            width: Tile width in pixels at `target_mpp`.
            height: Tile height in pixels at `target_mpp`.
            target_mpp: Microns per pixel of the tiles (0.5 is 20x).
            overwrite_mpp: Microns per pixel of slides whose metadata has none.
            min_tissue: Least share of a tile that must be tissue, 0 to 1.
            split: "train", "val", or None for every tile.
            n_val_tiles: Tiles held out for validation, at most a tenth of all.
            seed: Seed of the choice of slides and of validation tiles.
            index_dir: Where the tile tables are kept, one parquet file a slide.
            index_workers: Threads that index; None takes one per CPU core.
            max_open_slides: Slides that each data worker keeps open.
        """
        super().__init__()
        self._root = root
        self._file_paths = file_paths
        self._n_slides = n_slides
        self._grid = index.TileGrid(width, height, target_mpp, overwrite_mpp, min_tissue)
        self._split = split
        self._n_val_tiles = n_val_tiles
        self._seed = seed
        self._index_dir = index_dir
        self._index_workers = index_workers
        self._max_open_slides = max_open_slides

        self._slides: list[index.SlideIndex] = []
        self._slide_of_tile = np.empty(0, np.int32)
        self._xy = np.empty((0, 2), np.int32)
        self._open: OrderedDict[int, openslide.OpenSlide] = OrderedDict()
        self._open_pid: int | None = None

    @override
    def prepare_data(self) -> None:
        self._build_index()

    @override
    def configure(self) -> None:
        self._slides = self._build_index()
        counts = [len(slide.xy) for slide in self._slides]
        # Flat arrays, 12 bytes a tile: ten million tiles are 120 MB, shared by forked workers.
        self._slide_of_tile = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._xy = np.concatenate([slide.xy for slide in self._slides])
        keep = self._select_tiles()
        self._slide_of_tile, self._xy = self._slide_of_tile[keep], self._xy[keep]

    @override
    def validate(self) -> None:
        if len(self) == 0:
            raise UserError(
                f"No tile of {len(self._slides)} slides in {self._root} is at least "
                f"{self._grid.min_tissue:.0%} tissue. Lower `min_tissue`, or check the slides."
            )
        logger.info(
            f"{len(self):,} {self._split or ''} tiles of {len(self._slides):,} slides "
            f"({self._grid.width}x{self._grid.height} px at {self._grid.target_mpp} mpp)"
        )

    @override
    def __len__(self) -> int:
        return len(self._xy)

    @override
    def __getitem__(self, index: int) -> Any:
        """Reads one tile.

        Returns:
            The tile, uint8 (3, height, width).

        Raises:
            UserError: The slide is damaged there; the message names slide and place.
        """
        return self.load_tile(index)

    def load_tile(self, index: int) -> torch.Tensor:
        """Reads the tile at an index, uint8 (3, height, width)."""
        number = int(self._slide_of_tile[index])
        slide = self._slides[number]
        x, y = (int(value) for value in self._xy[index])
        size = (self._grid.width, self._grid.height)
        try:
            tile = slide_lib.read_tile(self._handle(number), slide.plan, x, y, size)
        except openslide.OpenSlideError as error:
            # OpenSlide refuses every later read through a handle that failed once.
            self._open.pop(number, None)
            raise UserError(
                f"Slide {slide.path} cannot be read at ({x}, {y}): {error}. "
                "The file is damaged: move it away, or replace it."
            ) from error
        return torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1)))

    @property
    def slide_paths(self) -> list[Path]:
        """The slides of the cohort, after `setup`."""
        return [slide.path for slide in self._slides]

    def select_slides(self) -> list[Path]:
        """Lists the slides to take tiles from."""
        return cohort.select_slides(self._root, self._file_paths, self._n_slides, self._seed)

    def _build_index(self) -> list[index.SlideIndex]:
        return index.build_index(
            self.select_slides(), self._grid, self._index_dir, self._index_workers
        )

    def _select_tiles(self) -> np.ndarray:
        """Indices of the tiles of this split, ascending."""
        n_tiles = len(self._xy)
        if self._split is None:
            return np.arange(n_tiles)
        n_val = min(self._n_val_tiles, int(n_tiles * _MAX_VAL_SHARE))
        val = np.zeros(n_tiles, bool)
        val[np.random.default_rng(self._seed).permutation(n_tiles)[:n_val]] = True
        return np.flatnonzero(val if self._split == "val" else ~val)

    def _handle(self, number: int) -> openslide.OpenSlide:
        """Returns an open slide; each process has its own, the least recently read is closed."""
        if self._open_pid != os.getpid():
            self._open, self._open_pid = OrderedDict(), os.getpid()
        if number in self._open:
            self._open.move_to_end(number)
        else:
            self._open[number] = slide_lib.open_slide(self._slides[number].path)
            if len(self._open) > self._max_open_slides:
                self._open.popitem(last=False)[1].close()
        return self._open[number]

    def __getstate__(self) -> dict:
        # Handles belong to their process.
        return self.__dict__ | {"_open": OrderedDict(), "_open_pid": None}
