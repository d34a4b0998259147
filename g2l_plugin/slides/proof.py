"""Proof that decoding a slide's own tiles gives the pixels that OpenSlide gives."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import openslide

from g2l_plugin.slides.slide import ReadPlan, open_slide, read_region
from g2l_plugin.slides.tiff import TiffSlide, Unsupported

_TILES = 8
"""Tiles that are read both ways."""

_MAX_DIFFERENCE = 2
"""Largest difference of a pixel at full size, in grey levels: the rounding of YCbCr to RGB. JPEG
tiles are equal to the bit."""

_MAX_SHIFTED = 8.0
"""Largest mean difference where half a pixel is allowed for, in grey levels. Two tiles of tissue
that show different places differ by 30 and more."""

_MAX_MEAN_DIFFERENCE = 4.0
"""Largest mean difference between a tile decoded at a smaller size and the mean of its pixels, in
grey levels. Real tissue at half size has 0.2 as JPEG and 2 as JPEG 2000 (docs/reading.md)."""


def prove(
    path: str | Path, plan: ReadPlan, xy: np.ndarray, exact: bool = True
) -> tuple[ReadPlan, str]:
    """Decides whether a slide's tiles are decoded from its file.

    Args:
        path: The slide.
        plan: How OpenSlide reads its tiles.
        xy: Upper left corners of its tiles in pixels of level 0, (tiles, 2).
        exact: Whether every pixel must be the same. Otherwise tiles may lie a fraction of a pixel
            off: OpenSlide interpolates where a corner is between two pixels of the level.

    Returns:
        The plan, with a page and the size of the file's tiles if some of the tiles, read both ways,
        are the same; and why it has none, or "".
    """
    if not len(xy):
        return plan, "no tiles"
    try:
        with contextlib.ExitStack() as stack:
            tiff = stack.enter_context(TiffSlide(path))
            slide = stack.enter_context(open_slide(path))
            page = tiff.find_page(slide.level_dimensions[plan.level])
            if (
                tiff.has_holes(page)
                and slide.properties[openslide.PROPERTY_NAME_VENDOR] == "aperio"
            ):
                return plan, "tiles are left out, which OpenSlide takes from other levels"
            direct = dataclasses.replace(plan, page=page, file_tile=tiff.tile_size(page))
            readable = False
            for x, y in xy[np.unique(np.linspace(0, len(xy) - 1, _TILES).astype(int))].tolist():
                try:
                    expected = read_region(slide, (x, y), plan)[:, :, :3]
                except openslide.OpenSlideError:
                    expected = None
                    slide = stack.enter_context(open_slide(path))  # the other refuses every read
                readable |= _is_same(expected, tiff, direct, x, y, exact)
    except Unsupported as reason:
        return plan, str(reason)
    except Exception as error:  # a malformed file raises any error in the library that parses it
        return plan, f"the file cannot be parsed ({error!r})"
    return (direct, "") if readable else (plan, "none of the tiles tried can be read")


def _is_same(
    expected: np.ndarray | None, tiff: TiffSlide, plan: ReadPlan, x: int, y: int, exact: bool
) -> bool:
    """Compares a tile with what OpenSlide reads; returns whether both could read it.

    Raises:
        Unsupported: The tile differs.
    """
    assert plan.page is not None
    corner = plan.on_level(x, y)
    try:
        pixels = tiff.read(plan.page, corner, plan.read_size)
        reduced = tiff.read(plan.page, corner, plan.read_size, plan.reduction)
    except openslide.OpenSlideError as error:
        if expected is None:
            return False
        raise Unsupported(
            f"OpenSlide reads a tile at ({x}, {y}) that is damaged: {error}"
        ) from None
    if expected is None:
        raise Unsupported(f"OpenSlide cannot read a tile at ({x}, {y})")
    differences = np.abs(pixels.astype(np.int16) - expected)
    difference, limit = (
        (differences.max(), _MAX_DIFFERENCE) if exact else (differences.mean(), _MAX_SHIFTED)
    )
    if difference > limit:
        by = f"by up to {difference}" if exact else f"by {difference:.1f}"
        raise Unsupported(f"a tile at ({x}, {y}) differs from OpenSlide's {by} grey levels")
    factor = plan.read_size[0] // reduced.shape[1]
    shift = factor - 1 if tiff.is_jpeg2000(plan.page) else 0
    mean = float(np.abs(reduced - _mean_pixels(pixels, factor, shift)).mean())
    if mean > _MAX_MEAN_DIFFERENCE:
        raise Unsupported(
            f"a tile at ({x}, {y}) decoded at 1/{factor} of its size differs by {mean:.1f} grey "
            "levels from the mean of its pixels"
        )
    return True


def _mean_pixels(pixels: np.ndarray, factor: int, shift: int) -> np.ndarray:
    """Averages squares of pixels, (height, width, 3) to (height / factor, width / factor, 3).

    Args:
        pixels: The pixels.
        factor: Side of a square.
        shift: The squares lie half as many pixels to the upper left: the pixels of a resolution
            level of JPEG 2000 lie on the first of their square, and not in its middle.
    """
    shifted = pixels.astype(np.float32) + np.roll(pixels, (shift, shift), (0, 1))
    height, width = (length // factor for length in pixels.shape[:2])
    return shifted.reshape(height, factor, width, factor, 3).mean((1, 3)) / 2
