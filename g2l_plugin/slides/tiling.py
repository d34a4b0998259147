"""Tissue to tiles: a non-overlapping grid over one slide, without what is no use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image

from g2l_plugin.slides import slide as slide_lib
from g2l_plugin.slides import tissue
from g2l_plugin.slides.thumbnail import draw_thumbnail

_SQUARE = 8
"""Side of a square of tiles that follow each other in the table: they share compressed pixels."""

_MAX_INK = 0.05
"""A tile is left out when a larger share of it is ink."""


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """What makes a tile.

    Attributes:
        width: Tile width in pixels at `target_mpp`.
        height: Tile height in pixels at `target_mpp`.
        target_mpp: Microns per pixel of the tiles.
        overwrite_mpp: Microns per pixel of slides whose metadata has none.
        min_tissue: Least share of a tile's area that must be tissue, 0 to 1.
        min_sharpness: Least sharpness (`tissue.sharpness`) of a tile; 0 measures none.
    """

    width: int = 256
    height: int = 256
    target_mpp: float = 0.5
    overwrite_mpp: float | None = None
    min_tissue: float = 0.5
    min_sharpness: float = 0.1


@dataclasses.dataclass(frozen=True)
class SlideRecord:
    """What became of a slide.

    Attributes:
        problem: Why it cannot be used, as `SlideProblem`; "" when it can.
        message: The problem in a sentence.
        bytes: Size of the file when it was indexed.
        modified: When the file was last modified, in nanoseconds since 1970.
        quickhash: OpenSlide's hash of the slide's content, "" where it has none.
        width: Of level 0, in pixels.
        height: Of level 0, in pixels.
        mpp: Microns per pixel of level 0.
        mpp_by_hand: Whether that, or the want of it, is `overwrite_mpp` and not the slide's own.
        objective_power: As 20 or 40, where the metadata has it.
        plan: How its tiles are read.
        tiles: Tiles kept.
        little_tissue: Tiles with some tissue but less than asked for.
        ink: Tiles left out for ink.
        blurred: Tiles left out as out of focus.
        damaged: Tiles left out because they cannot be read.
    """

    problem: str = ""
    message: str = ""
    bytes: int = 0
    modified: int = 0
    quickhash: str = ""
    width: int = 0
    height: int = 0
    mpp: float = 0.0
    mpp_by_hand: bool = False
    objective_power: float | None = None
    plan: slide_lib.ReadPlan | None = None
    tiles: int = 0
    little_tissue: int = 0
    ink: int = 0
    blurred: int = 0
    damaged: int = 0


def index_slide(
    path: Path, grid: TileGrid
) -> tuple[SlideRecord, dict[str, np.ndarray], Image.Image]:
    """Lays the non-overlapping grid over a slide and keeps the tiles on tissue, without artefacts.

    Returns:
        The record; the tiles as columns x, y (int32, level 0), tissue and sharpness (float32, NaN
        where not measured); and the picture that shows them.

    Raises:
        SlideError: The slide cannot be opened or read, or its resolution is unknown or too coarse.
    """
    with slide_lib.open_slide(path) as slide:
        mpp = slide_lib.slide_mpp(slide, path, grid.overwrite_mpp)
        plan = slide_lib.plan_reads(slide, path, mpp, grid.target_mpp, (grid.width, grid.height))
        facts: dict[str, Any] = {
            "quickhash": slide.properties.get(openslide.PROPERTY_NAME_QUICKHASH1, ""),
            "width": slide.dimensions[0],
            "height": slide.dimensions[1],
            "mpp": mpp,
            "mpp_by_hand": not slide_lib.has_mpp(slide),
            "objective_power": slide_lib.objective_power(slide),
        }
        slide_size = slide.dimensions
    overview, unreadable = slide_lib.read_overview(path, mpp, tissue.OVERVIEW_MPP)
    columns, rows = (slide_size[axis] // plan.level0_size[axis] for axis in (0, 1))
    x, y = np.meshgrid(
        np.arange(columns) * plan.level0_size[0], np.arange(rows) * plan.level0_size[1]
    )
    xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    xy = xy[_square_by_square(columns, rows)]
    mask = tissue.tissue_mask(overview)
    share = _area_means(mask, xy, plan.level0_size, slide_size)
    ink = _area_means(tissue.ink_mask(overview), xy, plan.level0_size, slide_size)
    on_tissue = share >= grid.min_tissue
    inked = on_tissue & (ink > _MAX_INK)
    candidates = np.flatnonzero(on_tissue & ~inked)
    sharpness = np.full(len(xy), np.nan, np.float32)
    damaged = _area_means(unreadable, xy, plan.level0_size, slide_size) > 0.5
    if grid.min_sharpness > 0:
        sharpness[candidates], damaged[candidates] = _measure_focus(path, plan, mpp, xy[candidates])
    blurred = np.zeros(len(xy), bool)
    blurred[candidates] = sharpness[candidates] < grid.min_sharpness
    inked &= ~damaged
    kept = on_tissue & ~inked & ~blurred & ~damaged
    record = SlideRecord(
        **facts,
        plan=plan,
        tiles=int(kept.sum()),
        little_tissue=int(((share > 0) & ~on_tissue).sum()),
        ink=int(inked.sum()),
        blurred=int((blurred & ~damaged).sum()),
        damaged=int(damaged.sum()),
    )
    tiles = {
        "x": xy[kept, 0],
        "y": xy[kept, 1],
        "tissue": share[kept].astype(np.float32),
        "sharpness": sharpness[kept],
    }
    left_out = {"ink": xy[inked], "blurred": xy[blurred & ~damaged], "damaged": xy[damaged]}
    picture = draw_thumbnail(overview, mask, slide_size, plan.level0_size, xy[kept], left_out)
    return record, tiles, picture


def _square_by_square(columns: int, rows: int) -> np.ndarray:
    """Orders a grid in squares of 8 by 8, row by row within: near in the order is near in space."""
    row, column = np.divmod(np.arange(columns * rows), max(columns, 1))
    return np.lexsort([column, row, column // _SQUARE, row // _SQUARE])


def _measure_focus(
    path: Path, plan: slide_lib.ReadPlan, mpp: float, xy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sharpness (NaN where unreadable) and damage of tiles, float32 and bool (tiles,)."""
    values = np.full(len(xy), np.nan, np.float32)
    slide = slide_lib.open_slide(path)
    # Coarser reads are cheaper, and sharpness is measured at one resolution.
    level = slide.get_best_level_for_downsample(1.1 * tissue.FOCUS_MPP / mpp)
    downsample = slide.level_downsamples[level]
    width, height = (max(round(length / downsample), 1) for length in plan.level0_size)
    focus_plan = slide_lib.ReadPlan(level, (width, height), plan.level0_size)
    for number, (x, y) in enumerate(xy.tolist()):
        try:
            pixels = slide_lib.read_tile(slide, focus_plan, x, y, (width, height))
        except openslide.OpenSlideError:
            # OpenSlide refuses every later read through a handle that failed once.
            slide.close()
            slide = slide_lib.open_slide(path)
            continue
        values[number] = tissue.sharpness(pixels, mpp * downsample)
    slide.close()
    return values, np.isnan(values)


def _area_means(
    mask: np.ndarray, xy: np.ndarray, size: tuple[int, int], slide_size: tuple[int, int]
) -> np.ndarray:
    """Mean of a mask over each tile's area, by an integral image; float (tiles,)."""
    integral = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    scale = np.array([mask.shape[1] / slide_size[0], mask.shape[0] / slide_size[1]])
    limits = np.array([mask.shape[1], mask.shape[0]])
    start = np.minimum(np.floor(xy * scale).astype(int), limits - 1)
    stop = np.clip(np.ceil((xy + np.array(size)) * scale).astype(int), start + 1, limits)
    (x0, y0), (x1, y1) = start.T, stop.T
    total = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return total / ((x1 - x0) * (y1 - y0))
