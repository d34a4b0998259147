"""One whole slide: its resolution, and tiles read from it at a target resolution."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import openslide
import torch
from PIL import Image
from torch.nn import functional

from g2l_plugin.errors import UserError

_MPP_KEYS = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)

_SAME_SCALE = 0.02
"""Scales closer to 1 than this are read as they are: vendors round mpp (0.499, 0.5027)."""

_MAX_UPSAMPLING = 1.1
"""A slide may be coarser than the target by this factor before it is refused."""

_MPP_AT_1X = 10.0
"""Microns per pixel times objective power: 0.5 at 20x, 0.25 at 40x."""

_MAX_CONTRADICTION = 1.5
"""A resolution given by hand may differ from that of the objective by this factor."""

_STRIP_PIXELS = 1 << 24
"""Pixels read at a time for an overview: 64 MiB."""

_LEAST_PART = 16
"""Side of the smallest part of an overview that is tried, in its pixels."""

SlideProblem = Literal[
    "missing",
    "cannot be opened",
    "damaged",
    "no resolution",
    "wrong resolution",
    "too coarse",
    "incomplete",
    "crashes the reader",
]
"""Why a slide cannot be used."""


class SlideError(UserError):
    """A slide that cannot be used, and in a word or two why."""

    def __init__(self, problem: SlideProblem, message: str) -> None:
        """Initializes the error.

        Args:
            problem: For counting: the same words for the same problem.
            message: What was given, what was expected, what to do next.
        """
        super().__init__(message)
        self.problem = problem

    def __reduce__(self) -> tuple:
        # Errors travel between processes.
        return type(self), (self.problem, str(self))


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
        SlideError: The file is missing, or OpenSlide cannot read it.
    """
    try:
        return openslide.OpenSlide(str(path))
    except (openslide.OpenSlideError, OSError) as error:
        if not Path(path).is_file():
            raise SlideError("missing", f"Slide {path} does not exist.") from error
        raise SlideError(
            "cannot be opened",
            f"OpenSlide cannot open {path} ({error}). "
            "Check that the file is whole and in a format OpenSlide reads, or move it away.",
        ) from error


def slide_mpp(slide: openslide.OpenSlide, path: str | Path, overwrite_mpp: float | None) -> float:
    """Returns the microns per pixel of a slide's level 0.

    Args:
        slide: The open slide.
        path: Its path, for the error.
        overwrite_mpp: What to use when the slide's metadata has none (named as eva names it).

    Raises:
        SlideError: The metadata has no resolution and none was given, or the one that was given
            contradicts the power of the objective.
    """
    if has_mpp(slide):
        return sum(float(slide.properties[key]) for key in _MPP_KEYS) / 2
    power = objective_power(slide)
    if overwrite_mpp is None:
        expected = f"{_MPP_AT_1X / power:g}" if power else "0.5 for a 20x scan, 0.25 for 40x"
        raise SlideError(
            "no resolution",
            f"Slide {path} has no microns per pixel in its metadata. Give it by hand: "
            f"OVERWRITE_MPP (`overwrite_mpp`, --overwrite-mpp), {expected}.",
        )
    if power and abs(math.log(overwrite_mpp * power / _MPP_AT_1X)) > math.log(_MAX_CONTRADICTION):
        raise SlideError(
            "wrong resolution",
            f"Slide {path} was scanned at {power:g}x, about {_MPP_AT_1X / power:g} microns per "
            f"pixel: {overwrite_mpp:g} given by hand contradicts it. Correct OVERWRITE_MPP "
            "(`overwrite_mpp`, --overwrite-mpp).",
        )
    return overwrite_mpp


def has_mpp(slide: openslide.OpenSlide) -> bool:
    """Tells whether the metadata has the microns per pixel."""
    return all(slide.properties.get(key) for key in _MPP_KEYS)


