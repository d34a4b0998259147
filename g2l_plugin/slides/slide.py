"""One whole slide: its resolution, and tiles read from it at a target resolution."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import openslide
import torch
from PIL import Image
from torch.nn import functional

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.tiff import DecodedTiles, TiffSlide

_MPP_KEYS = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)

_PLAUSIBLE_MPP = (0.08, 1.25)
"""Scanners' objectives are 10x to 100x, which is 1 to 0.1 microns per pixel, here with a quarter to
spare. What lies outside is a default of software (72 dpi, one pixel per millimetre) or a mistake in
the unit (tenfold, inch for centimetre)."""

_MAX_STRETCH = 1.05
"""A pixel whose sides differ by more than this factor would show cells stretched."""

_SAME_SCALE = 0.02
"""Scales closer to 1 than this are not resampled: vendors round mpp (0.499, 0.5027)."""

_MAX_HALVINGS = 3
"""JPEG is decoded at 1/2, 1/4 or 1/8 of its size."""

_MAX_UPSAMPLING = 1.1
"""A slide that is coarser than the target by more than this factor is refused."""

_MPP_AT_1X = 10.0
"""Microns per pixel times objective power: 0.5 at 20x, 0.25 at 40x."""

_MAX_CONTRADICTION = 1.5
"""`overwrite_mpp` may differ by this factor from the resolution that the objective implies."""

_PASSING_ERRORS = (
    errno.EACCES,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
"""Errors of the system that say nothing about a file, and that OpenSlide's message may contain."""

SlideProblem = Literal[
    "missing",
    "cannot be opened",
    "damaged",
    "no resolution",
    "wrong resolution",
    "too coarse",
    "too small",
    "no colour",
    "incomplete",
    "crashes the reader",
    "timed out",
]
"""Why a slide cannot be used."""


class SlideError(UserError):
    """A slide that cannot be used."""

    def __init__(self, problem: SlideProblem, message: str) -> None:
        """Initializes the error.

        Args:
            problem: The kind of problem, by which slides are counted.
            message: What was given, what was expected, what to do next.
        """
        super().__init__(message)
        self.problem = problem

    def __reduce__(self) -> tuple:
        # Errors are pickled when they pass between processes.
        return type(self), (self.problem, str(self))


@dataclasses.dataclass(frozen=True)
class ReadPlan:
    """How to read a tile so that it covers its area at the target resolution.

    Attributes:
        level: The pyramid level to read from, never coarser than the target.
        read_size: Width and height to read, in pixels of that level.
        level0_size: Width and height of the tile's area, in pixels of level 0.
        reduction: Factor by which the level's own tiles may be smaller when they are decoded: 1, 2,
            4 or 8. `read_size` is a multiple of it.
        page: The image of the file that has the level's tiles, if they are decoded by `TiffSlide`;
            None if OpenSlide reads them.
        downsample: Pixels of level 0 per pixel of the level; None if it is that of the two sizes,
            which are rounded.
        file_tile: Width and height of the file's tiles in pixels of the level; None if unknown.
    """

    level: int
    read_size: tuple[int, int]
    level0_size: tuple[int, int]
    reduction: int = 1
    page: int | None = None
    downsample: float | None = None
    file_tile: tuple[int, int] | None = None

    def on_level(self, x: int, y: int) -> tuple[int, int]:
        """Converts a corner in pixels of level 0 to pixels of the level."""
        if self.downsample is not None:
            return round(x / self.downsample), round(y / self.downsample)
        (width, height), (level0_width, level0_height) = self.read_size, self.level0_size
        return round(x * width / level0_width), round(y * height / level0_height)


def open_slide(path: str | Path) -> openslide.OpenSlide:
    """Opens a whole slide.

    Raises:
        SlideError: The file is missing, or OpenSlide cannot read it.
    """
    try:
        return openslide.OpenSlide(str(path))
    except (openslide.OpenSlideError, OSError) as error:
        # OpenSlide blames the format even if the system gives it no byte of the file.
        if (withheld := withheld_by_system(path)) is not None:
            raise withheld from error
        for code in _PASSING_ERRORS:
            if os.strerror(code) in str(error):
                raise unreadable(path, OSError(code, os.strerror(code))) from error
        raise SlideError(
            "cannot be opened",
            f"OpenSlide cannot open {path} ({error}). Check that the file is complete and in a "
            "format that OpenSlide reads, or move it away.",
        ) from error


