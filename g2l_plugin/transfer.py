"""Copies between host and device that do not wait for the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def to_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies an array to the device, from pinned memory: other copies would wait."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def start_copy(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Starts a copy to the host.

    Args:
        values: Values of any shape, on any device.

    Returns:
        A function that waits for the copy and returns it.
    """
    if values.device.type != "cuda":
        return lambda: values
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> torch.Tensor:
        arrived.synchronize()
        return copy

    return read
