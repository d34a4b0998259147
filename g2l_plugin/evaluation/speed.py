"""Speed and memory use of an encoder."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_LEAST_SECONDS = 1.0
_LEAST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed and memory use of the network alone: tiles are in memory and normalised.

    Attributes:
        device: Device of the measurement, e.g. `NVIDIA H200` or `CPU (2 threads)`.
        batch_size: Tiles per batch.
        tiles_per_second: Median over repeated batches.
        peak_memory_bytes: Peak memory on a CUDA device, weights included; None on other devices.
        flops: Floating-point operations per tile.
        parameters: Number of weights.
    """

    device: str
    batch_size: int
    tiles_per_second: float
    peak_memory_bytes: int | None
    flops: int
    parameters: int


@torch.inference_mode()
def measure_speed(network: nn.Module, images: torch.Tensor) -> Speed:
    """Measures a network on one batch, repeated for a second and at least three times.

    Args:
        network: The network, on the images' device and in evaluation mode.
        images: A batch in the network's input size (B, 3, H, W).
    """
    on_cuda = images.device.type == "cuda"
    network(images)  # warm up: the first call chooses kernels and allocates memory
    if on_cuda:
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
    seconds: list[float] = []
    while len(seconds) < _LEAST_REPEATS or sum(seconds) < _LEAST_SECONDS:
        start = time.perf_counter()
        network(images)
        if on_cuda:
            torch.cuda.synchronize(images.device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(images.device) if on_cuda else None
    with FlopCounterMode(display=False) as counter:
        network(images[:1])
    return Speed(
        device=name_device(images.device),
        batch_size=len(images),
        tiles_per_second=len(images) / statistics.median(seconds),
        peak_memory_bytes=peak,
        flops=counter.get_total_flops(),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def name_device(device: torch.device) -> str:
    """The name of a device in results, e.g. `NVIDIA H200` or `CPU (2 threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({threads} thread{'s' * (threads > 1)})"
    return device.type
