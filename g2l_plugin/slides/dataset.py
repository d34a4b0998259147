"""The dataset of a cohort's tiles."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from eva.core.data.datasets import MapDataset
from loguru import logger
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.slides import index as index_lib
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.packed_source import PackedTiles, check_settings
from g2l_plugin.slides.slide_source import SlideTiles
from g2l_plugin.slides.split import Split, tiles_of_split
from g2l_plugin.slides.tile_grid import TileGrid
from g2l_plugin.slides.tile_source import TileSource


class TileDataset(MapDataset[Any]):
    """Tiles over the tissue of whole slides, on a non-overlapping grid.

    `prepare_data` chooses and indexes the slides once, or reuses an index that exists (from `g2l
    index`). With a `split`, patients are held out for validation, chosen with `seed`: no training
    tile is theirs.
    """

    def __init__(
        self,
        root: str,
        file_paths: str | Sequence[str] | None = None,
        n_slides: int | None = None,
        one_per_patient: bool = True,
        width: int = 256,
        height: int = 256,
        target_mpp: float = 0.5,
        overwrite_mpp: float | None = None,
        min_tissue: float = 0.5,
        min_sharpness: float = 0.1,
        reader: str = "auto",
        keep_duplicates: bool = False,
        max_lost: float = 0.01,
        split: Split | None = None,
        n_val_tiles: int = 2048,
        n_val_patients: int = 20,
        seed: int = 0,
        index_dir: str = "data/index",
        index_workers: int | None = None,
        max_open_slides: int = 64,
        packed_root: str | None = None,
    ) -> None:
        """Initializes the dataset; no file is opened before `prepare_data`.

        Args:
            root: The folder of the slides.
            file_paths: Slides relative to `root`, or a file that lists them, as in `choose_cohort`;
                None uses all slides in the folder and its subfolders.
            n_slides: How many slides to keep, chosen with `seed`; None keeps all.
            one_per_patient: Whether to use at most one slide per patient, by TCGA barcode.
            width: Tile width in pixels at `target_mpp`.
            height: Tile height in pixels at `target_mpp`.
            target_mpp: Microns per pixel of the tiles (0.5 is 20x).
            overwrite_mpp: Microns per pixel of slides whose metadata has none.
            min_tissue: Smallest share of a tile that must be tissue, 0 to 1.
            min_sharpness: Smallest sharpness of a tile; 0 keeps tiles out of focus too.
            reader: `auto` decodes a slide's own tiles where that is proven to give the pixels of
                OpenSlide, at several times its speed; `openslide` never does.
            keep_duplicates: Whether to keep several slides with the same content.
            max_lost: Largest share of slides, and of tiles, that may be unreadable, 0 to 1. A run
                stops if there are more.
            split: "train", "val", or None for every tile.
            n_val_tiles: Tiles for validation, at most those of the held-out patients.
            n_val_patients: Patients held out for validation: no training tile is theirs. At most a
                tenth of all; but two of eight patients, and one of two.
            seed: Seed of the choice of slides and of validation tiles.
            index_dir: Folder of the index.
            index_workers: Processes for indexing; None starts one per CPU core.
            max_open_slides: Slides that each data worker keeps open.
            packed_root: Reads the tiles that `g2l pack` wrote, and not the slides: a folder, or the
                address of its copy in an object store (`s3://bucket/tiles`). The other settings
                must be those that they were packed with.
        """
        super().__init__()
        self._root = root
        self._file_paths = file_paths
        self._n_slides = n_slides
        self._one_per_patient = one_per_patient
        self._grid = TileGrid(
            width, height, target_mpp, overwrite_mpp, min_tissue, min_sharpness, reader
        )
        self._keep_duplicates = keep_duplicates
        self._max_lost = max_lost
        self._split = split
        self._n_val_tiles = n_val_tiles
        self._n_val_patients = n_val_patients
        self._seed = seed
        self._index_dir = index_dir
        self._index_workers = index_workers
        self._max_open_slides = max_open_slides
        self._packed_root = packed_root

        self._tiles: TileSource | None = None

    @property
    def tiles(self) -> TileSource:
        """Source of the tiles, after `setup`."""
        if self._tiles is None:
            raise RuntimeError(f"{type(self).__name__} has no tiles yet. Call `setup` first.")
        return self._tiles

    @override
    def prepare_data(self) -> None:
        if self._packed_root is None:
            build_index(
                self._index_dir,
                self._grid,
                self._root,
                self.select_slides(),
                self._n_slides,
                self._seed,
                self._one_per_patient,
                self._keep_duplicates,
                self._max_lost,
                self._index_workers,
            )

    @override
    def configure(self) -> None:
        if self._packed_root is not None:
            if self._split is None:
                raise UserError("Packed tiles are stored by split: set `split` to train or val.")
            check_settings(
                self._packed_root,
                dataclasses.asdict(self._grid)
                | {
                    "n_slides": self._n_slides,
                    "one_per_patient": self._one_per_patient,
                    "seed": self._seed,
                    "keep_duplicates": self._keep_duplicates,
                    "n_val_tiles": self._n_val_tiles,
                    "n_val_patients": self._n_val_patients,
                },
            )
            self._tiles = PackedTiles(self._packed_root, self._split)
            return
        index = index_lib.open_index(self._index_dir, self._grid, self._root, self._keep_duplicates)
        index.check_losses(self._max_lost)
        size = (self._grid.width, self._grid.height)
        tiles = SlideTiles(index.load(), size, self._max_lost, self._max_open_slides)
        if self._split is not None:
            tiles.keep(
                tiles_of_split(
                    self._split,
                    tiles.origins.patients,
                    np.bincount(tiles.slide_of_tile, minlength=len(tiles.paths)),
                    self._n_val_tiles,
                    self._n_val_patients,
                    self._seed,
                )
            )
        self._tiles = tiles

    @override
    def validate(self) -> None:
        if len(self) == 0:
            raise UserError(
                f"No tile of the slides in {self._root} is at least {self._grid.min_tissue:.0%} "
                f"tissue. Lower `min_tissue`, or look at {self._index_dir}/index.html."
            )
        logger.info(
            f"{self._split or 'all'}: {self.tiles.describe()}, "
            f"{self._grid.width}x{self._grid.height} px at {self._grid.target_mpp} mpp"
        )

    @override
    def __len__(self) -> int:
        return len(self.tiles)

    @override
    def __getitem__(self, index: int) -> Any:
        """Reads one tile.

        Returns:
            The tile, or its substitute if it is unreadable, uint8 (3, height, width).

        Raises:
            UserError: More tiles are lost than `max_lost` allows, or no substitute can be read.
        """
        return self.tiles.read(index)

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Reads one tile into memory, as what `__getitem__` gives in a subclass too.

        Args:
            index: Number of the tile.
            out: Where to write it, uint8 (3, height, width).

        Raises:
            UserError: As in `__getitem__`; or a subclass gives something else than such a tile.
        """
        if type(self).__getitem__ is TileDataset.__getitem__:
            self.tiles.read_into(index, out)
            return
        tile = self[index]
        is_tensor = isinstance(tile, torch.Tensor)
        if not is_tensor or tile.shape != out.shape:
            found = f"of {tuple(tile.shape)}" if is_tensor else f"a {type(tile).__name__}"
            raise UserError(
                f"Tile {index} is {found}, expected a tensor of {out.shape}. Remove labels and "
                "transforms that change its size from the training tiles."
            )
        out[...] = tile

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Shape of a tile: 3, height, width."""
        return 3, self._grid.height, self._grid.width

    def describe_cohort(self) -> dict[str, Any]:
        """Counts tiles, and their slides or images in all and per centre, after `setup`."""
        return {"tiles": len(self), **self.tiles.origins.count()}

    def known_patients(self) -> set[str]:
        """The patients of the tiles, and "" if one is unknown, after `setup`."""
        return self.tiles.origins.known_patients()

    def fingerprint(self) -> str:
        """Hash of the tiles and their size, after `setup`; tile numbers agree where it agrees."""
        grid = self._grid
        cut = f"{grid.width}x{grid.height} {grid.target_mpp} {grid.overwrite_mpp}"
        return hashlib.sha256(f"{self.tiles.fingerprint()} {cut}".encode()).hexdigest()

    def locate(self, numbers: np.ndarray) -> pd.DataFrame:
        """Lists where tiles are, after `setup`.

        Returns:
            Columns `tile` (number), `slide` (path; of a packed tile, its name in the pack), `x` and
            `y` (upper left corner in pixels of level 0).
        """
        return self.tiles.locate(numbers)

    def lost_tiles(self) -> pd.DataFrame:
        """Lists the tiles that could not be read, as `locate` does, ascending."""
        return self.locate(self.tiles.lost())

    def select_slides(self) -> str | Sequence[str] | None:
        """Slides to choose from, in a form that `choose_cohort` accepts."""
        return self._file_paths

    def patients(self, numbers: np.ndarray) -> np.ndarray | None:
        """Patients of tiles after `setup`, (len(numbers),): where one is unknown, the slide.

        None for the tiles of a single patient, who is trained on too.
        """
        origins = self.tiles.origins
        if len(np.unique(origins.patients)) < 2:
            return None
        return origins.patients[origins.of_tile[numbers]]