def open_for(
    path: str | Path, plan: ReadPlan, cache: DecodedTiles | None = None
) -> openslide.OpenSlide | TiffSlide:
    """Opens a slide by what reads its tiles according to a plan.

    Args:
        path: The slide.
        plan: The plan.
        cache: The cache of a `TiffSlide`.

    Raises:
        SlideError: The file is missing, or cannot be read.
    """
    if plan.page is None:
        return open_slide(path)
    try:
        return TiffSlide(path, cache)
    except OSError as error:
        raise withheld_by_system(path) or unreadable(path, error) from error


def withheld_by_system(path: str | Path) -> SlideError | None:
    """Says why the system does not give the bytes of a file, or returns None if it does."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except (FileNotFoundError, NotADirectoryError):
        return SlideError("missing", f"Slide {path} does not exist.")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file can have it
            return SlideError("missing", f"Slide {path} does not exist.")
        return unreadable(path, error)
    return None


def unreadable(path: str | Path, error: OSError | MemoryError) -> SlideError:
    """Says that the system failed while a slide was read: the slide itself may be whole."""
    cause = getattr(error, "strerror", None) or in_one_line(error) or "out of memory"
    return SlideError(
        "cannot be opened",
        f"Slide {path} cannot be read: {cause}. See to that, and run the same command again.",
    )


def slide_mpp(slide: openslide.OpenSlide, path: str | Path, overwrite_mpp: float | None) -> float:
    """Returns the microns per pixel of a slide's level 0.

    Args:
        slide: The open slide.
        path: Its path, for error messages.
        overwrite_mpp: The value to use if the slide's metadata has none that is plausible (eva's
            name for it).

    Raises:
        SlideError: The metadata has no plausible resolution and `overwrite_mpp` is None,
            `overwrite_mpp` contradicts the power of the objective, or pixels are not square.
    """
    if has_mpp(slide):
        x, y = _metadata_mpp(slide)
        if max(x, y) > _MAX_STRETCH * min(x, y):
            raise SlideError(
                "wrong resolution",
                f"The pixels of slide {path} are {x:g} x {y:g} microns according to its metadata, "
                "expected square ones. Correct the metadata, or leave the slide out.",
            )
        return (x + y) / 2
    power = objective_power(slide)
    if overwrite_mpp is None:
        expected = f"{_MPP_AT_1X / power:g}" if power else "0.5 for a 20x scan, 0.25 for 40x"
        written = _metadata_mpp(slide)
        has = (
            f"implausible microns per pixel in its metadata: {written[0]:g} x {written[1]:g}, "
            f"expected {_PLAUSIBLE_MPP[0]:g} to {_PLAUSIBLE_MPP[1]:g}"
            if any(written)
            else "no microns per pixel in its metadata"
        )
        raise SlideError(
            "no resolution",
            f"Slide {path} has {has}. Set OVERWRITE_MPP (`overwrite_mpp`, --overwrite-mpp): "
            f"{expected}.",
        )
    if power and abs(math.log(overwrite_mpp * power / _MPP_AT_1X)) > math.log(_MAX_CONTRADICTION):
        raise SlideError(
            "wrong resolution",
            f"Slide {path} was scanned at {power:g}x, about {_MPP_AT_1X / power:g} microns per "
            f"pixel, which contradicts the {overwrite_mpp:g} of OVERWRITE_MPP (`overwrite_mpp`, "
            "--overwrite-mpp). Correct it.",
        )
    return overwrite_mpp


def has_mpp(slide: openslide.OpenSlide) -> bool:
    """Returns whether a slide's metadata has microns per pixel that a scanner can have."""
    finest, coarsest = _PLAUSIBLE_MPP
    return all(finest <= mpp <= coarsest for mpp in _metadata_mpp(slide))


def _metadata_mpp(slide: openslide.OpenSlide) -> tuple[float, float]:
    """Reads the microns per pixel of both axes from a slide's metadata, 0 where there are none."""
    written = []
    for key in _MPP_KEYS:
        try:
            written.append(float(slide.properties[key]))
        except (KeyError, ValueError):
            written.append(0.0)
    return written[0], written[1]


