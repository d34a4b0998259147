"""AGGC22: Gleason patterns, normal glands and stroma of the prostate.

Source: Automated Gleason Grading Challenge 2022, https://aggc22.grand-challenge.org/Data, licence
CC BY-NC-SA 4.0. All slides are from the National University Hospital, Singapore, at 20x: whole
mounts (subset 1) and biopsies (subset 2) from an Akoya scanner, and whole mounts from six scanners
(subset 3). Each slide is a TIFF file. Its annotations are a folder of the same name with one mask
per class, such as G3_Mask.tif.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pandas as pd
import tifffile
from loguru import logger

from g2l_plugin.datasets.cutting import (
    Region,
    Rules,
    Tile,
    choose_tiles,
    count_pixels,
    cut_regions,
)
from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.datasets.splits import leave_out_rare, split_patients
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides import slide as slide_lib

_SOURCE = (
    "the archives of https://aggc22.grand-challenge.org/Data, unpacked: folders such as "
    "Subset1_Train_image with Subset1_Train_1.tiff, and Subset1_Train_annotation with "
    "Subset1_Train_1/G3_Mask.tif"
)
_LABELS = ("G3", "G4", "G5", "Normal", "Stroma")
_NAME = re.compile(r"(?P<case>(?P<subset>Subset\d)_(?P<set>Train|Test)_\d+)(?:_(?P<scanner>\w+))?")
_TARGET_MPP = 0.5
_MPP_AT_20X = 0.5
_PLAUSIBLE_MPP = (0.1, 2.0)
"""Outside this range the metadata is wrong: some software writes 72 dpi by default (352.8 mpp)."""

_SAME_SHAPE = 0.01
"""Largest relative difference between the aspect ratios of a slide and its mask."""

_PART_ROWS = 256
"""Rows of an uncompressed mask to read at a time."""


def prepare(
    download: Path,
    output: Path,
    size: int = 256,
    min_purity: float = 0.75,
    max_tiles: int = 100,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Cuts tiles of a single class at 0.5 microns per pixel, on a grid without overlap.

    The root of the manifest's paths is `output`. In addition to patient, slide and centre (one
    hospital), the manifest has the columns scanner and subset. A specimen of subset 3 is one
    patient under all its scanners. If the download contains the annotations of the test set, that
    set is the test split and val is drawn from the training set by patient. Otherwise all three
    splits are drawn.

    Args:
        download: Folder with the unpacked archives of one or more subsets.
        output: Folder for `tiles/` and manifest.csv. An interrupted run continues there.
        size: Side of the tiles, in pixels.
        min_purity: Smallest share of a tile that its class must cover, 0 to 1.
        max_tiles: Largest number of tiles per class and slide, chosen at random.
        seed: Seed of that choice and of the splits.
        workers: Number of processes; None uses one per CPU core.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, or too many slides cannot be read.
    """
    regions = _list_regions(download)
    rules = Rules(size, min_purity, max_tiles, seed)
    table = cut_regions(read_tiles, regions, rules, output, workers)
    return write_table(output / "manifest.csv", _split(table, seed))


def read_tiles(region: Region, rules: Rules) -> Iterator[Tile]:
    """Reads the tiles of a slide.

    Raises:
        UserError: The slide or a mask cannot be read, or their aspect ratios differ.
    """
    size = (rules.size, rules.size)
    with slide_lib.open_slide(region.image) as slide:
        mpp = _mpp(slide, region.image)
        plan = slide_lib.plan_reads(slide, region.image, mpp, _TARGET_MPP, size)
        (width, height), (step_x, step_y) = slide.dimensions, plan.level0_size
        grid = height // step_y, width // step_x
        if not all(grid):
            return
        shares = {
            label: mask_shares(path, (width, height), plan.level0_size, grid)
            for label, path in region.masks.items()
        }
        for row, column, label in choose_tiles(shares, region, rules):
            x, y = column * step_x, row * step_y
            try:
                pixels = slide_lib.read_tile(slide, plan, x, y, size)
            except openslide.OpenSlideError as error:
                raise UserError(f"{region.image} is damaged ({in_one_line(error)})") from error
            yield x, y, label, pixels.transpose(1, 2, 0)


