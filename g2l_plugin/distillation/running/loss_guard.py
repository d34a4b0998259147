"""Ends a run whose loss or weights have gone wrong, before they replace good ones."""

from __future__ import annotations

import collections
import math
import statistics
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from loguru import logger
from typing_extensions import override

from g2l_plugin.distillation.running.run_state import tile_dataset
from g2l_plugin.distillation.running.step_sync import SyncedStep
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.slides.batch import TileBatch

_MIN_DEVIATION = 0.01
"""Smallest standard deviation of the start, as a share of its mean."""


class LossGuard(pl.Callback):
    """Raises an error if the loss is not finite or has exploded; such weights are not saved.

    The loss of a step is checked one step later, and before any checkpoint is written. It has
    exploded if the mean of its last `window` values is more than `deviations` standard deviations
    above the mean of its first `window` values. Lightning's own checks (`detect_anomaly`,
    `EarlyStopping(check_finite)`) wait for the device at every step.
    """

    def __init__(self, window: int = 20, deviations: float = 6.0) -> None:
        """Initializes the callback.

        Args:
            window: Steps in a mean.
            deviations: How far the loss may rise above its start, in standard deviations.
        """
        super().__init__()
        self.window = window
        self.deviations = deviations
        self._devices: int | None = None
        self._start: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=window)
        self._numbers: collections.deque[np.ndarray | None] = collections.deque(maxlen=2)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # The loss is of the tiles of all devices: with others it starts anew.
        if self._devices not in (None, trainer.world_size):
            self._start.clear()
            self._recent.clear()
        self._devices = trainer.world_size

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._numbers.append(TileBatch.of(batch).numbers)
        if (last := pl_module.step_sync.last) is not None:
            self._check_finite(trainer, last, self._numbers[0])
            if pl_module.loss_settled:
                self._check_explosion(trainer, last)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._check_pending(trainer, pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self._check_pending(trainer, pl_module)
        for name, value in checkpoint["state_dict"].items():
            if torch.is_tensor(value) and not torch.isfinite(value).all():
                raise UserError(
                    f"{name} has values that are not finite after step {trainer.global_step}. "
                    f"{_advice(trainer)}"
                )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "start": list(self._start),
            "recent": list(self._recent),
            "devices": self._devices,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._devices = state_dict.get("devices")
        self._start = list(state_dict["start"])
        self._recent = collections.deque(state_dict["recent"], maxlen=self.window)

    def _check_pending(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if (pending := pl_module.step_sync.peek()) is not None:
            self._check_finite(trainer, pending, self._numbers[-1] if self._numbers else None)

    def _check_finite(
        self, trainer: pl.Trainer, step: SyncedStep, numbers: np.ndarray | None
    ) -> None:
        if not math.isfinite(step.loss):
            path = _write_tiles(trainer, numbers)
            where = f", on the tiles listed in {path}" if path else ""
            raise UserError(
                f"The loss is {step.loss} at step {step.step + 1}{where}. {_advice(trainer)}"
            )

    def _check_explosion(self, trainer: pl.Trainer, step: SyncedStep) -> None:
        if len(self._start) < self.window:
            self._start.append(step.loss)
            return
        self._recent.append(step.loss)
        if len(self._recent) < self.window:
            return
        start, now = statistics.fmean(self._start), statistics.fmean(self._recent)
        deviation = max(statistics.pstdev(self._start), _MIN_DEVIATION * abs(start))
        if now > start + self.deviations * deviation:
            raise UserError(
                f"The loss has exploded by step {step.step + 1}: its mean was {start:.4g} over the "
                f"first {self.window} steps and is {now:.4g} over the last. {_advice(trainer)}"
            )


def _advice(trainer: pl.Trainer) -> str:
    """The last checkpoint, and what to change."""
    paths = [getattr(c, "last_model_path", "") or "" for c in trainer.checkpoint_callbacks]
    paths += [getattr(c, "best_model_path", "") or "" for c in trainer.checkpoint_callbacks]
    saved = next((path for path in paths if path), None)
    last = f"The last checkpoint is {saved}" if saved else "There is no checkpoint yet"
    return f"{last}. Start again with a lower learning rate (LR_VALUE) or another `precision`."


def _write_tiles(trainer: pl.Trainer, numbers: np.ndarray | None) -> Path | None:
    """Lists the tiles of a device's batch in the run's folder, if they have numbers."""
    folder = trainer.log_dir  # a collective call: all devices must make it
    dataset = tile_dataset(trainer)
    if numbers is None or folder is None:
        return None
    numbers = np.asarray(numbers)
    tiles = pd.DataFrame({"tile": numbers}) if dataset is None else dataset.locate(numbers)
    rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
    path = Path(folder).resolve() / f"bad_batch{rank}.csv"
    try:
        write_text(path, tiles.to_csv(index=False))
    except OSError as error:  # the loss is the news
        logger.warning(f"The tiles of the batch could not be written: {error}.")
        return None
    return path
