"""Which parts of a slide are usable tissue: no glass, no ink, in focus."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image
from skimage import filters, morphology

OVERVIEW_MPP = 8.0
"""Microns per pixel of the overview that the masks are made from: a cell is about one pixel."""

FOCUS_MPP = 1.0
"""Microns per pixel at which sharpness is measured: chromatin still differs from blur."""

_MIN_SATURATION = 0.06
"""Lower limit of Otsu's threshold on HSV saturation, for a slide that is all tissue."""

_MAX_SATURATION = 0.12
"""Upper limit of that threshold, for a slide with strong ink."""

_MIN_VALUE = 0.15
"""Lower limit of HSV value, 38 of 255. What is darker lies outside of the scan, where saturation is
noise: RGB (4, 2, 6) has one of 0.67. The blackest pigment in tissue has 0.2 and more."""

_CROSS = morphology.disk(1)
"""A pixel and its four neighbours."""


def to_hsv(overview: np.ndarray) -> np.ndarray:
    """Hue, saturation and value of uint8 RGB (height, width, 3), in 255ths: uint8, same shape."""
    return np.asarray(Image.fromarray(overview).convert("HSV"))


def tissue_mask(hsv: np.ndarray) -> np.ndarray:
    """Finds tissue by colour saturation, with Otsu's threshold, and removes specks.

    This suits H&E. Where haematoxylin is the only stain, as in an IHC of few positive cells, or a
    stain has faded to less than a quarter, tissue is as grey as glass, and not found.

    Args:
        hsv: uint8 HSV (height, width, 3) of an overview at about 8 microns per pixel.

    Returns:
        Boolean mask (height, width).
    """
    _, saturation, value = cv2.split(hsv)
    lit = value >= _MIN_VALUE * 255
    saturation = _blur(np.where(lit, saturation, 0).astype(np.float32) / 255, 1)
    if not lit.any() or np.ptp(saturation[lit]) < 1e-3:  # a single colour has no Otsu threshold
        threshold = _MIN_SATURATION
    else:
        otsu = filters.threshold_otsu(saturation[lit])
        threshold = np.clip(otsu, _MIN_SATURATION, _MAX_SATURATION)
    return _without_specks(lit & (saturation > threshold)).astype(bool)


def is_grey(overview: np.ndarray) -> bool:
    """Whether a picture has shades, but no colour at all: one channel, or three equal ones."""
    red, green, blue = cv2.split(overview)
    return np.array_equal(red, green) and np.array_equal(red, blue) and bool(np.ptp(red))


def ink_mask(hsv: np.ndarray) -> np.ndarray:
    """Finds pen marks by colours that haematoxylin and eosin do not produce.

    Green and blue ink are recognised by hue, red by high saturation, black by low value and low
    saturation. Ink as purple as the stain is not found.

    Args:
        hsv: uint8 HSV (height, width, 3) of an overview at about 8 microns per pixel.

    Returns:
        Boolean mask (height, width), grown by two pixels because strokes have soft edges.
    """
    green_to_blue = _in_range(hsv, hue=(0.22, 0.63), saturation=(0.25, 1))
    blue = _in_range(hsv, hue=(0.63, 0.68), saturation=(0.65, 1))  # haematoxylin: paler or redder
    red = _in_range(hsv, (0, 0.03), (0.75, 1)) | _in_range(hsv, (0.97, 1), (0.75, 1))
    black = _in_range(hsv, saturation=(0, 0.5), value=(0, 0.25))
    ink = _without_specks(green_to_blue | blue | red | black)
    return cv2.dilate(ink, morphology.disk(2)).astype(bool)


def outline(mask: np.ndarray) -> np.ndarray:
    """Those pixels of a mask (height, width) that have one of four neighbours outside of it."""
    return mask & ~cv2.erode(mask.view(np.uint8), _CROSS).view(bool)


def sharpness(pixels: np.ndarray, mpp: float) -> float:
    """Measures focus as the ratio of fine to coarse detail, independent of stain and contrast.

    The ratio divides the variance of grey between 1 and about 2 microns by that between about 2 and
    8 microns (differences of Gaussians). Tissue in focus gives 0.3 to 0.9, a blur of 1.5 microns
    less than 0.1 (`benchmarks/sharpness.py`).

    Args:
        pixels: uint8 RGB (3, height, width).
        mpp: Its microns per pixel.

    Returns:
        The ratio, 0 if there is no detail at all.
    """
    grey = (pixels[0].astype(np.float32) + pixels[1] + pixels[2]) / np.float32(3)
    size = tuple(max(round(length * mpp / FOCUS_MPP), 1) for length in grey.shape)
    if size != grey.shape:
        image = Image.fromarray(grey).resize(size[::-1], Image.Resampling.BOX)
        grey = np.asarray(image)
    smooth = _blur(grey, 1)
    half = np.ascontiguousarray(smooth[::2, ::2])  # loses nothing: finer detail is filtered out
    return _variance(grey - smooth) / max(_variance(half - _blur(half, 2)), 1e-3)


def _blur(grey: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian filter as SciPy's, to rounding, in a sixth of its time."""
    side = 2 * round(4 * sigma) + 1
    return cv2.GaussianBlur(grey, (side, side), sigma, borderType=cv2.BORDER_REFLECT)


def _variance(values: np.ndarray) -> float:
    return cv2.meanStdDev(values)[1].item() ** 2


def _in_range(
    hsv: np.ndarray,
    hue: tuple[float, float] = (0, 1),
    saturation: tuple[float, float] = (0, 1),
    value: tuple[float, float] = (0, 1),
) -> np.ndarray:
    """Where all channels lie within limits from 0 to 1: uint8 (height, width), 255 or 0."""
    lower, upper = 255 * np.array([hue, saturation, value]).T
    return cv2.inRange(hsv, np.ceil(lower), np.floor(upper))


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """A mask (height, width) without what is narrower than three pixels, uint8."""
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, _CROSS)
