"""Stains of an image: separated, changed, and put together again."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override

_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
"""Optical density (red, green, blue) of haematoxylin, eosin and DAB, each of length 1: Ruifrok and
Johnston 2001, Anal Quant Cytol Histol 23(4)."""

_LEAST_LIGHT = 1 / 255


class StainChange(nn.Module):
    """Changes the amounts of haematoxylin, eosin and DAB in images: s becomes a·s + b.

    scikit-image's `rgb2hed` sets negative amounts to 0, so an image does not survive the way there
    and back; here it does, but for black (below 1/255).

    Source: Tellez et al. 2018, arXiv 1808.05896.
    """

    stains: torch.Tensor
    unmixing: torch.Tensor

    def __init__(self) -> None:
        """Initializes the matrices, which move with the module."""
        super().__init__()
        stains = functional.normalize(torch.tensor(_STAINS), dim=1)
        self.register_buffer("stains", stains, persistent=False)
        self.register_buffer("unmixing", torch.linalg.inv(stains), persistent=False)

    @override
    def forward(
        self, images: torch.Tensor, factors: torch.Tensor, shifts: torch.Tensor
    ) -> torch.Tensor:
        """Changes images.

        Args:
            images: RGB in [0, 1], float32 (N, 3, H, W).
            factors: a of each image and stain, (N, 3).
            shifts: b of each image and stain, optical density to base e, (N, 3).

        Returns:
            Images in [0, 1], float32 (N, 3, H, W).
        """
        density = -images.clamp_min(_LEAST_LIGHT).log().permute(0, 2, 3, 1)  # (N, H, W, 3)
        amounts = density @ self.unmixing
        amounts = amounts * factors[:, None, None] + shifts[:, None, None]
        return (-(amounts @ self.stains)).exp().clamp(0, 1).permute(0, 3, 1, 2)
