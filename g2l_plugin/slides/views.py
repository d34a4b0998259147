"""The augmented view that teacher and student share."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from g2l_plugin.errors import UserError
from g2l_plugin.slides import color
from g2l_plugin.slides.view_draws import Draws, ViewSettings, draw
from g2l_plugin.transfer import to_device

_ADJUSTMENTS = (
    color.adjust_brightness,
    color.adjust_contrast,
    color.adjust_saturation,
    color.adjust_hue,
)

_CHUNK_TILES = {"cpu": 1}
_CHUNK_TILES_ELSEWHERE = 256
"""Tiles whose views are made together. On the CPU, one stays in a core's cache. On other devices,
many use the device fully, and still need little memory compared with the views."""


class AugmentedView(nn.Module):
    """The paper's augmentation (arXiv 2510.11176): crop, flips, colour jitter, Gaussian blur.

    A view depends only on the settings, the seed, the number of the view and the number of the
    tile: not on torch's generators, the batch, its order, the device or the run. On the CPU it is
    reproducible bit for bit. The distributions are those of torchvision's `RandomCrop`,
    `RandomHorizontalFlip`, `RandomVerticalFlip`, `ColorJitter` and `GaussianBlur`.

    Attributes:
        size: Side of a view, in pixels.
        seed: Seed of all views.
        n_views: Distinct views of a tile; None for a new view every epoch.
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
            color_jitter_prob: Probability of the colour jitter.
            brightness: Largest relative change of the brightness.
            contrast: Largest relative change of the contrast.
            saturation: Largest relative change of the saturation.
            hue: Largest shift of the hue in turns, at most 0.5.
            blur_prob: Probability of the Gaussian blur.
            blur_kernel_size: Side of the blur's kernel, in pixels, odd.
            seed: Seed of all views, in [0, 2^64). False, eva's value for "unseeded", draws a seed
                from the operating system, so that runs, and processes of a run, differ.
            n_views: Distinct views of a tile, which the epochs use in turn; None for a new view
                every epoch.

        Raises:
            UserError: A setting is outside its range.
        """
        super().__init__()
        self._settings = ViewSettings(
            size=size,
            flip_prob=flip_prob,
            color_jitter_prob=color_jitter_prob,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            blur_prob=blur_prob,
            blur_kernel_size=blur_kernel_size,
            seed=secrets.randbits(64) if seed is False else int(seed),
            n_views=n_views,
        )
        self.size, self.seed, self.n_views = size, self._settings.seed, n_views

    def settings(self) -> dict[str, Any]:
        """Everything that decides the views, ready for JSON: all arguments of the class."""
        return dataclasses.asdict(self._settings)

    def number(self, epoch: int) -> int:
        """Number of the view that an epoch, counted from 0, uses."""
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
            numbers: Number of each tile, on the host, int64 (B,). None draws them from torch's CPU
                generator, so that every call makes other views.
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
        chunk = _CHUNK_TILES.get(tiles.device.type, _CHUNK_TILES_ELSEWHERE)
        for start in range(0, len(tiles), chunk):
            part = slice(start, start + chunk)
            draws = draw(self._settings, numbers[part], view, *tiles.shape[-2:])
            images = _crop(tiles[part], draws, self.size)
            self._jitter(images, draws)
            self._blur(images, draws)
            views[part] = images
        return views

    def _jitter(self, images: torch.Tensor, draws: Draws) -> None:
        """Jitters the colour of images in place, each with its own order and amounts."""
        strengths = self._settings.strengths
        steps = [
            (adjust, chosen, draws.factors[chosen, kind])
            for place in range(len(_ADJUSTMENTS))
            for kind, adjust in enumerate(_ADJUSTMENTS)
            if strengths[kind] > 0
            if (chosen := np.flatnonzero(draws.jitter & (draws.order[:, place] == kind))).size
        ]
        if not steps:
            return
        # One copy to the device for all steps.
        sizes = [len(chosen) for _, chosen, _ in steps]
        indices = to_device(np.concatenate([step[1] for step in steps]), images.device)
        values = to_device(np.concatenate([step[2] for step in steps]), images.device)
        parts = zip(steps, indices.split(sizes), values.split(sizes), strict=True)
        for (adjust, _, _), index, value in parts:
            part = images.index_select(0, index)
            adjust(part, value)
            images.index_copy_(0, index, part)

    def _blur(self, images: torch.Tensor, draws: Draws) -> None:
        """Blurs images in place, each with its own standard deviation."""
        chosen = np.flatnonzero(draws.blur)
        if not chosen.size:
            return
        distance = np.arange(self._settings.blur_kernel_size // 2 + 1)
        weights = np.exp(-0.5 * (distance / draws.sigma[chosen, None]) ** 2)
        weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
        index = to_device(chosen, images.device)
        blurred = color.gaussian_blur(
            images.index_select(0, index), to_device(weights.astype(np.float32), images.device)
        )
        images.index_copy_(0, index, blurred)


def center_view(tiles: torch.Tensor, size: int) -> torch.Tensor:
    """Crops the centre of each tile: the view for validation.

    Args:
        tiles: uint8, or float in [0, 1], (B, 3, H, W).
        size: Side of the crop, in pixels.

    Returns:
        Views in [0, 1], float (B, 3, size, size).
    """
    _check_size(tiles, size)
    return functional.to_dtype(functional.center_crop(tiles, [size, size]), scale=True)


def _crop(tiles: torch.Tensor, draws: Draws, size: int) -> torch.Tensor:
    """Crops and flips tiles as drawn, to float32 in [0, 1], (B, 3, size, size)."""
    forward = np.arange(size)
    columns, rows = np.where(draws.flip.T[:, :, None], forward[::-1], forward)
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
