"""One whole slide: its resolution, and tiles read from it at a target resolution."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from g2l_plugin.errors import UserError

_SAME_SCALE = 0.02
"""Scales closer to 1 than this are read as they are: vendors round mpp (0.499, 0.5027)."""

_MAX_UPSAMPLING = 1.1
"""A slide may be coarser than the target by this factor before it is refused."""


@dataclasses.dataclass(frozen=True)
class ReadPlan:
    """How to read one tile so that it covers its area at the target resolution.

    Attributes:
        level: The pyramid level to read from, never coarser than the target.
        read_size: Width and height to read, in pixels of that level.
        level0_size: Width and height of the tile's area, in pixels of level 0.
    """

    level: int
    read_size: tuple[int, int]
    level0_size: tuple[int, int]


def open_slide(path: str | Path) -> openslide.OpenSlide:
    """Opens a whole slide.

    Raises:
        UserError: The file is missing, or OpenSlide cannot read it.
    """
    if not Path(path).is_file():
        raise UserError(f"Slide {path} does not exist.")
    try:
        return openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        raise UserError(
            f"OpenSlide cannot open {path} ({error}). "
            "Check that the file is whole and in a format OpenSlide reads, or move it away."
        ) from error


def slide_mpp(slide: openslide.OpenSlide, path: str | Path, overwrite_mpp: float | None) -> float:
    """Returns the microns per pixel of a slide's level 0.

    Args:
        slide: The open slide.
        path: Its path, for the error.
        overwrite_mpp: What to use when the slide's metadata has none (named as eva names it).

    Raises:
        UserError: The metadata has no resolution and none was given.
    """
    x, y = (
        slide.properties.get(key)
        for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    if x and y:
        return (float(x) + float(y)) / 2
    if overwrite_mpp is None:
        raise UserError(
            f"Slide {path} has no microns per pixel in its metadata. Give it by hand: set "
            "`overwrite_mpp` of the dataset (OVERWRITE_MPP=0.5 for a 20x scan, 0.25 for 40x)."
        )
    return overwrite_mpp


def plan_reads(
    slide: openslide.OpenSlide,
    path: str | Path,
    mpp: float,
    target_mpp: float,
    size: tuple[int, int],
) -> ReadPlan:
    """Chooses the level to read tiles from and the size to read there.

    Args:
        slide: The open slide.
        path: Its path, for the error.
        mpp: Microns per pixel of its level 0.
        target_mpp: Microns per pixel that the tiles shall have.
        size: Width and height of the tiles, in pixels at the target resolution.

    Raises:
        UserError: The slide is coarser than the target: its tiles would be blown up.
    """
    downsample = target_mpp / mpp
    if downsample < 1 / _MAX_UPSAMPLING:
        raise UserError(
            f"Slide {path} was scanned at {mpp:.3f} microns per pixel, coarser than the "
            f"{target_mpp:.3f} asked for. Leave it out, or raise `target_mpp`."
        )
    level = slide.get_best_level_for_downsample(downsample * (1 + _SAME_SCALE))
    scale = downsample / slide.level_downsamples[level]
    if abs(scale - 1) < _SAME_SCALE:
        scale = 1.0
    level0_scale = scale * slide.level_downsamples[level]
    return ReadPlan(
        level=level,
        read_size=(round(size[0] * scale), round(size[1] * scale)),
        level0_size=(round(size[0] * level0_scale), round(size[1] * level0_scale)),
    )


def read_tile(
    slide: openslide.OpenSlide, plan: ReadPlan, x: int, y: int, size: tuple[int, int]
) -> np.ndarray:
    """Reads the tile whose upper left corner is at (x, y) in pixels of level 0.

    Args:
        slide: The open slide.
        plan: What `plan_reads` gave for this slide.
        x: Left edge, in pixels of level 0.
        y: Upper edge, in pixels of level 0.
        size: Width and height of the tile.

    Returns:
        The tile as uint8 RGB (height, width, 3); where the slide holds no pixels it is white.
    """
    region = slide.read_region((x, y), plan.level, plan.read_size)
    tile = Image.new("RGB", region.size, (255, 255, 255))
    tile.paste(region, mask=region.getchannel("A"))
    if tile.size != size:
        tile = tile.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(tile)
