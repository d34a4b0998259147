"""What errors of PyTorch, CUDA and NCCL mean for a user."""

from __future__ import annotations

import re

import torch

from g2l_plugin.errors import UserError, in_one_line

_NO_MEMORY = re.compile(r"CUDA error: out of memory|_STATUS_ALLOC_FAILED")
_LIBRARY = re.compile(r"CUDA error|CUDA driver error|CU[A-Z]+_STATUS_|cuDNN error|HIP error")
"""Errors of CUDA and its libraries. PyTorch 2.8 and newer raise some as an `AcceleratorError`."""

_NCCL = "NCCL error"
_NCCL_PEER = "ncclRemoteError"
"""NCCL's name for the error of a device whose peer has ended."""

_RESUME = "Run the same command again: it resumes from the last checkpoint (`resume: auto`)"


def explain(error: Exception, n_devices: int) -> str | None:
    """Says what an error means, and what to do; None for other errors, and for our own.

    Args:
        error: What a run raised.
        n_devices: Devices of the run.
    """
    text = str(error)
    if isinstance(error, UserError):
        return None
    if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY.search(text):
        return (
            f"The device's memory is full: {in_one_line(error)}. Set `micro_batch_size` "
            "(MICRO_BATCH_SIZE), which does not change the loss, or lower BATCH_SIZE."
        )
    if _NCCL in text and _NCCL_PEER not in text:
        return (
            f"The devices cannot talk to each other: {in_one_line(error)}. {_RESUME}. If it fails "
            "again, NCCL_DEBUG=INFO says why: check driver, network and --shm-size of a container."
        )
    # A collective call fails like this when a device is gone.
    if n_devices > 1 and (isinstance(error, torch.distributed.DistError) or "/gloo/" in text):
        return f"Another device of the run has ended; its own error says why. {_RESUME}."
    accelerator: type[Exception] | None = getattr(torch, "AcceleratorError", None)
    if (accelerator and isinstance(error, accelerator)) or (
        isinstance(error, RuntimeError) and _LIBRARY.search(text)
    ):
        return (
            f"The GPU failed: {in_one_line(next(iter(text.splitlines()), ''))}. {_RESUME}. If it "
            "fails again, CUDA_LAUNCH_BLOCKING=1 shows the operation, and `nvidia-smi` and "
            "`g2l doctor` whether driver and GPU are sound."
        )
    return None
