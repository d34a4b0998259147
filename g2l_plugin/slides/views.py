"""The one augmented view that teacher and student both see."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from g2l_plugin.errors import UserError


class AugmentedView(nn.Module):
    """The paper's augmentation (arXiv 2510.11176), drawn anew for every tile, on its device."""

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
    ) -> None:
        """Initializes the view.

        Args:
            size: Side of the random crop, in pixels.
            flip_prob: Probability of a horizontal, and of a vertical, flip.
            color_jitter_prob: Probability of the color jitter.
            brightness: Strength of the jitter's brightness.
            contrast: Strength of the jitter's contrast.
            saturation: Strength of the jitter's saturation.
            hue: Strength of the jitter's hue.
            blur_prob: Probability of the Gaussian blur.
            blur_kernel_size: Side of the blur's kernel, in pixels.
        """
        super().__init__()
        self.size = size
        self._augment = v2.Compose(
            [
                v2.RandomCrop(size),
                v2.RandomHorizontalFlip(flip_prob),
                v2.RandomVerticalFlip(flip_prob),
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomApply(
                    [v2.ColorJitter(brightness, contrast, saturation, hue)], color_jitter_prob
                ),
                v2.RandomApply([v2.GaussianBlur(blur_kernel_size)], blur_prob),
            ]
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Makes one view of each tile.

        Args:
            tiles: uint8, or float in [0, 1], (B, 3, H, W).

        Returns:
            Float views in [0, 1], (B, 3, size, size).
        """
        _check_size(tiles, self.size)
        return torch.stack([self._augment(tile) for tile in tiles])


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


def _check_size(tiles: torch.Tensor, size: int) -> None:
    if min(tiles.shape[-2:]) < size:
        raise UserError(
            f"Tiles of {tiles.shape[-1]}x{tiles.shape[-2]} px are smaller than the view of {size} "
            "px. Read larger tiles (`width`, `height` of the dataset) or lower the view's `size`."
        )