def objective_power(slide: openslide.OpenSlide) -> float | None:
    """Returns the magnification of the scanner's objective, or None if it is unknown."""
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
        path: Its path, for error messages.
        mpp: Microns per pixel of its level 0.
        target_mpp: Microns per pixel of the tiles.
        size: Width and height of the tiles, in pixels at the target resolution.

    Raises:
        SlideError: The slide is coarser than the target, so its tiles would be upsampled.
    """
    check_not_too_coarse(f"Slide {path}", mpp, target_mpp)
    downsample = target_mpp / mpp
    level = slide.get_best_level_for_downsample(downsample * (1 + _SAME_SCALE))
    scale = downsample / slide.level_downsamples[level]
    # Tiles decoded at half their size are like those of another level.
    reduction = max_reduction(scale)
    scale /= reduction
    if same_scale(scale):
        scale = 1.0
    width, height = (round(length * scale) * reduction for length in size)
    level0_scale = slide.level_downsamples[level]
    return ReadPlan(
        level=level,
        read_size=(width, height),
        level0_size=(round(width * level0_scale), round(height * level0_scale)),
        reduction=reduction,
        downsample=level0_scale,
    )


def check_not_too_coarse(name: str, mpp: float, target_mpp: float) -> None:
    """Raises an error if tiles would have to be upsampled.

    Args:
        name: The slide or image, for the message.
        mpp: Its microns per pixel.
        target_mpp: Microns per pixel of the tiles.

    Raises:
        SlideError: It is coarser than the target.
    """
    if target_mpp / mpp < 1 / _MAX_UPSAMPLING:
        raise SlideError(
            "too coarse",
            f"{name} was scanned at {mpp:.3f} microns per pixel, coarser than the "
            f"{target_mpp:.3f} requested. Leave it out, or raise `target_mpp`.",
        )


def same_scale(scale: Any) -> Any:
    """Says whether pixels of a scale, or an array of scales, are so near 1 that they are kept."""
    return abs(scale - 1) < _SAME_SCALE


def max_reduction(scale: float) -> int:
    """The largest factor by which tiles may be decoded smaller, if they shrink by `scale`."""
    return 2 ** min(max(int(math.log2(scale * (1 + _SAME_SCALE))), 0), _MAX_HALVINGS)


def read_tile(
    slide: openslide.OpenSlide | TiffSlide,
    plan: ReadPlan,
    x: int,
    y: int,
    size: tuple[int, int],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Reads the tile whose upper left corner is at (x, y) in pixels of level 0.

    A tile read at a finer resolution than the target is low-pass filtered as it is downsampled, so
    that it does not alias.

    Args:
        slide: The open slide: a `TiffSlide` if the plan has a page.
        plan: The slide's plan, from `plan_reads`.
        x: Left edge, in pixels of level 0.
        y: Upper edge, in pixels of level 0.
        size: Width and height of the tile.
        out: Where to write it, uint8 (3, height, width); None takes new memory.

    Returns:
        The tile as uint8 RGB (3, height, width), white where the slide has no pixels.

    Raises:
        openslide.OpenSlideError: The slide is damaged there, or the system does not give it.
    """
    if isinstance(slide, TiffSlide):
        assert plan.page is not None
        pixels = slide.read(plan.page, plan.on_level(x, y), plan.read_size, plan.reduction)
    else:
        pixels = read_region(slide, (x, y), plan)
    return as_tile(pixels, size, out)


def as_tile(pixels: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Resamples pixels to the size of a tile, without aliasing, and divides them into planes.

    Args:
        pixels: uint8 (height, width, 3 or 4).
        size: Width and height of the tile.
        out: Where to write it, uint8 (3, height, width); None takes new memory.

    Returns:
        uint8 RGB (3, height, width).
    """
    height, width, channels = pixels.shape
    if out is None:
        out = np.empty((3, size[1], size[0]), np.uint8)
    if (width, height) != size:
        # Pillow gives the same pixels to within one grey level, but needs four times as long.
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        resized = functional.interpolate(planes, size[::-1], mode="bicubic", antialias=True)
        out[...] = resized[0, :3].numpy()
    else:
        # Three times as fast as numpy's copy of a transpose. Alpha has no place in the tile.
        assert out.flags.c_contiguous and out.dtype == np.uint8  # or it would write elsewhere
        alpha = [np.empty((height, width), np.uint8)] * (channels - 3)
        cv2.split(pixels, [*out, *alpha])
    return out


def read_region(slide: openslide.OpenSlide, corner: tuple[int, int], plan: ReadPlan) -> np.ndarray:
    """Reads a region by OpenSlide, uint8 (height, width, 3 or 4), white where it is empty."""
    region = slide.read_region(corner, plan.level, plan.read_size)
    pixels = np.asarray(region)
    if pixels.view("<u4").min() < 0xFF000000:  # alpha is the highest byte: some is not opaque
        # Before resizing, or the colour of empty pixels would bleed into their neighbours.
        return np.asarray(paste_on_white(region))
    return pixels


def paste_on_white(region: Image.Image) -> Image.Image:
    """Converts a region from RGBA to RGB, with white where it is transparent."""
    image = Image.new("RGB", region.size, (255, 255, 255))
    image.paste(region, mask=region.getchannel("A"))
    return image
