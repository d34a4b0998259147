"""Batches of tiles: workers read blocks of neighbours, a buffer mixes them."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
from loguru import logger
from torch.utils.data import DataLoader

from g2l_plugin.errors import UserError
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.block_reader import BlockReader
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.mixing import MixingBuffer, shuffled_blocks
from g2l_plugin.slides.workers import (
    as_it_is,
    copy_rows,
    explain_dead_workers,
    rank_and_devices,
    start_worker,
    start_workers,
)

_PREFETCHED = 2
"""Blocks that PyTorch's loader lets each worker read ahead, unless it is told another number."""

_MIN_REFILLS = 4
"""Smallest number of times that an epoch fills the buffer. A buffer as large as the epoch would
delay the first batch until all tiles are read."""


class TileLoader:
    """Shuffled epochs over a dataset's tiles, each tile once per epoch.

    The order depends on the seed, the epoch and the number of devices, not on the number of
    workers. Memory does not grow with the cohort: the loader holds a buffer, each worker its open
    slides. Lightning sets the epoch, and saves and restores the position within it.
    """

    # Own code, and not a library's shuffle buffer: a resumed run must continue within an epoch with
    # exactly the batches of an uninterrupted run, with any number of workers.

    def __init__(
        self,
        dataset: TileDataset,
        batch_size: int = 32,
        block_tiles: int = 64,
        buffer_tiles: int = 8192,
        seed: int = 42,
        drop_last: bool = True,
        **worker_options: Any,
    ) -> None:
        """Initializes the loader.

        Args:
            dataset: The tiles, after `setup`, all of one size.
            batch_size: Tiles per batch on each device.
            block_tiles: Neighbouring tiles that a worker reads together.
            buffer_tiles: Size of the mixing buffer of each device, 0.2 MB per tile at 256 px.
            seed: Seed of the order.
            drop_last: Whether to leave out the last batch of an epoch if it is not full.
            worker_options: Options of PyTorch's `DataLoader`.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._block_tiles = block_tiles
        self._buffer_tiles = buffer_tiles
        self._seed = seed
        init_worker = worker_options.pop("worker_init_fn", None)
        worker_options["worker_init_fn"] = functools.partial(start_worker, init_worker)
        self._worker_options = worker_options
        self._blocks: BlockReader | None = None
        self._reader: DataLoader | None = None
        self._position = {"epoch": 0, "batches": 0}
        self._start = self._position
        self._resumed = False

    @property
    def sampler(self) -> TileLoader:
        """The loader itself: Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the next epoch. After `load_state_dict` this is ignored: epochs count from there."""
        # If a run ended in an epoch, Lightning counts that epoch as finished; the state does not.
        if not self._resumed:
            self._start = {"epoch": epoch, "batches": 0}

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of batches it has yielded per device, and the number of devices."""
        return self._position | {"devices": rank_and_devices()[1]} | self._settings()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a state with the next iteration.

        The order depends on the number of devices. If that changed, the epoch continues after the
        same number of tiles, but some tiles are repeated and some left out.

        Raises:
            UserError: Another setting of the order differs: the place has no meaning in it.
        """
        for name, now in self._settings().items():
            if (was := state.get(name, now)) != now:
                raise UserError(
                    f"The run to resume drew its batches with `{name}` {was}; now it is {now}. "
                    "Resume with its value, or start a new run (RESUME=null)."
                )
        n_devices = rank_and_devices()[1]
        before = state.get("devices", n_devices)
        if before != n_devices:
            logger.warning(
                f"The run had {before} devices and now has {n_devices}: the order of tiles in the "
                "rest of this epoch changes; some are repeated and some left out."
            )
        batches = state["batches"] * before // n_devices
        self._position = self._start = {"epoch": state["epoch"], "batches": batches}
        self._resumed = True

    def __len__(self) -> int:
        """Batches per epoch on each device."""
        n_tiles = len(self.dataset) // rank_and_devices()[1]
        return n_tiles // self.batch_size if self.drop_last else -(-n_tiles // self.batch_size)

    @property
    def num_workers(self) -> int:
        """Processes that read tiles; 0 if this process reads them."""
        return self._worker_options.get("num_workers", 0)

    def __iter__(self) -> Iterator[TileBatch]:
        """Yields the batches of an epoch, or the rest of a resumed one; pinned if a GPU is used.

        Raises:
            UserError: A worker was killed, or too many tiles are lost.
        """
        epoch, skip = self._start["epoch"], self._start["batches"]
        if skip and skip >= len(self):
            epoch, skip = epoch + 1, 0
        self._start = {"epoch": epoch + 1, "batches": 0}
        mixing = self._mixing_buffer(epoch)
        mixing.skip(skip)
        # Tiles that the skipped batches left in the buffer are read again, neighbours together.
        full = mixing.full_slots
        full = full[np.argsort(mixing.content[full])]
        refill = [full[i : i + self._block_tiles] for i in range(0, len(full), self._block_tiles)]
        reader, blocks = self._make_reader(len(mixing.content))
        blocks.start([mixing.content[slots] for slots in refill] + list(mixing.waiting))
        read = start_workers(reader)
        row_of_slot = np.zeros(len(mixing.content), np.int64)
        for batch in range(skip, len(self)):
            for slots in itertools.chain(refill, mixing.fill()):
                with explain_dead_workers():
                    row_of_slot[slots] = next(read)
            refill = []
            drawn = mixing.draw()
            rows = row_of_slot[drawn]
            tiles = copy_rows(blocks.tiles, rows)
            blocks.release(rows)
            self._position = {"epoch": epoch, "batches": batch + 1}
            numbers = mixing.content[drawn]
            yield TileBatch(tiles, numbers, self.dataset.tiles.substitutes(numbers), epoch)

    def _make_reader(self, n_slots: int) -> tuple[DataLoader, BlockReader]:
        """Makes the reader, or takes that of the last epoch, whose workers may go on.

        Args:
            n_slots: Slots of the mixing buffer.
        """
        ahead = self.num_workers * (self._worker_options.get("prefetch_factor") or _PREFETCHED) + 1
        n_rows = n_slots + ahead * self._block_tiles
        if self._reader is None or self._blocks is None or len(self._blocks.tiles) < n_rows:
            context = self._worker_options.get("multiprocessing_context") or multiprocessing
            method = context if isinstance(context, str) else context.get_start_method()
            self._blocks = BlockReader(self.dataset, n_rows, method)
            self._reader = DataLoader(
                self._blocks,
                batch_sampler=self._blocks,  # type: ignore[arg-type]
                collate_fn=as_it_is,
                **self._worker_options,
            )
        return self._reader, self._blocks

    def _settings(self) -> dict[str, int]:
        """What decides the order, beside the devices."""
        return {
            "batch_size": self.batch_size,
            "block_tiles": self._block_tiles,
            "buffer_tiles": self._buffer_tiles,
            "seed": self._seed,
            "drop_last": int(self.drop_last),
        }

    def _mixing_buffer(self, epoch: int) -> MixingBuffer:
        rank, n_devices = rank_and_devices()
        rng = np.random.default_rng([self._seed, epoch])
        group_sizes = self.dataset.tiles.group_sizes
        blocks = shuffled_blocks(group_sizes, self._block_tiles, rng, rank, n_devices)
        n_tiles = len(self.dataset) // n_devices
        capacity = min(self._buffer_tiles, n_tiles // _MIN_REFILLS)
        rng = np.random.default_rng([self._seed, epoch, rank])
        return MixingBuffer(blocks, self.batch_size, capacity, rng)
