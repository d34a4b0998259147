"""Ends a run that has gone wrong, before its weights take the place of good ones."""

from __future__ import annotations

import collections
import math
import statistics
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from loguru import logger
from typing_extensions import override

from g2l_plugin.distillation.agreement import Agreed
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.slides.slide_tiles import SlideTiles

_LEAST_DEVIATION = 0.01
"""A start steadier than this share of its loss is taken to have scattered as much."""


class LossGuard(pl.Callback):
    """Raises when the loss is no finite number or has exploded; such weights are not saved.

    The loss of a step is looked at one step later, and before any checkpoint is written. It has
    exploded when the mean of its last `window` values is more than `deviations` standard deviations
    above the mean of its first `window` values.
    """

    def __init__(self, window: int = 20, deviations: float = 6.0) -> None:
        """Initializes the callback.

        Args:
            window: Steps that a mean is taken over.
            deviations: How far the loss may rise above its start, in its standard deviations there.
        """
        super().__init__()
        self.window = window
        self.deviations = deviations
        self._start: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=window)
        self._tiles: collections.deque[Any] = collections.deque(maxlen=2)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._tiles.append((getattr(batch, "metadata", None) or {}).get("tile"))
        if (known := pl_module.agreement.known) is not None:
            self._check_finite(trainer, known, self._tiles[0])
            self._check_explosion(trainer, known)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._check_last(trainer, pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self._check_last(trainer, pl_module)
        for name, value in checkpoint["state_dict"].items():
            if torch.is_tensor(value) and not torch.isfinite(value).all():
                raise UserError(
                    f"{name} has values that are not finite after step {trainer.global_step}. "
                    f"{_next_steps(trainer)}"
                )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"start": list(self._start), "recent": list(self._recent)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = list(state_dict["start"])
        self._recent = collections.deque(state_dict["recent"], maxlen=self.window)

    def _check_last(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if (last := pl_module.agreement.peek()) is not None:
            self._check_finite(trainer, last, self._tiles[-1] if self._tiles else None)

    def _check_finite(self, trainer: pl.Trainer, step: Agreed, tiles: Any) -> None:
        if not math.isfinite(step.loss):
            kept = _save_tiles(trainer, tiles)
            where = f", on the tiles listed in {kept}" if kept else ""
            raise UserError(
                f"The loss is {step.loss} at step {step.step + 1}{where}. {_next_steps(trainer)}"
            )

    def _check_explosion(self, trainer: pl.Trainer, step: Agreed) -> None:
        if len(self._start) < self.window:
            self._start.append(step.loss)
            return
        self._recent.append(step.loss)
        if len(self._recent) < self.window:
            return
        start, now = statistics.fmean(self._start), statistics.fmean(self._recent)
        deviation = max(statistics.pstdev(self._start), _LEAST_DEVIATION * abs(start))
        if now > start + self.deviations * deviation:
            raise UserError(
                f"The loss has exploded by step {step.step + 1}: it was {start:.4g} over the first "
                f"{self.window} steps and is {now:.4g} over the last. {_next_steps(trainer)}"
            )


def _next_steps(trainer: pl.Trainer) -> str:
    """What is left of the run, and what to change."""
    paths = [getattr(c, "last_model_path", "") or "" for c in trainer.checkpoint_callbacks]
    paths += [getattr(c, "best_model_path", "") or "" for c in trainer.checkpoint_callbacks]
    kept = next((path for path in paths if path), None)
    last = f"The last weights kept are in {kept}" if kept else "No checkpoint was kept yet"
    return f"{last}; start again with a lower learning rate (LR_VALUE) or another `precision`."


def _save_tiles(trainer: pl.Trainer, tiles: Any) -> Path | None:
    """Writes which tiles a device's batch had into the run's folder, where they are numbered."""
    folder = trainer.log_dir  # devices agree on it: all must ask
    if tiles is None or folder is None:
        return None
    table = pd.DataFrame({"tile": torch.as_tensor(tiles).cpu().numpy()})
    source = getattr(getattr(trainer.train_dataloader, "dataset", None), "tiles", None)
    if isinstance(source, SlideTiles):
        table["slide"] = [source.paths[number] for number in source.slide_of_tile[table["tile"]]]
        table[["x", "y"]] = source.xy[table["tile"]]
    rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
    path = Path(folder).resolve() / f"bad_batch{rank}.csv"
    try:
        write_text(path, table.to_csv(index=False))
    except OSError as error:  # the loss is the news
        logger.warning(f"The batch's tiles could not be written: {error}.")
        return None
    return path
