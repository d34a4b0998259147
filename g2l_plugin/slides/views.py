"""The one augmented view that teacher and student both see."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from g2l_plugin.errors import UserError
from g2l_plugin.slides import color
from g2l_plugin.transfer import to_device

_ADJUSTMENTS = (
    color.adjust_brightness,
    color.adjust_contrast,
    color.adjust_saturation,
    color.adjust_hue,
)
_SIGMA = (0.1, 2.0)
"""Least and largest standard deviation of the blur in pixels: torchvision's default."""

_AT_ONCE = {"cpu": 1}
_AT_ONCE_ELSEWHERE = 256
"""Tiles whose views are made together: one stays in a core's cache; many fill a device, and yet
need little memory beside the views."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for the views of B tiles.

    Attributes:
        top: First row of the crop, int64 (B,).
        left: First column of the crop, int64 (B,).
        flip: Whether columns, and whether rows, are mirrored, bool (B, 2).
        jitter: Whether the colour is jittered, bool (B,).
        order: Which adjustment comes first, second, ...: 0 brightness, 1 contrast, 2 saturation,
            3 hue; int64 (B, 4).
        factors: Of the four adjustments, float32 (B, 4); of the hue, turns.
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


class AugmentedView(nn.Module):
    """The paper's augmentation (arXiv 2510.11176): crop, flips, colour jitter, Gaussian blur.

    A view is decided by the seed, the number of the view and the number of the tile alone: not by
    torch's generators, nor by the batch, its order, the device or the run. On the CPU it is the
    same bit for bit. The distributions are those of torchvision's `RandomCrop`,
    `RandomHorizontalFlip`, `RandomVerticalFlip`, `ColorJitter` and `GaussianBlur`.

    Attributes:
        size: Side of a view, in pixels.
        seed: Seed of all views.
        n_views: Distinct views of a tile; None: a new one every epoch.
    """

    def __init__(
        self,
        size: int = 224,
        flip_prob: float = 0.5,
        color_jitter_prob: float = 0.5,
        brightness: float = 0.15,
        contrast: float = 0.15,
        saturation: float = 0.1,
        hue: float = 0.05,
        blur_prob: float = 0.1,
        blur_kernel_size: int = 9,
        seed: int | bool = 0,
        n_views: int | None = None,
    ) -> None:
        """Initializes the view.

        Args:
            size: Side of the random crop, in pixels.
            flip_prob: Probability of a horizontal, and of a vertical, flip.
            color_jitter_prob: Probability of the color jitter.
            brightness: Strength of the jitter's brightness.
            contrast: Strength of the jitter's contrast.
            saturation: Strength of the jitter's saturation.
            hue: Strength of the jitter's hue, at most 0.5.
            blur_prob: Probability of the Gaussian blur.
            blur_kernel_size: Side of the blur's kernel, in pixels, odd.
            seed: Seed of all views, in [0, 2^64). False, which is how eva says "unseeded": drawn
                now from the operating system, so that runs, and processes of a run, differ.
            n_views: Distinct views of a tile, which the epochs take in turn; None: a new one every
                epoch.

        Raises:
            UserError: A setting is outside its range.
        """
        super().__init__()
        self.size = size
        self.seed = secrets.randbits(64) if seed is False else int(seed)
        self.n_views = n_views
        self.flip_prob = flip_prob
        self.color_jitter_prob = color_jitter_prob
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.blur_prob = blur_prob
        self.blur_kernel_size = blur_kernel_size
        _check_settings(self.settings())
        self._strengths = np.array([brightness, contrast, saturation, hue], np.float64)

    def settings(self) -> dict[str, Any]:
        """Everything that decides the views, as JSON can hold it: all arguments of the class."""
        return {
            "size": self.size,
            "flip_prob": self.flip_prob,
            "color_jitter_prob": self.color_jitter_prob,
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": self.hue,
            "blur_prob": self.blur_prob,
            "blur_kernel_size": self.blur_kernel_size,
            "seed": self.seed,
            "n_views": self.n_views,
        }

    def number(self, epoch: int) -> int:
        """Which view of each tile an epoch, counted from 0, takes."""
        return epoch if self.n_views is None else epoch % self.n_views

    def forward(
        self,
        tiles: torch.Tensor,
        numbers: np.ndarray | Sequence[int] | None = None,
        view: int = 0,
    ) -> torch.Tensor:
        """Makes one view of each tile, without waiting for the device.

        Args:
            tiles: uint8, or float in [0, 1], (B, 3, H, W).
            numbers: Number of each tile, on the host, int64 (B,); None: drawn from torch's CPU
                generator, so that every call gives other views.
            view: Number of the view.

        Returns:
            Views in [0, 1], float32 (B, 3, size, size).

        Raises:
            UserError: The tiles are smaller than a view.
        """
        _check_size(tiles, self.size)
        if numbers is None:
            numbers = torch.randint(2**63 - 1, (len(tiles),)).numpy()
        if len(numbers) != len(tiles):
            raise ValueError(f"{len(numbers)} numbers for {len(tiles)} tiles")
        views = tiles.new_empty((len(tiles), 3, self.size, self.size), dtype=torch.float32)
        at_once = _AT_ONCE.get(tiles.device.type, _AT_ONCE_ELSEWHERE)
        for start in range(0, len(tiles), at_once):
            part = slice(start, start + at_once)
            draws = self.draw(numbers[part], view, tiles.shape[-2], tiles.shape[-1])
            images = _crop(tiles[part], draws, self.size)
            self._jitter(images, draws)
            self._blur(images, draws)
            views[part] = images
        return views

    def draw(
        self, numbers: np.ndarray | Sequence[int], view: int, height: int, width: int
    ) -> Draws:
        """Draws what the views of tiles of height x width pixels are made with.

        A tile's counter of the generator (Philox, Salmon et al. 2011) begins with its number: so
        tiles share no random numbers. Each takes as many, whatever the settings: so one setting
        changes nothing of what another decides.
        """
        key = np.array([self.seed, view], np.uint64)
        uniform = np.empty((len(numbers), 15))
        for row, number in zip(uniform, np.asarray(numbers, np.int64), strict=True):
            counter = np.array([0, 0, 0, number], np.int64).astype(np.uint64)
            np.random.Generator(np.random.Philox(key=key, counter=counter)).random(out=row)
        center = np.array([1, 1, 1, 0])
        low = np.maximum(center - self._strengths, [0, 0, 0, -0.5])
        high = center + self._strengths
        return Draws(
            top=(uniform[:, 0] * (height - self.size + 1)).astype(np.int64),
            left=(uniform[:, 1] * (width - self.size + 1)).astype(np.int64),
            flip=uniform[:, 2:4] < self.flip_prob,
            jitter=uniform[:, 4] < self.color_jitter_prob,
            order=uniform[:, 5:9].argsort(axis=1),
            factors=(low + uniform[:, 9:13] * (high - low)).astype(np.float32),
            blur=uniform[:, 13] < self.blur_prob,
            sigma=_SIGMA[0] + uniform[:, 14] * (_SIGMA[1] - _SIGMA[0]),
        )

    def _jitter(self, images: torch.Tensor, draws: Draws) -> None:
        """Jitters the colour of the drawn images in place, each in its own order."""
        steps = [
            (adjust, chosen, draws.factors[chosen, kind])
            for place in range(len(_ADJUSTMENTS))
            for kind, adjust in enumerate(_ADJUSTMENTS)
            if self._strengths[kind] > 0
            if (chosen := np.flatnonzero(draws.jitter & (draws.order[:, place] == kind))).size
        ]
        if not steps:
            return
        # One copy to the device, not one for each step.
        sizes = [len(chosen) for _, chosen, _ in steps]
        indices = to_device(np.concatenate([step[1] for step in steps]), images.device)
        values = to_device(np.concatenate([step[2] for step in steps]), images.device)
        parts = zip(steps, indices.split(sizes), values.split(sizes), strict=True)
        for (adjust, _, _), index, value in parts:
            part = images.index_select(0, index)
            adjust(part, value)
            images.index_copy_(0, index, part)

    def _blur(self, images: torch.Tensor, draws: Draws) -> None:
        """Blurs the drawn images in place."""
        chosen = np.flatnonzero(draws.blur)
        if not chosen.size:
            return
        distance = np.arange(self.blur_kernel_size // 2 + 1)
        weights = np.exp(-0.5 * (distance / draws.sigma[chosen, None]) ** 2)
        weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
        index = to_device(chosen, images.device)
        blurred = color.gaussian_blur(
            images.index_select(0, index), to_device(weights.astype(np.float32), images.device)
        )
        images.index_copy_(0, index, blurred)


def center_view(tiles: torch.Tensor, size: int) -> torch.Tensor:
    """The view for validation: the centre of each tile.

    Args:
        tiles: uint8, or float in [0, 1], (B, 3, H, W).
        size: Side of the crop, in pixels.

    Returns:
        Float views in [0, 1], (B, 3, size, size).
    """
    _check_size(tiles, size)
    return functional.to_dtype(functional.center_crop(tiles, [size, size]), scale=True)


def _crop(tiles: torch.Tensor, draws: Draws, size: int) -> torch.Tensor:
    """The drawn crops, flipped where drawn, as float32 in [0, 1], (B, 3, size, size)."""
    ahead = np.arange(size)
    columns, rows = np.where(draws.flip.T[:, :, None], ahead[::-1], ahead)
    index = np.stack([draws.top[:, None] + rows, draws.left[:, None] + columns])
    rows_columns = to_device(index, tiles.device)
    crops = tiles[
        torch.arange(len(tiles), device=tiles.device)[:, None, None, None],
        torch.arange(3, device=tiles.device)[:, None, None],
        rows_columns[0][:, None, :, None],
        rows_columns[1][:, None, None, :],
    ]
    return functional.to_dtype(crops, torch.float32, scale=True)


def _check_size(tiles: torch.Tensor, size: int) -> None:
    if min(tiles.shape[-2:]) < size:
        raise UserError(
            f"Tiles of {tiles.shape[-1]}x{tiles.shape[-2]} px are smaller than the view of {size} "
            "px. Read larger tiles (`width`, `height` of the dataset) or lower the view's `size`."
        )


def _check_settings(settings: dict[str, Any]) -> None:
    limits: dict[str, tuple[float, float | None]]
    limits = {"size": (1, None), "hue": (0, 0.5), "seed": (0, 2**64 - 1), "n_views": (1, None)}
    limits |= {name: (0, 1) for name in settings if name.endswith("_prob")}
    limits |= {name: (0, None) for name in ("brightness", "contrast", "saturation")}
    limits |= {"blur_kernel_size": (1, 2 * settings["size"] - 1)}  # the border is mirrored
    for name, (least, most) in limits.items():
        value = settings[name]
        if value is None:
            continue
        if value < least or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise UserError(f"The view's `{name}` is {value}. Expected {bounds}.")
    if settings["blur_kernel_size"] % 2 == 0:
        raise UserError(
            f"The view's `blur_kernel_size` is {settings['blur_kernel_size']}. Expected an odd "
            "number of pixels."
        )
