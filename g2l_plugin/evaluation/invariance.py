"""Embeds tiles and the same tiles rotated, restained, compressed and blurred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as nn_functional
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from g2l_plugin.encoders.encoder import Encoder, in_eval_mode
from g2l_plugin.evaluation.stain import StainChange

STAIN_SIGMA = 0.2
"""Largest change of a stain: s becomes a·s + b, with a in 1 ± sigma and b in ± sigma / 4 (optical
density to base e)."""


def _rotate(quarters: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: images.rot90(quarters, (-2, -1))


def _compress(quality: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def compress(images: torch.Tensor) -> torch.Tensor:
        pixels = (images * 255).round().byte().cpu()
        decoded = torch.stack([functional.jpeg(image, quality) for image in pixels])
        return decoded.to(images.device).float() / 255

    return compress


def _rescale(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def rescale(images: torch.Tensor) -> torch.Tensor:
        size = list(images.shape[-2:])
        for sides in ([max(1, round(side * factor)) for side in size], size):
            images = nn_functional.interpolate(images, sides, mode="bilinear", antialias=True)
        return images

    return rescale


_FIXED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rotated by 90°": _rotate(1),
    "rotated by 180°": _rotate(2),
    "rotated by 270°": _rotate(3),
    "flipped horizontally": lambda images: images.flip(-1),
    "flipped vertically": lambda images: images.flip(-2),
    "JPEG at quality 75": _compress(75),
    "JPEG at quality 50": _compress(50),
    "blurred, sigma 1 px": lambda images: functional.gaussian_blur(images, [9, 9], [1.0, 1.0]),
    "half the resolution and back": _rescale(0.5),
    "twice the resolution and back": _rescale(2),
}
"""Changes of images in [0, 1], (B, 3, S, S)."""

_RESTAINED = "HED jitter"

CHANGES = (*_FIXED, _RESTAINED)
"""Names of the changes."""


@torch.inference_mode()
def embed_changed(
    encoder: Encoder,
    tiles: Any,
    size: int,
    batch_size: int = 32,
    seed: int = 0,
    description: str = "Embedding tiles",
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeds tiles, and each of them after each change of `CHANGES`.

    A change leaves what a pathologist sees: the same tissue from another side, laboratory, scanner
    or archive. MICS-Lab's THUNDER (arXiv 2507.07860) measures invariance to rotations, flips, blur
    and stains among others, with amounts drawn for each tile; here all but the stains' are fixed.

    Args:
        encoder: The encoder; its training mode is restored afterwards.
        tiles: Has a length and items, uint8 RGB (3, H, W) of any size: the shorter side is resized
            to `size`, and the centre is used, as in eva's benchmarks.
        size: Side of the images, in pixels.
        batch_size: Tiles per batch.
        seed: Seed of the amounts of stain, which do not depend on the batches.
        description: Text of the progress bar.

    Returns:
        Embeddings of the tiles (N, D), and those of the changed tiles by name of the change.

    Raises:
        UserError: The network does not accept images of this size, or a tile cannot be read.
    """
    encoder.check_views(size)
    device = encoder.mean.device
    generator = torch.Generator().manual_seed(seed)
    draws = STAIN_SIGMA * (torch.rand(len(tiles), 2, 3, generator=generator) * 2 - 1)
    stain = StainChange().to(device)
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in ("", *CHANGES)}
    progress = tqdm(total=len(tiles), desc=description, unit="tile", leave=False)
    with progress, in_eval_mode(encoder):
        for start in range(0, len(tiles), batch_size):
            rows = range(start, min(start + batch_size, len(tiles)))
            images = torch.stack([fit_tile(tiles[row], size) for row in rows]).to(device)
            factors, shifts = draws[list(rows)].to(device).unbind(1)
            changed = {name: change(images) for name, change in _FIXED.items()}
            changed[_RESTAINED] = stain(images, 1 + factors, shifts / 4)
            for name, part in ({"": images} | changed).items():
                kept[name].append(encoder(part).float().cpu())
            progress.update(len(rows))
    embeddings = {name: torch.cat(parts).numpy() for name, parts in kept.items()}
    return embeddings.pop(""), embeddings


def fit_tile(tile: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes the shorter side and takes the centre, float32 in [0, 1] (3, size, size)."""
    resized = functional.resize(torch.as_tensor(tile), [size], antialias=True)
    return functional.center_crop(resized, [size]).float() / 255
