"""Tiles for `training.py`: slides for `eva fit`, the same tiles in memory, and as image files."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from cohorts import copy_slides, find_slides, pixels_of, write_full_size
from PIL import Image
from tqdm import tqdm

from g2l_plugin import TileDataset

N_VAL_TILES = 64
"""Held out, as the recipe's config does with more of them."""


def dataset_options(slides: str, index: str, full_size: bool, mpp: float) -> dict[str, Any]:
    """Arguments of `TileDataset`, for links to a few slides."""
    return {
        "root": slides,
        "index_dir": index,
        "overwrite_mpp": mpp,
        # The full-size slide says it is finer than its pixels are.
        "min_sharpness": 0.01 if full_size else 0.1,
        "one_per_patient": False,
        "keep_duplicates": True,
        "n_slides": None,
        "n_val_tiles": N_VAL_TILES,
    }


def make_slides(
    folder: Path, source: Path | None, full_size: bool, mpp: float, n_tiles: int
) -> tuple[Path, Path]:
    """Links slides as often as it takes to have so many tiles for training; indexes them.

    Returns:
        The folder of the slides, and of their index.
    """
    if full_size:
        originals = folder / "full_size"
        originals.mkdir()
        largest = max(find_slides(source, folder / "demo"), key=pixels_of)
        write_full_size(largest, originals / "full_size.tiff")
        source = originals
    few = find_slides(source, folder / "demo")
    root = few[0].parent
    n_tiles_of_few = len(_index(root, folder / "few", full_size, mpp))
    n_slides = len(few) * math.ceil((n_tiles + N_VAL_TILES) / n_tiles_of_few)
    slides = copy_slides(root, folder / "slides", n_slides, link=True)
    _index(slides, folder / "index", full_size, mpp)
    return slides, folder / "index"


def write_tiles(options: dict[str, Any], n_tiles: int, path: Path) -> None:
    """Writes so many tiles of the slides, evenly spread, as one array."""
    dataset = TileDataset(**options, split="train")
    dataset.setup()
    chosen = np.linspace(0, len(dataset) - 1, n_tiles).astype(int)
    np.save(path, np.stack([dataset[i].numpy() for i in tqdm(chosen, "Tiles", leave=False)]))


def write_images(tiles: Path, folder: Path, n_images: int) -> None:
    """Writes the tiles as JPEG files, and links to them where more are asked for."""
    folder.mkdir()
    pixels = np.load(tiles, mmap_mode="r")
    for number in tqdm(range(n_images), "Images", leave=False):
        path = folder / f"{number:06d}.jpg"
        if number < len(pixels):
            Image.fromarray(pixels[number].transpose(1, 2, 0)).save(path, quality=90)
        else:
            os.link(folder / f"{number % len(pixels):06d}.jpg", path)


def _index(slides: Path, index: Path, full_size: bool, mpp: float) -> TileDataset:
    options = dataset_options(str(slides), str(index), full_size, mpp)
    dataset = TileDataset(**options, split="train")
    dataset.prepare_data()
    dataset.setup()
    return dataset
