"""A whole slide at low resolution, from which tissue is found and thumbnails are drawn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import Image

from g2l_plugin.slides.proof import prove
from g2l_plugin.slides.slide import (
    ReadPlan,
    SlideError,
    max_reduction,
    open_for,
    open_slide,
    paste_on_white,
)
from g2l_plugin.slides.tiff import TiffSlide

_STRIP_PIXELS = 1 << 24
"""Pixels of the slide read at a time: 64 MiB."""

_MIN_PART = 16
"""A part whose longer side is at most this many pixels of the overview is not divided further."""

_Part = tuple[int, int, int, int]
"""Left, upper, right and lower edge of a part of an overview, in its pixels."""


def read_overview(
    path: str | Path, mpp: float, target_mpp: float, reader: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole slide at low resolution, one strip at a time.

    A slide without a pyramid may have 10 GB of pixels, so only one strip is in memory. Where the
    slide is damaged, smaller and smaller parts are read.

    Args:
        path: The slide.
        mpp: Microns per pixel of its level 0.
        target_mpp: Microns per pixel of the overview; a small slide is not upsampled.
        reader: As in `TileGrid`.

    Returns:
        The overview, uint8 RGB (height, width, 3), white where it cannot be read; and a mask of the
        pixels that cannot be read, bool (height, width).

    Raises:
        SlideError: The slide cannot be opened, or no part of it can be read.
    """
    scale = max(target_mpp / mpp, 1.0)
    with open_slide(path) as slide:
        best = level = slide.get_best_level_for_downsample(scale)
    pixels, unreadable = _read_level(path, scale, best, reader)
    while level and _is_empty(pixels):
        # A slide of glass has dust: one colour means that a tool did not write this level.
        level -= 1
        if not _is_empty(_read_level(path, scale, level, reader)[0]):
            raise SlideError(
                "damaged",
                f"Level {best} of slide {path} is empty, but level {level} is not. Write its "
                "pyramid again, or move it away.",
            )
    return pixels, unreadable


def _is_empty(pixels: np.ndarray) -> bool:
    """Whether an overview (height, width, 3) has a single colour."""
    return all(np.ptp(channel) == 0 for channel in cv2.split(pixels))


def _read_level(
    path: str | Path, scale: float, level: int, reader: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an overview, smaller than level 0 by `scale`, from a level of the pyramid."""
    with open_slide(path) as pyramid:
        width, height = (max(round(length / scale), 1) for length in pyramid.dimensions)
        level_size = pyramid.level_dimensions[level]
        plan = _plan_part(pyramid, level)
        sides = (np.linspace(0, length, 5)[1:-1] for length in pyramid.dimensions)
        grid = np.stack(np.meshgrid(*sides), -1)  # (3, 3, 2)
    if reader == "auto":
        plan, _ = prove(path, plan, grid.reshape(-1, 2).astype(int), exact=False)
    slide = open_for(path, plan)
    step = (level_size[0] / width, level_size[1] / height)
    rows = max(int(_STRIP_PIXELS / (step[0] * step[1] * width)), 1)
    pixels = np.full((height, width, 3), 255, np.uint8)
    unreadable = np.zeros((height, width), bool)
    parts = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)][::-1]
    last_error = None
    while parts:
        part = parts.pop()
        x0, y0, x1, y1 = part
        try:
            pixels[y0:y1, x0:x1] = _read_part(slide, plan, step, part)
        except openslide.OpenSlideError as error:
            last_error = error
            # OpenSlide refuses every later read through a handle that failed once.
            slide.close()
            slide = open_for(path, plan)
            if max(x1 - x0, y1 - y0) > _MIN_PART:
                parts += _divide(part)
            else:
                unreadable[y0:y1, x0:x1] = True
    slide.close()
    if unreadable.all():
        raise SlideError(
            "damaged",
            f"OpenSlide cannot read {path} ({last_error}). The file is damaged: move it away.",
        )
    return pixels, unreadable


def _plan_part(slide: openslide.OpenSlide, level: int) -> ReadPlan:
    """A plan for small regions of a level, by which its way of reading is chosen."""
    side = min(256, *slide.level_dimensions[level])
    downsample = slide.level_downsamples[level]
    level0_side = round(side * downsample)
    return ReadPlan(level, (side, side), (level0_side, level0_side), downsample=downsample)


def _read_part(
    slide: openslide.OpenSlide | TiffSlide, plan: ReadPlan, step: tuple[float, float], part: _Part
) -> np.ndarray:
    """Reads a part of an overview.

    Args:
        slide: The open slide.
        plan: The level to read, and the page that has it, if any.
        step: Pixels of that level per pixel of the overview, horizontally and vertically.
        part: The part.

    Returns:
        uint8 RGB (height, width, 3).
    """
    x0, y0, x1, y1 = part
    size = (x1 - x0, y1 - y0)
    left, top = round(x0 * step[0]), round(y0 * step[1])
    right, bottom = max(round(x1 * step[0]), left + 1), max(round(y1 * step[1]), top + 1)
    box: tuple[float, float, float, float] | None = None
    if isinstance(slide, TiffSlide):
        assert plan.page is not None
        # Whole squares of pixels are decoded as one; what of them is outside is cut off below.
        factor = max_reduction(min(step))
        x, y = left // factor * factor, top // factor * factor
        region_size = (-((x - right) // factor) * factor, -((y - bottom) // factor) * factor)
        image = Image.fromarray(slide.read(plan.page, (x, y), region_size, factor))
        factor = region_size[0] // image.width
        left, top, right, bottom = left - x, top - y, right - x, bottom - y
        box = (left / factor, top / factor, right / factor, bottom / factor)
    else:
        downsample = slide.level_downsamples[plan.level]
        corner = (round(left * downsample), round(top * downsample))
        region = slide.read_region(corner, plan.level, (right - left, bottom - top))
        image = paste_on_white(region)
    return np.asarray(image.resize(size, Image.Resampling.BOX, box=box))


def _divide(part: _Part) -> list[_Part]:
    """Divides a part into quarters, or into halves if it is one pixel wide or high."""
    x0, y0, x1, y1 = part
    xs, ys = sorted({x0, (x0 + x1) // 2, x1}), sorted({y0, (y0 + y1) // 2, y1})
    return [(a, c, b, d) for a, b in pairwise(xs) for c, d in pairwise(ys)]
