"""Cohorts to measure with: copies of a few slides under other names, and tiles of them."""

import argparse
import io
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image
from tqdm import tqdm

from g2l_plugin import TileDataset
from g2l_plugin.demo.generate import make_cohort
from g2l_plugin.slides.slide_list import SLIDE_SUFFIXES

_FILE_TILE = 240
"""Side of the tiles that a slide is stored in, in pixels: Aperio's; other scanners' have 256."""

_APERIO = "Aperio Image Library v12\r\n{}x{} ({}x{}) J2K|AppMag = 40|MPP = 0.25"
_APERIO_J2K, _J2K_RATE = 33005, 19
N_VAL_TILES = 64
"""Tiles held out for validation, as in the recipe's config, which holds out more."""


def add_arguments(parser: argparse.ArgumentParser, n_slides: int | None = None) -> None:
    """Adds the options of the slides; --n-slides only if it has a default."""
    parser.add_argument(
        "--slides",
        type=Path,
        default=os.environ.get("G2L_SLIDES"),
        help="folder of slides to copy (G2L_SLIDES); without it, slides of the demo cohort",
    )
    if n_slides is not None:
        parser.add_argument("--n-slides", type=int, default=n_slides)
    parser.add_argument("--overwrite-mpp", type=float, default=0.5)


def find_slides(source: Path | None, demo: Path) -> list[Path]:
    """Lists the slides of a folder, or generates a small demo cohort if there is no folder."""
    if source is None:
        make_cohort(demo, n_slides=4)
        source = demo / "slides"
    return sorted(p for p in source.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES)


def copy_slides(source: Path | None, target: Path, n_slides: int, link: bool = False) -> Path:
    """Fills a folder with copies of slides, or hard links to them, until there are `n_slides`."""
    originals = find_slides(source, target.parent / "demo")
    target.mkdir(parents=True)
    first: dict[Path, Path] = {}
    for number in range(n_slides):
        original = originals[number % len(originals)]
        copy = target / f"{number:04d}-{original.name.replace('TCGA', 'copy')}"
        if link and original in first:
            os.link(first[original], copy)
        else:
            shutil.copy(original, copy)
            first[original] = copy
    return target


def min_sharpness(full_size: bool) -> float:
    """Limit of sharpness; lower for the full-size slide, whose stated resolution is too fine."""
    return 0.01 if full_size else 0.1


def make_full_size(
    source: Path | None, folder: Path, jpeg2000: bool = False, file_tile: int = _FILE_TILE
) -> Path:
    """Makes a folder with one slide as large as a scanner's, from the largest of `source`."""
    slides = find_slides(source, folder.parent / "demo")
    folder.mkdir()
    largest = max(slides, key=_count_pixels)
    _write_full_size(largest, folder / "full_size.tiff", jpeg2000, file_tile)
    return folder


def make_training_cohort(
    folder: Path, source: Path | None, full_size: bool, mpp: float, n_tiles: int
) -> dict[str, Any]:
    """Links slides until they have at least `n_tiles` tiles for training, and indexes them.

    Returns:
        Arguments of `TileDataset` for these slides.
    """
    if full_size:
        source = make_full_size(source, folder / "full_size")
    few = find_slides(source, folder / "demo")
    options = {
        "root": str(few[0].parent),
        "index_dir": str(folder / "few"),
        "overwrite_mpp": mpp,
        "min_sharpness": min_sharpness(full_size),
        "one_per_patient": False,
        "keep_duplicates": True,
        "n_slides": None,
        "n_val_tiles": N_VAL_TILES,
    }
    n_slides = len(few) * math.ceil((n_tiles + N_VAL_TILES) / len(index_slides(options)))
    slides = copy_slides(few[0].parent, folder / "slides", n_slides, link=True)
    options |= {"root": str(slides), "index_dir": str(folder / "index")}
    index_slides(options)
    return options


def index_slides(options: dict[str, Any]) -> TileDataset:
    """Indexes the slides of a dataset and returns it, set up."""
    dataset = TileDataset(**options, split="train")
    dataset.prepare_data()
    dataset.setup()
    return dataset


