"""Tiles of the generated cohort with their tissue classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from typing_extensions import override

from g2l_plugin.demo.generate import DemoSlide, load_cohort, make_cohort
from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE, TISSUE_CLASSES
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.slide_source import SlideTiles


class DemoTiles(TileDataset):
    """Labelled tiles of the demo cohort, which is generated if it does not exist.

    As in eva's classification datasets, an item is (tile, class, metadata). The tile is uint8
    (3, size, size), or the result of `transforms`, and the class is the one that covers most of its
    area. With `labelled=False` an item is the tile alone.

    Examples:
        >>> tiles = DemoTiles("demo_cohort", "train", min_purity=0.8, n_slides=4)
        >>> tiles.prepare_data()
        >>> tiles.setup()
        >>> tile, tissue_class, metadata = tiles[0]
        >>> tile.shape, tile.dtype, sorted(metadata)
        (torch.Size([3, 64, 64]), torch.uint8, ['centre', 'slide'])
    """

    tiles: SlideTiles

    def __init__(
        self,
        root: str,
        slides: Literal["train", "val", "test"],
        size: int = 64,
        min_purity: float = 0.0,
        max_tiles: int | None = None,
        labelled: bool = True,
        n_slides: int = 48,
        seed: int = 0,
        transforms: Any = None,
        index_dir: str | None = None,
    ) -> None:
        """Initializes the dataset.

        Args:
            root: Folder of the cohort.
            slides: Split of the cohort to read tiles from.
            size: Side of the tiles, in pixels at 0.5 microns per pixel.
            min_purity: Smallest share of a tile that its class must cover, 0 to 1.
            max_tiles: Number of tiles to keep, evenly spread; None keeps all.
            labelled: Whether an item is (tile, class, metadata) or the tile alone.
            n_slides: Number of slides to generate, over all splits.
            seed: Seed of the generated cohort.
            transforms: Applied to the tile image, as in eva's datasets.
            index_dir: Folder of the indexes; None uses `index` in the cohort's folder.
        """
        super().__init__(
            root,
            width=size,
            height=size,
            seed=seed,
            # Generated tissue is always in focus.
            min_sharpness=0.0,
            index_dir=str(Path(index_dir or Path(root) / "index") / slides),
        )
        self._slides_split = slides
        self._min_purity = min_purity
        self._max_tiles = max_tiles
        self._labelled = labelled
        self._cohort_size = n_slides
        self._transforms = transforms
        self._labels = np.empty(0, np.int64)
        self._centres: dict[str, str] = {}

    @property
    def classes(self) -> list[str]:
        """Names of the tissue classes, in the order of their numbers."""
        return list(TISSUE_CLASSES)

    @override
    def prepare_data(self) -> None:
        make_cohort(self._root, n_slides=self._cohort_size, seed=self._seed)
        super().prepare_data()

    @override
    def select_slides(self) -> list[str]:
        root = Path(self._root)
        return [slide.path.relative_to(root).as_posix() for slide in self._demo_slides()]

    @override
    def configure(self) -> None:
        super().configure()
        slides = self._demo_slides()
        labels = {slide.path: slide.mask for slide in slides}
        self._centres = {slide.path.stem: slide.centre for slide in slides}
        masks = [np.asarray(Image.open(labels[path])) for path in self.tiles.paths]
        shares = np.stack([self._class_shares(index, masks) for index in range(len(self.tiles.xy))])
        purity = shares.max(axis=1)
        keep = np.flatnonzero((purity >= self._min_purity) & (purity > 0))
        if self._max_tiles is not None and len(keep) > self._max_tiles:
            keep = keep[np.linspace(0, len(keep) - 1, self._max_tiles).astype(int)]
        self.tiles.keep(keep)
        self._labels = shares[keep].argmax(axis=1)

    @override
    def __getitem__(self, index: int) -> Any:
        tile = self.tiles.read(index)
        if self._transforms is not None:
            tile = self._transforms(tv_tensors.Image(tile))
        if not self._labelled:
            return tile
        slide = self._slide_name(index)
        metadata = {"slide": slide, "centre": self._centres[slide]}
        return tile, torch.tensor(self._labels[index]), metadata

    def filename(self, index: int) -> str:
        """Name of a tile, from which eva's writers name its embedding file."""
        x, y = self.tiles.xy[index]
        return f"{self._slide_name(index)}/{x}_{y}.png"

    def _slide_name(self, index: int) -> str:
        return self.tiles.paths[self.tiles.slide_of_tile[index]].stem

    def _demo_slides(self) -> list[DemoSlide]:
        return [slide for slide in load_cohort(self._root) if slide.split == self._slides_split]

    def _class_shares(self, index: int, masks: list[np.ndarray]) -> np.ndarray:
        """Share of a tile's area that each class covers, float (classes,)."""
        number = self.tiles.slide_of_tile[index]
        start = self.tiles.xy[index] // MASK_DOWNSAMPLE
        # Slides and tiles have the same resolution, so tile sizes are in pixels of level 0.
        stop = start + np.array([self._grid.width, self._grid.height]) // MASK_DOWNSAMPLE
        area = masks[number][start[1] : stop[1], start[0] : stop[0]]
        return np.bincount(area.ravel(), minlength=len(TISSUE_CLASSES) + 1)[1:] / area.size
