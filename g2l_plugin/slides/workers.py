"""Processes that read tiles: started, watched, and read from.

No pixel goes through /dev/shm, of which a container has 64 MB: workers write tiles into memory that
they share with this process (`BlockReader`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.block_reader import BlockReader, no_shared_memory

_PREFETCHED = 2
"""Blocks that each worker reads ahead."""

_SHARED_MEMORY = re.compile(
    r"shared memory\(shm\)|shared memory object|shared memory limit|/dev/shm|/torch_\d+.*right size"
)
"""What PyTorch says when /dev/shm is full; a worker that writes there dies of a bus error."""

_ADVICE = (
    "lower N_DATA_WORKERS or `buffer_tiles`. Then run the same command again: it continues from "
    "the last checkpoint."
)


def read_blocks(
    dataset: Any, blocks: Sequence[np.ndarray], workers: int, advice: str = _ADVICE
) -> Iterator[torch.Tensor]:
    """Reads blocks of tiles, in their order.

    Args:
        dataset: Has `tile_shape`, and `read_into` that reads a tile by its number.
        blocks: Numbers of the tiles of each block, neighbours together: a worker reads a block.
        workers: Processes that read; 0 reads in this one.
        advice: What to do if memory ran out, and then.

    Yields:
        The tiles of each block, uint8 (n, 3, height, width), pinned if this process uses a GPU.

    Raises:
        UserError: A worker was killed.
    """
    longest = max((len(block) for block in blocks), default=0)
    # One block more than are on their way: that which is being copied.
    n_rows = (workers * _PREFETCHED + 2) * longest
    reader = BlockReader(dataset, n_rows, multiprocessing.get_start_method())
    loader = DataLoader(
        reader,
        batch_sampler=reader,  # type: ignore[arg-type]
        collate_fn=as_it_is,
        num_workers=workers,
        prefetch_factor=_PREFETCHED if workers else None,
        worker_init_fn=functools.partial(start_worker, None),
    )
    reader.start(blocks)
    read = start_workers(loader)
    for _ in blocks:
        with explain_dead_workers(advice):
            rows = np.array(next(read), np.int64)
        tiles = copy_rows(reader.tiles, rows)
        reader.release(rows)
        yield tiles


def copy_rows(tiles: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Copies rows of shared memory into a batch, pinned if this process uses a GPU."""
    # Not wherever there is a GPU: pinning takes a context on it, some 500 MB, which a run on the
    # CPU would hold for nothing. A run on a GPU has moved its model there before it reads.
    pin = torch.cuda.is_initialized()
    batch = tiles.new_empty((len(rows), *tiles.shape[1:]), pin_memory=pin)
    # By numpy: as many threads of torch as cores wait 20 times as long for workers' cores.
    np.take(tiles.numpy(), rows, axis=0, out=batch.numpy(), mode="clip")
    return batch


def as_it_is(rows: list[int]) -> list[int]:
    """Leaves what a `BlockReader` has read as it is, where PyTorch's loader would collate it."""
    return rows


def start_workers(reader: DataLoader) -> Iterator[list[int]]:
    """Starts the workers; a worker's death is reported only by the wait for its tiles."""
    try:
        with explain_dead_workers():
            blocks = iter(reader)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # of the queues' semaphores
            raise no_shared_memory(error) from error
        raise
    # PyTorch's handler would raise in the middle of a step, or while a checkpoint is written.
    if reader.num_workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return blocks


def start_worker(init_worker: Callable[[int], None] | None, worker: int) -> None:
    """Protects a worker from what is the run's: signals to its process group, and its garbage."""
    os.setpgrp()  # the run stops its workers itself, after it has saved a checkpoint
    gc.freeze()  # a finalizer may import amid an import (python/cpython#91351), or free GPU memory
    if init_worker is not None:
        init_worker(worker)


@contextlib.contextmanager
def explain_dead_workers(advice: str = _ADVICE) -> Iterator[None]:
    """Turns PyTorch's report of a killed worker into a `UserError`.

    Args:
        advice: What to do if memory ran out, and then.

    Raises:
        UserError: A worker was killed, or the memory that workers share is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, UserError) and _SHARED_MEMORY.search(str(error)):
            raise no_shared_memory(error) from error
        # PyTorch's report of a killed worker starts so; an error raised in a worker does not.
        if isinstance(error, UserError) or "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(
            f"A process that reads tiles died: {in_one_line(error)}. If memory ran out, {advice}"
        ) from error


def rank_and_devices() -> tuple[int, int]:
    """Rank of this device and number of devices."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