def write_tiles(options: dict[str, Any], n_tiles: int, path: Path) -> None:
    """Writes `n_tiles` tiles of the slides, evenly spread, as one array (N, 3, H, W)."""
    dataset = TileDataset(**options, split="train")
    dataset.setup()
    chosen = np.linspace(0, len(dataset) - 1, n_tiles).astype(int)
    np.save(path, np.stack([dataset[i].numpy() for i in tqdm(chosen, "Tiles", leave=False)]))


def write_images(tiles: Path, folder: Path, n_images: int) -> None:
    """Writes the tiles as JPEG files, and links to them until there are `n_images`."""
    folder.mkdir()
    pixels = np.load(tiles, mmap_mode="r")
    for number in tqdm(range(n_images), "Images", leave=False):
        path = folder / f"{number:06d}.jpg"
        if number < len(pixels):
            Image.fromarray(pixels[number].transpose(1, 2, 0)).save(path, quality=90)
        else:
            os.link(folder / f"{number % len(pixels):06d}.jpg", path)


def _count_pixels(path: Path) -> int:
    """Pixels of a slide's level 0."""
    with openslide.OpenSlide(str(path)) as slide:
        return slide.dimensions[0] * slide.dimensions[1]


def _write_full_size(
    source: Path, target: Path, jpeg2000: bool, tile: int, cells: tuple[int, int] = (26, 17)
) -> None:
    """Writes a slide as large as a scanner's, with the pixels of a small one.

    A third of it, in the middle, is tissue; the rest is glass. The tissue repeats the centre of the
    small slide, at a stated 0.25 microns per pixel. Like in Aperio's files, the downsamples of its
    levels are 1, 4 and 16.

    Args:
        source: A slide of at least 8 x 8 of the tiles.
        target: The TIFF to write, about 1 GB.
        jpeg2000: Whether its tiles are JPEG 2000 of a nineteenth of their pixels' bytes, as in
            Aperio's files of quality 70; else they are JPEG of quality 85.
        tile: Side of the tiles that it is stored in, in pixels.
        cells: Its width and height, in cells of 16 tiles.
    """
    columns, rows = cells
    cell_size = 16 * tile
    if jpeg2000:
        encode = _jpeg2000
        description = _APERIO.format(columns * cell_size, rows * cell_size, tile, tile)
        layout = {"compression": _APERIO_J2K, "photometric": "rgb", "description": description}
    else:
        encode = _jpeg
        layout = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)}
    y, x = np.mgrid[:rows, :columns]
    distance = np.hypot((y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5)
    is_tissue = distance < (1 / 3 / np.pi) ** 0.5
    with openslide.OpenSlide(str(source)) as slide:
        corner = tuple((length - cell_size // 2) // 2 for length in slide.dimensions)
        period = slide.read_region(corner, 0, (cell_size // 2, cell_size // 2)).convert("RGB")
    cell = Image.fromarray(np.tile(np.asarray(period), (2, 2, 1)))
    with tifffile.TiffWriter(target, bigtiff=True) as writer:
        for downsample in (1, 4, 16):
            size = cell_size // downsample
            small = cell.resize((size, size), Image.Resampling.BOX)
            per_cell = size // tile
            tissue = {
                (i, j): encode(small.crop((j * tile, i * tile, (j + 1) * tile, (i + 1) * tile)))
                for i in range(per_cell)
                for j in range(per_cell)
            }
            glass = encode(Image.new("RGB", (tile, tile), (244, 243, 245)))
            mpp = 0.25 * downsample
            writer.write(
                (
                    tissue[i % per_cell, j % per_cell]
                    if is_tissue[i // per_cell, j // per_cell]
                    else glass
                    for i in range(rows * per_cell)
                    for j in range(columns * per_cell)
                ),
                shape=(rows * size, columns * size, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                metadata=None,
                **layout,
                subfiletype=int(downsample > 1),
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _jpeg2000(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    options = {"no_jp2": True, "irreversible": True, "quality_layers": [_J2K_RATE]}
    image.save(buffer, "JPEG2000", **options)
    return buffer.getvalue()
