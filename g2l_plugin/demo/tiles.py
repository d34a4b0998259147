"""Tiles of the generated cohort, with their tissue class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from typing_extensions import override

from g2l_plugin.demo.cohort import (
    MASK_DOWNSAMPLE,
    TISSUE_CLASSES,
    DemoSlide,
    load_cohort,
    make_cohort,
)
from g2l_plugin.slides.tiles import TileDataset


class DemoTiles(TileDataset):
    """Labelled tiles of the demo cohort, which is generated where it does not exist.

    Each item is (tile, class, metadata) as in eva's classification datasets: the tile uint8, or
    what `transforms` makes of it, the class that of most of the tile's area.
    """

    def __init__(
        self,
        root: str,
        slides: Literal["train", "val", "test"],
        size: int = 64,
        min_purity: float = 0.0,
        max_tiles: int | None = None,
        n_slides: int = 24,
        seed: int = 0,
        transforms: Any = None,
        index_dir: str | None = None,
    ) -> None:
        """Initializes the dataset.

        Args:
            root: Folder of the cohort.
            slides: Which of the cohort's splits to take tiles from.
            size: Side of the tiles, in pixels at 0.5 microns per pixel.
            min_purity: Least share of a tile that must be of its class, 0 to 1.
            max_tiles: Keeps this many tiles, evenly spread; None keeps all.
            n_slides: Slides to generate, over all splits.
            seed: Seed of the generated cohort.
            transforms: Applied to the tile image, as in eva's datasets.
            index_dir: Where the tile tables are kept; None takes `index` in the cohort's folder.
        """
        super().__init__(
            root,
            width=size,
            height=size,
            seed=seed,
            index_dir=index_dir or str(Path(root) / "index"),
        )
        self._slides_split = slides
        self._min_purity = min_purity
        self._max_tiles = max_tiles
        self._cohort_size = n_slides
        self._transforms = transforms
        self._labels = np.empty(0, np.int64)

    @override
    def prepare_data(self) -> None:
        make_cohort(self._root, n_slides=self._cohort_size, seed=self._seed)
        super().prepare_data()

    @override
    def select_slides(self) -> list[Path]:
        return [slide.path for slide in self._demo_slides()]

    @override
    def configure(self) -> None:
        super().configure()
        masks = [np.asarray(Image.open(slide.mask)) for slide in self._demo_slides()]
        shares = np.stack([self._class_shares(index, masks) for index in range(len(self._xy))])
        purity = shares.max(axis=1)
        keep = np.flatnonzero((purity >= self._min_purity) & (purity > 0))
        if self._max_tiles is not None and len(keep) > self._max_tiles:
            keep = keep[np.linspace(0, len(keep) - 1, self._max_tiles).astype(int)]
        self._slide_of_tile, self._xy = self._slide_of_tile[keep], self._xy[keep]
        self._labels = shares[keep].argmax(axis=1)

    @override
    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        tile = self.load_tile(index)
        if self._transforms is not None:
            tile = self._transforms(tv_tensors.Image(tile))
        metadata = {"slide": self._slides[self._slide_of_tile[index]].path.stem}
        return tile, torch.tensor(self._labels[index]), metadata

    def filename(self, index: int) -> str:
        """Names a tile's embedding file, as eva's embedding writers ask."""
        slide = self._slides[self._slide_of_tile[index]].path.stem
        x, y = self._xy[index]
        return f"{slide}/{x}_{y}.png"

    def _demo_slides(self) -> list[DemoSlide]:
        return [slide for slide in load_cohort(self._root) if slide.split == self._slides_split]

    def _class_shares(self, index: int, masks: list[np.ndarray]) -> np.ndarray:
        """Share of each class in a tile's area, float (classes,)."""
        number = self._slide_of_tile[index]
        start = self._xy[index] // MASK_DOWNSAMPLE
        stop = start + np.array(self._slides[number].plan.level0_size) // MASK_DOWNSAMPLE
        area = masks[number][start[1] : stop[1], start[0] : stop[0]]
        return np.bincount(area.ravel(), minlength=len(TISSUE_CLASSES) + 1)[1:] / area.size
