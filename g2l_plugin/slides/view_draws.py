"""Random draws of the augmented view: how each tile is cropped, flipped, jittered and blurred."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2l_plugin.errors import UserError

_SIGMA = (0.1, 2.0)
"""Smallest and largest standard deviation of the blur in pixels: torchvision's default."""


@dataclass(frozen=True)
class ViewSettings:
    """Everything that decides the views, as documented at `AugmentedView`.

    Raises:
        UserError: A setting is outside its range.
    """

    size: int
    flip_prob: float
    color_jitter_prob: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur_prob: float
    blur_kernel_size: int
    seed: int
    n_views: int | None

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float | None]]
        limits = {"size": (1, None), "hue": (0, 0.5), "seed": (0, 2**64 - 1), "n_views": (1, None)}
        limits |= {name: (0, 1) for name in ("flip_prob", "color_jitter_prob", "blur_prob")}
        limits |= {name: (0, None) for name in ("brightness", "contrast", "saturation")}
        limits |= {"blur_kernel_size": (1, 2 * self.size - 1)}  # the border is mirrored
        settings = dataclasses.asdict(self)
        for name, (low, high) in limits.items():
            value = settings[name]
            if value is None:
                continue
            if value < low or (high is not None and value > high):
                bounds = f"at least {low}" if high is None else f"{low} to {high}"
                raise UserError(f"The view's `{name}` is {value}. Expected {bounds}.")
        if self.blur_kernel_size % 2 == 0:
            raise UserError(
                f"The view's `blur_kernel_size` is {self.blur_kernel_size}. Expected an odd number "
                "of pixels."
            )

    @property
    def strengths(self) -> np.ndarray:
        """Strengths of brightness, contrast, saturation and hue, float64 (4,)."""
        return np.array([self.brightness, self.contrast, self.saturation, self.hue], np.float64)


@dataclass(frozen=True)
class Draws:
    """The random draws for the views of B tiles.

    Attributes:
        top: First row of the crop, int64 (B,).
        left: First column of the crop, int64 (B,).
        flip: Whether columns, and whether rows, are mirrored, bool (B, 2).
        jitter: Whether the colour is jittered, bool (B,).
        order: Order of the four adjustments, first to last: 0 brightness, 1 contrast, 2 saturation,
            3 hue; int64 (B, 4).
        factors: Amounts of the four adjustments, float32 (B, 4); that of the hue is in turns.
        blur: Whether the view is blurred, bool (B,).
        sigma: Standard deviation of the blur in pixels, float64 (B,).
    """

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    jitter: np.ndarray
    order: np.ndarray
    factors: np.ndarray
    blur: np.ndarray
    sigma: np.ndarray


def draw(
    settings: ViewSettings,
    numbers: np.ndarray | Sequence[int],
    view: int,
    height: int,
    width: int,
) -> Draws:
    """Draws the random part of one view of each tile.

    The generator is counter-based (Philox, Salmon et al. 2011), and a tile's counter starts with
    the tile's number: no two tiles share random numbers. Every tile uses the same number of them,
    whatever the settings, so changing one setting does not change the draws of another.

    Args:
        settings: Settings of the view.
        numbers: Number of each tile, int64 (B,).
        view: Number of the view.
        height: Height of the tiles, in pixels.
        width: Width of the tiles, in pixels.
    """
    key = np.array([settings.seed, view], np.uint64)
    uniform = np.empty((len(numbers), 15))
    for row, number in zip(uniform, np.asarray(numbers, np.int64), strict=True):
        counter = np.array([0, 0, 0, number], np.int64).astype(np.uint64)
        np.random.Generator(np.random.Philox(key=key, counter=counter)).random(out=row)
    centre = np.array([1, 1, 1, 0])
    low = np.maximum(centre - settings.strengths, [0, 0, 0, -0.5])
    high = centre + settings.strengths
    return Draws(
        top=(uniform[:, 0] * (height - settings.size + 1)).astype(np.int64),
        left=(uniform[:, 1] * (width - settings.size + 1)).astype(np.int64),
        flip=uniform[:, 2:4] < settings.flip_prob,
        jitter=uniform[:, 4] < settings.color_jitter_prob,
        order=uniform[:, 5:9].argsort(axis=1),
        factors=(low + uniform[:, 9:13] * (high - low)).astype(np.float32),
        blur=uniform[:, 13] < settings.blur_prob,
        sigma=_SIGMA[0] + uniform[:, 14] * (_SIGMA[1] - _SIGMA[0]),
    )
