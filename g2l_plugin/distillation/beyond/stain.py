"""Stain and scanner changes that the student sees and the teacher does not."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.slides.stain import StainChange
from g2l_plugin.transfer import to_device


class StainJitter(nn.Module):
    """Changes the amounts of the stains, and the sharpness, of each image at random.

    The student learns to give a changed image the embedding that its teacher gives the unchanged
    one: the student may become more robust to laboratories and scanners than its teacher is.

    The stains' changes follow Tellez et al. 2018 (arXiv 1808.05896): each stain's amount s becomes
    a·s + b. They are drawn from torch's CPU generator.
    """

    def __init__(self, sigma: float = 0.2, prob: float = 0.5, least_scale: float = 0.5) -> None:
        """Initializes the jitter.

        Args:
            sigma: The largest change: a is in [1 - sigma, 1 + sigma] and b, an optical density to
                base e, in [-sigma, sigma] / 4.
            prob: Probability that an image is changed.
            least_scale: Changed images are shown as if scanned at this share of their resolution
                or more; 1 leaves the resolution.

        Raises:
            UserError: A setting is outside its range.
        """
        super().__init__()
        for name, value, least in (
            ("sigma", sigma, 0.0),
            ("prob", prob, 0.0),
            ("least_scale", least_scale, 0.05),
        ):
            if not least <= value <= 1:
                raise UserError(f"`{name}` of StainJitter is {value}. Expected {least} to 1.")
        self.sigma, self.prob, self.least_scale = sigma, prob, least_scale
        self.change = StainChange()

    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Changes some images.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).

        Returns:
            Images in [0, 1], float32 (B, 3, H, W); those that were not drawn are unchanged.
        """
        changed = torch.rand(len(images)) < self.prob  # (B,)
        draws = torch.rand(len(images), 2, 3) * 2 - 1  # (B, 2, 3) in [-1, 1]
        scale = 1 - torch.rand(()).item() * (1 - self.least_scale)
        if not changed.any():
            return images
        index = to_device(changed.nonzero().flatten().numpy(), images.device)
        draws = to_device((draws[changed] * self.sigma).numpy(), images.device)
        part = images.index_select(0, index).float()
        factors, shifts = draws.unbind(1)  # (N, 3) each
        part = self.change(part, 1 + factors, shifts / 4)
        if scale < 1:  # one scale for the batch: images of one size are resized together
            size = list(part.shape[-2:])
            for sides in ([max(1, round(side * scale)) for side in size], size):
                part = functional.interpolate(part, sides, mode="bilinear", antialias=True)
        return images.float().index_copy(0, index, part)
