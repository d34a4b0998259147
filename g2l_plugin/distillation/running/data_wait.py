"""The time that the device waits for tiles, and a warning if that limits the run."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from loguru import logger
from typing_extensions import override

from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.slides.batch import TileBatch

_WARM_UP = 10
"""Steps that are not counted: workers start, kernels are chosen."""


class WaitClock:
    """Seconds from the end of a step's work to the arrival of the next batch.

    On CUDA the device's clock is read, without waiting for it: the host is ahead of the device, and
    the host's waiting is not the device's.
    """

    def __init__(self, device: torch.device) -> None:
        """Initializes the clock for a device."""
        self._on_cuda = device.type == "cuda"
        self._since: Any = None
        self._waits: list[tuple[Any, Any]] = []
        self._began: float | None = None
        self._total = 0.0

    def start(self) -> None:
        """Starts to count: the time before belongs to no step."""
        self._began, self._since = time.perf_counter(), self._now()

    def batch_arrived(self) -> None:
        """Ends a wait."""
        if self._since is not None:
            self._waits.append((self._since, self._now()))
            self._since = None

    def step_ended(self) -> None:
        """Ends a step and begins a wait."""
        began = self._began
        self.start()
        if began is not None and self._began is not None:
            self._total += self._began - began

    def read(self) -> tuple[float, float]:
        """Seconds of waiting, and seconds of all steps, since the last call."""
        total, self._total = self._total, 0.0
        if not self._on_cuda:
            waits, self._waits = self._waits, []
            return sum(end - begin for begin, end in waits), total
        # The device may not have reached the last wait. It has reached those before: the host has
        # read the loss of a later step.
        waits, self._waits = self._waits[:-1], self._waits[-1:]
        return sum(begin.elapsed_time(end) for begin, end in waits) / 1000, total

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class DataWait(pl.Callback):
    """Logs the share of time that the device waits for data, and warns if it is large."""

    def __init__(self, every_n_steps: int = 50, warn_above: float = 0.1) -> None:
        """Initializes the callback.

        Args:
            every_n_steps: Steps per logged share.
            warn_above: Share, 0 to 1, above which a warning names the loader as the limit; over
                100 steps.
        """
        super().__init__()
        self.every_n_steps = every_n_steps
        self.warn_above = warn_above
        self._clock: WaitClock | None = None
        self._interrupted = False
        self._steps = 0
        self._tiles = 0
        self._sums = (0.0, 0.0)
        self._warned = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._clock = WaitClock(pl_module.device)
        self._steps, self._tiles, self._sums = 0, 0, (0.0, 0.0)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._clock is not None
        if self._interrupted:
            self._interrupted = False
            self._clock.start()
        self._clock.batch_arrived()

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self._clock is not None
        self._clock.step_ended()
        self._steps += 1
        if self._steps == _WARM_UP:
            self._clock.read()
        if self._steps <= _WARM_UP:
            return
        self._tiles += len(TileBatch.of(batch).tiles)
        if (self._steps - _WARM_UP) % self.every_n_steps:
            return
        waited, total = self._clock.read()
        pl_module.log_from_host("train/data_wait", waited / max(total, 1e-9))
        self._sums = (self._sums[0] + waited, self._sums[1] + total)
        if self._steps - _WARM_UP >= 100 and not self._warned:
            self._warn(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self._interrupted = True  # writing it is no wait for data

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._interrupted = True

    def _warn(self, trainer: pl.Trainer) -> None:
        waited, total = self._sums
        if waited <= self.warn_above * total:
            return
        self._warned = True
        loader: Any = trainer.train_dataloader
        workers = getattr(loader, "num_workers", 0)
        logger.warning(
            f"Reading tiles limits the run: the device waits for them {waited / total:.0%} of the "
            f"time. It gets {self._tiles / total:,.0f} tiles/s and could process "
            f"{self._tiles / max(total - waited, 1e-9):,.0f}. Use more workers "
            f"(N_DATA_WORKERS, now {workers} on {usable_cpus()} cores), or pack the tiles once "
            "(g2l pack, PACKED_ROOT)."
        )