def objective_power(slide: openslide.OpenSlide) -> float | None:
    """Returns the magnification of the scanner's objective, where the metadata has it."""
    try:
        power = float(slide.properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER])
    except (KeyError, ValueError):
        return None
    return power if power > 0 else None


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
        SlideError: The slide is coarser than the target: its tiles would be blown up.
    """
    downsample = target_mpp / mpp
    if downsample < 1 / _MAX_UPSAMPLING:
        raise SlideError(
            "too coarse",
            f"Slide {path} was scanned at {mpp:.3f} microns per pixel, coarser than the "
            f"{target_mpp:.3f} asked for. Leave it out, or raise `target_mpp`.",
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
        The tile as uint8 RGB (3, height, width); where the slide holds no pixels it is white. What
        is read finer than the target is low-pass filtered on the way down, so nothing aliases.

    Raises:
        openslide.OpenSlideError: The slide is damaged there.
    """
    region = slide.read_region((x, y), plan.level, plan.read_size)
    pixels = np.asarray(region)
    if pixels.view("<u4").min() < 0xFF000000:  # alpha is the highest byte: some is not opaque
        # First, or the colour of what is no pixel would bleed into its neighbours.
        pixels = np.asarray(_on_white(region))
    tile = pixels.transpose(2, 0, 1)
    if region.size != size:
        # Pillow gives the same to one grey level, in four times the time.
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        resized = functional.interpolate(planes, size[::-1], mode="bicubic", antialias=True)
        tile = resized[0].numpy()
    return np.ascontiguousarray(tile[:3])


def read_overview(path: str | Path, mpp: float, target_mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole slide at low resolution, a strip at a time.

    A slide without a pyramid may hold 10 GB of pixels: never more than a strip is in memory. Where
    the slide is damaged, smaller and smaller parts are tried.

    Args:
        path: The slide.
        mpp: Microns per pixel of its level 0.
        target_mpp: Microns per pixel of the overview; a small slide is not blown up.

    Returns:
        uint8 RGB (height, width, 3), white where it cannot be read; and where that is, bool
        (height, width).

    Raises:
        SlideError: The slide cannot be opened, or nothing of it can be read.
    """
    slide = open_slide(path)
    scale = max(target_mpp / mpp, 1.0)
    level = slide.get_best_level_for_downsample(scale)
    width, height = (max(round(length / scale), 1) for length in slide.dimensions)
    steps = [a / b for a, b in zip(slide.level_dimensions[level], (width, height), strict=True)]
    rows = max(int(_STRIP_PIXELS / (steps[0] * steps[1] * width)), 1)
    pixels = np.full((height, width, 3), 255, np.uint8)
    unreadable = np.zeros((height, width), bool)
    parts = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)][::-1]
    error = None
    while parts:
        x0, y0, x1, y1 = parts.pop()
        start = [round(x0 * steps[0]), round(y0 * steps[1])]
        stop = [max(round(x1 * steps[0]), start[0] + 1), max(round(y1 * steps[1]), start[1] + 1)]
        left, top = (round(length * slide.level_downsamples[level]) for length in start)
        try:
            region = slide.read_region((left, top), level, (stop[0] - start[0], stop[1] - start[1]))
        except openslide.OpenSlideError as problem:
            error = problem
            # OpenSlide refuses every later read through a handle that failed once.
            slide.close()
            slide = open_slide(path)
            if max(x1 - x0, y1 - y0) > _LEAST_PART:
                xs, ys = sorted({x0, (x0 + x1) // 2, x1}), sorted({y0, (y0 + y1) // 2, y1})
                parts += [(a, c, b, d) for a, b in pairwise(xs) for c, d in pairwise(ys)]
            else:
                unreadable[y0:y1, x0:x1] = True
            continue
        part = _on_white(region).resize((x1 - x0, y1 - y0), Image.Resampling.BOX)
        pixels[y0:y1, x0:x1] = np.asarray(part)
    slide.close()
    if unreadable.all():
        raise SlideError(
            "damaged", f"OpenSlide cannot read {path} ({error}). The file is damaged: move it away."
        )
    return pixels, unreadable


def _on_white(region: Image.Image) -> Image.Image:
    image = Image.new("RGB", region.size, (255, 255, 255))
    image.paste(region, mask=region.getchannel("A"))
    return image