def mask_shares(
    path: Path, extent: tuple[int, int], step: tuple[int, int], grid: tuple[int, int]
) -> np.ndarray:
    """Computes the share of each tile that a mask marks.

    The mask is read in parts, because a whole one can have 10 GB.

    Args:
        path: The mask, a TIFF file; pixels other than 0 are marked.
        extent: Width and height of the slide, in pixels of level 0.
        step: Width and height of a tile, in pixels of level 0.
        grid: Number of rows and of columns of tiles.

    Returns:
        The shares, float (rows, columns).

    Raises:
        UserError: The mask cannot be read, or its aspect ratio is not the slide's.
    """
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            height, width = page.shape[:2]
            scales = extent[1] / height, extent[0] / width
            if abs(scales[0] / scales[1] - 1) > _SAME_SHAPE:
                raise UserError(f"{path} has another aspect ratio than its slide")
            # One more row and column, for pixels beyond the grid.
            counts = np.zeros((grid[0] + 1, grid[1] + 1), np.int64)
            rows, columns = (
                np.minimum(((np.arange(length) + 0.5) * scale / tile).astype(int), last)
                for length, scale, tile, last in zip(
                    (height, width), scales, step[::-1], grid, strict=True
                )
            )
            for top, left, marked in _read_parts(path, page):
                bottom, right = top + marked.shape[0], left + marked.shape[1]
                count_pixels(marked, rows[top:bottom], columns[left:right], counts)
    except UserError:
        raise
    except Exception as error:  # decoders raise many types
        raise UserError(f"{path} cannot be read ({in_one_line(error)}).") from error
    pixels = (np.bincount(rows, minlength=grid[0] + 1), np.bincount(columns, minlength=grid[1] + 1))
    return counts[:-1, :-1] / np.maximum(np.outer(*pixels)[:-1, :-1], 1)


def _read_parts(path: Path, page: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields top, left and marked pixels, bool (h, w), of each part of a mask with any."""
    if page.is_memmappable:
        whole = tifffile.memmap(path, page=0, mode="r").reshape(*page.shape[:2], -1)
        for top in range(0, len(whole), _PART_ROWS):
            marked = np.asarray(whole[top : top + _PART_ROWS].any(axis=-1))
            if marked.any():
                yield top, 0, marked
        return
    for data, index, shape in page.segments():
        if data is not None and data.any():
            yield index[2], index[3], data[0, : shape[1], : shape[2]].any(axis=-1)


def _mpp(slide: openslide.OpenSlide, path: Path) -> float:
    mpp = slide_lib.slide_mpp(slide, path, _MPP_AT_20X)
    least, most = _PLAUSIBLE_MPP
    return mpp if least <= mpp <= most else _MPP_AT_20X


def _list_regions(download: Path) -> list[Region]:
    if not download.is_dir():
        raise UserError(f"The folder {download} does not exist. Expected {_SOURCE}.")
    slides = {path.stem: path for path in sorted(download.rglob("Subset*.tif*")) if path.is_file()}
    slides = {name: path for name, path in slides.items() if _NAME.fullmatch(name)}
    masks: dict[str, dict[str, Path]] = {}
    for path in sorted(download.rglob("*_Mask.tif*")):
        if (label := path.stem.removesuffix("_Mask")) in _LABELS:
            masks.setdefault(path.parent.name, {})[label] = path
    _check_parts(download, set(slides), set(masks))
    if without := sorted(name for name in slides.keys() - masks.keys() if "_Train_" in name):
        logger.warning(f"{len(without):,} slides have no annotations. The first is {without[0]}.")
    regions = []
    for name in sorted(slides.keys() & masks.keys()):
        match = _NAME.fullmatch(name)
        facts = {
            "patient": match["case"],  # type: ignore[index]
            "slide": name,
            "centre": "National University Hospital",
            "scanner": match["scanner"] or "Akoya",  # type: ignore[index]
            "subset": match["subset"],  # type: ignore[index]
        }
        regions.append(Region(name, slides[name], masks[name], facts))
    return regions


def _check_parts(download: Path, slides: set[str], masks: set[str]) -> None:
    """Checks that each subset of the training set has both slides and annotations."""
    prefixes = {name[: len("Subset1_Train")] for name in slides | masks if "_Train_" in name}
    if not prefixes:
        raise UserError(f"No slides of a training set in {download}. Expected {_SOURCE}.")
    for prefix in sorted(prefixes):
        for names, part in ((slides, "image"), (masks, "annotation")):
            if not any(name.startswith(f"{prefix}_") for name in names):
                raise UserError(
                    f"{prefix}_{part} is missing in {download} or empty. Expected {_SOURCE}."
                )


def _split(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    official = table["slide"].str.contains("_Test_")
    if not official.any():
        table = leave_out_rare(table)
        return table.assign(split=split_patients(table["label"], table["patient"], seed))
    train = leave_out_rare(table[~official], 2)
    train["split"] = split_patients(train["label"], train["patient"], seed, ("train", "val"))
    test = table[official & table["label"].isin(train["label"])].assign(split="test")
    return pd.concat([train, test], ignore_index=True)
