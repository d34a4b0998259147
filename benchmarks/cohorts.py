"""Cohorts for measuring: copies of a few real slides under other names."""

import argparse
import io
import os
import shutil
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image

from g2l_plugin.demo.cohort import make_cohort
from g2l_plugin.slides.cohort import SLIDE_SUFFIXES

_CELL, _TILE = 3840, 240


def add_arguments(parser: argparse.ArgumentParser, n_slides: int) -> None:
    parser.add_argument(
        "--slides",
        type=Path,
        default=os.environ.get("G2L_SLIDES"),
        help="folder of slides to copy (G2L_SLIDES); without it, slides of the demo cohort",
    )
    parser.add_argument("--n-slides", type=int, default=n_slides)
    parser.add_argument("--overwrite-mpp", type=float, default=0.5)


def copy_slides(source: Path | None, target: Path, n_slides: int, link: bool = False) -> Path:
    """Fills a folder with `n_slides` copies, or hard links, in turn of the slides of a folder."""
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


def find_slides(source: Path | None, demo: Path) -> list[Path]:
    """The slides of a folder, or of a small demo cohort that is generated."""
    if source is None:
        make_cohort(demo, n_slides=4)
        source = demo / "slides"
    return sorted(p for p in source.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES)


def pixels_of(path: Path) -> int:
    """Pixels of a slide's level 0."""
    with openslide.OpenSlide(str(path)) as slide:
        return slide.dimensions[0] * slide.dimensions[1]


def write_full_size(source: Path, target: Path, cells: tuple[int, int] = (26, 17)) -> Path:
    """Writes a slide as large as a scanner's, of the pixels of a small one.

    A third of it is tissue, in the middle, the rest glass. The tissue is the centre of the small
    slide, repeated, said to be at 0.25 microns per pixel; JPEG tiles of 240 pixels and levels of 1,
    4 and 16, as Aperio writes them.

    Args:
        source: A slide of at least 1,920 x 1,920 pixels.
        target: The TIFF to write, about 1 GB.
        cells: How many cells it is wide and high.
    """
    columns, rows = cells
    y, x = np.mgrid[:rows, :columns]
    distance = np.hypot((y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5)
    is_tissue = distance < (1 / 3 / np.pi) ** 0.5
    with openslide.OpenSlide(str(source)) as slide:
        corner = tuple((length - _CELL // 2) // 2 for length in slide.dimensions)
        period = slide.read_region(corner, 0, (_CELL // 2, _CELL // 2)).convert("RGB")
    cell = Image.fromarray(np.tile(np.asarray(period), (2, 2, 1)))
    with tifffile.TiffWriter(target, bigtiff=True) as writer:
        for downsample in (1, 4, 16):
            size = _CELL // downsample
            small = cell.resize((size, size), Image.Resampling.BOX)
            per_cell = size // _TILE
            tissue = {
                (i, j): _jpeg(small.crop((j * _TILE, i * _TILE, (j + 1) * _TILE, (i + 1) * _TILE)))
                for i in range(per_cell)
                for j in range(per_cell)
            }
            glass = _jpeg(Image.new("RGB", (_TILE, _TILE), (244, 243, 245)))
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
                tile=(_TILE, _TILE),
                photometric="ycbcr",
                subsampling=(1, 1),
                compression="jpeg",
                subfiletype=int(downsample > 1),
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )
    return target


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()
