"""Batches of tiles: workers read blocks of neighbours, a buffer mixes them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from eva.core.models.modules.typings import INPUT_BATCH
from loguru import logger
from torch.utils.data import DataLoader

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.mixing import MixingBuffer, shuffled_blocks
from g2l_plugin.slides.tiles import TileDataset

_LEAST_REFILLS = 4
"""An epoch fills the buffer at least so often, or its tiles would all be read before its first."""


class TileLoader:
    """Shuffled epochs over a dataset's tiles, each tile once an epoch.

    The order depends on seed, epoch and number of devices alone, not on the number of workers.
    Memory does not grow with the cohort: a buffer here, and the handles of each worker. Lightning
    tells it the epoch, and saves and restores its place within one.
    """

    def __init__(
        self,
        dataset: TileDataset,
        batch_size: int = 32,
        block_tiles: int = 32,
        buffer_tiles: int = 8192,
        seed: int = 42,
        drop_last: bool = True,
        **worker_options: Any,
    ) -> None:
        """Initializes the loader.

        Args:
            dataset: The tiles; set up, and all of one size.
            batch_size: Tiles of a batch, for each device.
            block_tiles: Neighbours that a worker reads in one go.
            buffer_tiles: Tiles that batches are drawn from, 0.2 MB each at 256 px, for each device.
            seed: Seed of the order.
            drop_last: Whether the last batch of an epoch is left out when it is not full.
            worker_options: Of PyTorch's `DataLoader`.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._block_tiles = block_tiles
        self._buffer_tiles = buffer_tiles
        self._seed = seed
        self._reads = _Reads()
        own = worker_options.pop("worker_init_fn", None)
        self._reader: DataLoader = DataLoader(
            dataset,
            batch_sampler=self._reads,  # type: ignore[arg-type]
            worker_init_fn=functools.partial(_start_worker, own),
            **worker_options,
        )
        self._place = {"epoch": 0, "batches": 0}
        self._next = self._place
        self._resumed = False

    @property
    def sampler(self) -> TileLoader:
        """Itself: Lightning tells the epoch to a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that begins next, unless a state was loaded: epochs then follow it."""
        # Lightning counts an epoch that a run ended in as finished; the place does not.
        if not self._resumed:
            self._next = {"epoch": epoch, "batches": 0}

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were yielded on each of how many devices."""
        return self._place | {"devices": _devices()[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Has the next epoch be that one, after those batches.

        The order depends on the number of devices: with another, the epoch goes on after as many
        tiles, but some come twice and some not at all.
        """
        devices = _devices()[1]
        before = state.get("devices", devices)
        if before != devices:
            logger.warning(
                f"The run had {before} devices and has {devices}: the rest of this epoch is not in "
                "the order that it would have had."
            )
        batches = state["batches"] * before // devices
        self._place = self._next = {"epoch": state["epoch"], "batches": batches}
        self._resumed = True

    def __len__(self) -> int:
        """Batches of an epoch on each device."""
        n_tiles = len(self.dataset) // _devices()[1]
        return n_tiles // self.batch_size if self.drop_last else -(-n_tiles // self.batch_size)

    @property
    def num_workers(self) -> int:
        """Processes that read tiles; 0: this one does."""
        return self._reader.num_workers

    def __iter__(self) -> Iterator[INPUT_BATCH]:
        """Yields batches of tiles, uint8 (B, 3, height, width), pinned where there is a GPU.

        The metadata of a batch are, on the host, the numbers of its tiles in the dataset (`tile`,
        int64 (B,)), for which of them others stand in (`stands_in`, bool (B,)), and the number of
        the epoch (`epoch`).

        Raises:
            UserError: A worker died.
        """
        epoch, skip = self._next["epoch"], self._next["batches"]
        if skip and skip >= len(self):
            epoch, skip = epoch + 1, 0
        self._next = {"epoch": epoch + 1, "batches": 0}
        mixing = self._mixing(epoch)
        for _ in range(skip):
            for _slots in mixing.fill():
                pass
            mixing.draw()
        # What would be in the buffer by now is read again, neighbours together.
        slots = mixing.full_slots
        slots = slots[np.argsort(mixing.content[slots])]
        held = [slots[i : i + self._block_tiles] for i in range(0, len(slots), self._block_tiles)]
        self._reads.blocks = [mixing.content[part] for part in held] + list(mixing.waiting)
        blocks = _start_reading(self._reader)
        buffer: torch.Tensor | None = None
        for batch in range(skip, len(self)):
            for slots in itertools.chain(held, mixing.fill()):
                with dead_workers_told():
                    tiles = next(blocks)
                if buffer is None:
                    buffer = tiles.new_empty((len(mixing.content), *tiles.shape[1:]))
                buffer.numpy()[slots] = tiles.numpy()  # ten times as fast as torch's own
            held = []
            assert buffer is not None  # an epoch of any batch has a block
            drawn = mixing.draw()
            pinned = torch.cuda.is_available()
            tiles = buffer.new_empty((len(drawn), *buffer.shape[1:]), pin_memory=pinned)
            torch.index_select(buffer, 0, torch.from_numpy(drawn), out=tiles)
            self._place = {"epoch": epoch, "batches": batch + 1}
            numbers = mixing.content[drawn]
            stands_in = self.dataset.tiles.stands_in(numbers)
            yield INPUT_BATCH(
                tiles, metadata={"tile": numbers, "epoch": epoch, "stands_in": stands_in}
            )

    def _mixing(self, epoch: int) -> MixingBuffer:
        rank, n_devices = _devices()
        rng = np.random.default_rng([self._seed, epoch])
        group_sizes = self.dataset.tiles.group_sizes
        blocks = shuffled_blocks(group_sizes, self._block_tiles, rng, rank, n_devices)
        n_tiles = len(self.dataset) // n_devices
        capacity = min(self._buffer_tiles, n_tiles // _LEAST_REFILLS)
        rng = np.random.default_rng([self._seed, epoch, rank])
        return MixingBuffer(blocks, self.batch_size, capacity, rng)


class _Reads:
    """What the workers read next, as the batch sampler of PyTorch's loader."""

    blocks: Iterable[np.ndarray] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (block.tolist() for block in self.blocks)


def _start_reading(reader: DataLoader) -> Iterator[torch.Tensor]:
    """Starts the workers; that one has died is told where its tiles are waited for, not before."""
    with dead_workers_told():
        blocks = iter(reader)
    # PyTorch's handler would raise in the midst of a step, or while a checkpoint is written.
    if reader.num_workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return blocks


def _start_worker(own: Callable[[int], None] | None, worker: int) -> None:
    """Keeps signals to the run's whole process group, as Ctrl-C, from what reads its tiles."""
    os.setpgrp()  # the run ends its workers itself, after a checkpoint
    if own is not None:
        own(worker)


@contextlib.contextmanager
def dead_workers_told() -> Iterator[None]:
    """Says in a line that a worker was killed, where it is not said yet.

    Raises:
        UserError: A worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        # So PyTorch begins to tell of a worker that was killed; not of an error raised in one.
        if isinstance(error, UserError) or "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(
            f"A process that reads tiles died: {in_one_line(error)}. When memory ran out, lower "
            "N_DATA_WORKERS or `buffer_tiles`; then run the same command again: it goes on where "
            "it was saved."
        ) from error


def _devices() -> tuple[int, int]:
    """Rank and number of devices."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
