"""Forward passes of a batch in parts: memory holds one part, the gradient is that of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.checkpoint import checkpoint


def in_micro_batches(
    embed: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    images: torch.Tensor,
    size: int | None,
) -> list[torch.Tensor]:
    """Passes images through a network in parts, and joins what it returns.

    Where a gradient is wanted, the backward pass computes each part once more.

    Args:
        embed: Maps images (b, 3, H, W) to tensors (b, ...).
        images: Images (B, 3, H, W).
        size: Most images of a part; None passes all at once.

    Returns:
        The tensors of all images, (B, ...).
    """
    parts = images.split(size or len(images))
    if len(parts) == 1:
        return list(embed(parts[0]))
    if torch.is_grad_enabled():
        # Autocast would cast a weight once for all parts, and add up their gradients in that
        # lower precision.
        device = images.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            results = [checkpoint(embed, part, use_reentrant=False) for part in parts]
    else:
        results = [embed(part) for part in parts]
    return [torch.cat(part) for part in zip(*results, strict=True)]
