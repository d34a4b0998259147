"""The tiles of one slide: a non-overlapping grid over its tissue, without artefacts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import Image

from g2l_plugin.errors import UserError
from g2l_plugin.slides import tissue
from g2l_plugin.slides.overview import read_overview
from g2l_plugin.slides.proof import prove
from g2l_plugin.slides.slide import (
    ReadPlan,
    SlideError,
    has_mpp,
    max_reduction,
    objective_power,
    open_for,
    open_slide,
    plan_reads,
    read_tile,
    slide_mpp,
)
from g2l_plugin.slides.squares import number_squares
from g2l_plugin.slides.thumbnail import draw_thumbnail
from g2l_plugin.slides.tiff import DecodedTiles

_FOCUS_CACHE_BYTES = 128 << 20
"""Decoded pixels that are kept while sharpness is measured row by row: two rows of compressed tiles
of the widest slide, so that each is decoded once."""

READERS = ("auto", "openslide")
"""What may read tiles, see `TileGrid`."""

_MAX_INK = 0.05
"""A tile is left out if a larger share of its area is ink."""


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """The size and resolution of tiles, and which tiles are kept.

    Attributes:
        width: Tile width in pixels at `target_mpp`.
        height: Tile height in pixels at `target_mpp`.
        target_mpp: Microns per pixel of the tiles.
        overwrite_mpp: Microns per pixel of slides of which neither list nor metadata has them.
        min_tissue: Minimum share of a tile's area that is tissue, 0 to 1.
        min_sharpness: Minimum sharpness (`tissue.sharpness`) of a tile; 0 does not measure it.
        reader: `auto` decodes a slide's own tiles where that is proven to give OpenSlide's pixels;
            `openslide` never does.
    """

    width: int = 256
    height: int = 256
    target_mpp: float = 0.5
    overwrite_mpp: float | None = None
    min_tissue: float = 0.5
    min_sharpness: float = 0.1
    reader: str = "auto"

    def __post_init__(self) -> None:
        """Checks the reader.

        Raises:
            UserError: There is no such reader.
        """
        if self.reader not in READERS:
            raise UserError(
                f"`reader` (READER) is {self.reader!r}. Expected {' or '.join(READERS)}."
            )


@dataclasses.dataclass(frozen=True)
class SlideRecord:
    """The outcome of indexing one slide.

    Attributes:
        problem: Why the slide cannot be used, as `SlideProblem` or "duplicate"; "" if it can.
        message: The problem, or why there are no tiles, in one sentence.
        bytes: Size of the file when it was indexed.
        modified: When the file was last modified, in nanoseconds since 1970.
        quickhash: OpenSlide's hash of the slide's lowest level and metadata, or "".
        sha256: Hash of the file's bytes, or "" if no other slide of the cohort may be the same.
        width: Width of level 0 in pixels.
        height: Height of level 0 in pixels.
        mpp: Microns per pixel of level 0.
        mpp_overwritten: Whether neither the list nor the metadata has a plausible mpp, so that
            `overwrite_mpp` decides.
        objective_power: Magnification of the objective, e.g. 20 or 40; None if unknown.
        plan: How the slide's tiles are read.
        reader: "tiff" if its tiles are decoded from its file, else why OpenSlide reads them.
        tiles: Tiles kept.
        little_tissue: Tiles left out because they have some tissue, but less than `min_tissue`.
        ink: Tiles left out because of ink.
        blurred: Tiles left out because they are out of focus.
        damaged: Tiles left out because they cannot be read.
    """

    problem: str = ""
    message: str = ""
    bytes: int = 0
    modified: int = 0
    quickhash: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    mpp: float = 0.0
    mpp_overwritten: bool = False
    objective_power: float | None = None
    plan: ReadPlan | None = None
    reader: str = ""
    tiles: int = 0
    little_tissue: int = 0
    ink: int = 0
    blurred: int = 0
    damaged: int = 0

    @property
    def is_final(self) -> bool:
        """Whether all of the slide was read; else the cause may pass: rights, network, memory."""
        return not self.problem and not self.damaged

    @property
    def outcome(self) -> str:
        """The problem, "no tissue" or "used"."""
        return self.problem or ("used" if self.tiles else "no tissue")


def index_slide(
    path: Path, grid: TileGrid, mpp: float | None = None
) -> tuple[SlideRecord, dict[str, np.ndarray], Image.Image]:
    """Lays a non-overlapping grid over a slide and keeps the tiles on tissue without artefacts.

    Args:
        path: The slide.
        grid: Size and resolution of the tiles, and which are kept.
        mpp: Microns per pixel of its level 0; None takes what its metadata says.

    Returns:
        The record; the tiles as columns x, y (int32, level 0), tissue and sharpness (float32, NaN
        if not measured); and the thumbnail that shows them.

    Raises:
        SlideError: The slide cannot be opened or read, its resolution is unknown or too coarse, or
            it is smaller than a tile or has no colour.
    """
    with open_slide(path) as slide:
        mpp_overwritten = mpp is None and not has_mpp(slide)
        mpp = mpp or slide_mpp(slide, path, grid.overwrite_mpp)
        plan = plan_reads(slide, path, mpp, grid.target_mpp, (grid.width, grid.height))
        slide_size = slide.dimensions
        record = SlideRecord(
            quickhash=slide.properties.get(openslide.PROPERTY_NAME_QUICKHASH1, ""),
            width=slide_size[0],
            height=slide_size[1],
            mpp=mpp,
            mpp_overwritten=mpp_overwritten,
            objective_power=objective_power(slide),
            plan=plan,
        )
    if min(np.array(slide_size) // plan.level0_size) == 0:
        raise SlideError(
            "too small",
            f"Slide {path} has {slide_size[0]} x {slide_size[1]} pixels, fewer than a tile's "
            f"{plan.level0_size[0]} x {plan.level0_size[1]}. Leave it out, or make smaller tiles.",
        )
    overview, unreadable = read_overview(path, mpp, tissue.OVERVIEW_MPP, grid.reader)
    if tissue.is_grey(overview):
        raise SlideError(
            "no colour",
            f"Slide {path} is grey, and tissue is found by its colour. Leave it out, or scan it in "
            "colour.",
        )
    xy = _grid_corners(slide_size, plan.level0_size)
    hsv = tissue.to_hsv(overview)
    mask = tissue.tissue_mask(hsv)
    share = _area_means(mask, xy, plan.level0_size, slide_size)
    ink = _area_means(tissue.ink_mask(hsv), xy, plan.level0_size, slide_size)
    on_tissue = share >= grid.min_tissue
    inked = on_tissue & (ink > _MAX_INK)
    candidates = np.flatnonzero(on_tissue & ~inked)
    sharpness = np.full(len(xy), np.nan, np.float32)
    damaged = _area_means(unreadable, xy, plan.level0_size, slide_size) > 0.5
    reader = "openslide: READER"
    if grid.reader == "auto":
        plan, reason = prove(path, plan, xy[candidates])
        reader = f"openslide: {reason}" if reason else "tiff"
    if grid.min_sharpness > 0:
        sharpness[candidates] = _measure_sharpness(path, plan, mpp, xy[candidates], grid.reader)
        damaged[candidates] = np.isnan(sharpness[candidates])
    # Each tile that is left out counts once: as damaged before inked or blurred.
    inked &= ~damaged
    blurred = (sharpness < grid.min_sharpness) & ~damaged
    kept = on_tissue & ~inked & ~blurred & ~damaged
    record = dataclasses.replace(
        record,
        plan=plan,
        reader=reader,
        tiles=int(kept.sum()),
        little_tissue=int(((share > 0) & ~on_tissue).sum()),
        ink=int(inked.sum()),
        blurred=int(blurred.sum()),
        damaged=int(damaged.sum()),
    )
    if not record.tiles:
        record = dataclasses.replace(record, message=_explain_no_tiles(path, record))
    listed = np.flatnonzero(kept)[_square_by_square(xy[kept], plan)]
    tiles = {
        "x": xy[listed, 0],
        "y": xy[listed, 1],
        "tissue": share[listed].astype(np.float32),
        "sharpness": sharpness[listed],
    }
    left_out = {"ink": xy[inked], "blurred": xy[blurred], "damaged": xy[damaged]}
    thumbnail = draw_thumbnail(overview, mask, slide_size, plan.level0_size, xy[kept], left_out)
    return record, tiles, thumbnail


def _explain_no_tiles(path: Path, record: SlideRecord) -> str:
    """Says for what reasons no tile of a slide is kept."""
    reasons = {
        "little tissue": record.little_tissue,
        "ink, or another stain than H&E": record.ink,
        "blurred": record.blurred,
        "damaged": record.damaged,
    }
    counts = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
    why = (
        f"its tiles are left out: {', '.join(counts)}"
        if counts
        else "none of it has the colour of tissue"
    )
    return f"Slide {path} has no tile on tissue: {why}."


def _grid_corners(slide_size: tuple[int, int], tile_size: tuple[int, int]) -> np.ndarray:
    """Upper left corners of the tiles that fit into a slide, row by row, int32 (tiles, 2)."""
    columns, rows = (slide_size[axis] // tile_size[axis] for axis in (0, 1))
    x, y = np.meshgrid(np.arange(columns) * tile_size[0], np.arange(rows) * tile_size[1])
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)


def _square_by_square(xy: np.ndarray, plan: ReadPlan) -> np.ndarray:
    """Orders tiles by squares, and row by row within each, so that neighbours are close."""
    square = number_squares(xy, plan)
    return np.lexsort([xy[:, 0], xy[:, 1], square[:, 0], square[:, 1]])


def _measure_sharpness(
    path: Path, plan: ReadPlan, mpp: float, xy: np.ndarray, reader: str
) -> np.ndarray:
    """Measures the sharpness of tiles, float32 (tiles,), NaN for tiles that cannot be read."""
    values = np.full(len(xy), np.nan, np.float32)
    with open_slide(path) as slide:
        # Sharpness is measured at FOCUS_MPP, and reading from a coarser level is faster.
        level = slide.get_best_level_for_downsample(1.1 * tissue.FOCUS_MPP / mpp)
        downsample = slide.level_downsamples[level]
    focus = ReadPlan(
        level, _divide(plan.level0_size, downsample), plan.level0_size, downsample=downsample
    )
    if reader == "auto":
        reduction = max_reduction(tissue.FOCUS_MPP / (mpp * downsample))
        width, height = _divide(focus.read_size, reduction)
        reduced = dataclasses.replace(
            focus, read_size=(width * reduction, height * reduction), reduction=reduction
        )
        reduced, reason = prove(path, reduced, xy, exact=False)
        focus = focus if reason else reduced
    size = _divide(focus.read_size, focus.reduction)

    cache = DecodedTiles(_FOCUS_CACHE_BYTES)
    pixels = np.empty((3, size[1], size[0]), np.uint8)
    handle = open_for(path, focus, cache)
    for number in np.lexsort(xy.T).tolist():
        x, y = xy[number].tolist()
        try:
            read_tile(handle, focus, x, y, size, pixels)
        except openslide.OpenSlideError:
            # OpenSlide refuses every later read through a handle that failed once.
            handle.close()
            handle = open_for(path, focus, cache)
            continue
        values[number] = tissue.sharpness(pixels, mpp * downsample * focus.reduction)
    handle.close()
    return values


def _divide(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Divides width and height, to at least a pixel."""
    width, height = (max(round(length / factor), 1) for length in size)
    return width, height


def _area_means(
    mask: np.ndarray, xy: np.ndarray, size: tuple[int, int], slide_size: tuple[int, int]
) -> np.ndarray:
    """Averages a mask over the area of each tile, with an integral image.

    Args:
        mask: The mask of the whole slide at any resolution, bool (height, width).
        xy: Upper left corners of the tiles in pixels of level 0, (tiles, 2).
        size: Width and height of a tile in pixels of level 0.
        slide_size: Width and height of the slide in pixels of level 0.

    Returns:
        The means, float (tiles,).
    """
    integral = cv2.integral(mask.view(np.uint8))  # int32 (height + 1, width + 1)
    scale = np.array([mask.shape[1] / slide_size[0], mask.shape[0] / slide_size[1]])
    limits = np.array([mask.shape[1], mask.shape[0]])
    start = np.minimum(np.floor(xy * scale).astype(int), limits - 1)
    stop = np.clip(np.ceil((xy + np.array(size)) * scale).astype(int), start + 1, limits)
    (x0, y0), (x1, y1) = start.T, stop.T
    total = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return total / ((x1 - x0) * (y1 - y0))
