"""The progress bar of a fit: loss, tiles per second and the time left, over all steps."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from typing_extensions import override


class DistillationProgressBar(ProgressBar):
    """One bar from the first step to the last, over all epochs. Lightning's has one per epoch.

    Tiles per second since the last refresh also go to the logger.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        """Initializes the progress bar.

        Args:
            refresh_rate: Steps between two refreshes (eva's TQDM_REFRESH_RATE); 0 shows no bar.
        """
        super().__init__()
        self._refresh_rate = refresh_rate
        self._enabled = refresh_rate > 0
        self._bar: tqdm | None = None
        self._since = (0.0, 0)
        self._pause = 0.0

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = self._refresh_rate > 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._since = (time.monotonic(), pl_module.run_state.tiles_seen)
        self._bar = tqdm(
            desc="Distilling",
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            unit="step",
            disable=not self._enabled,
            dynamic_ncols=True,
        )

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        is_last = trainer.global_step >= trainer.estimated_stepping_batches
        if trainer.global_step % max(self._refresh_rate, 1) and not is_last:
            return
        now, tiles = time.monotonic(), pl_module.run_state.tiles_seen
        then, tiles_then = self._since
        self._since = (now, tiles)
        tiles_per_second = (tiles - tiles_then) / max(now - then, 1e-9)
        pl_module.log_from_host("train/tiles_per_second", tiles_per_second)
        last = pl_module.step_sync.last  # one step old: the host does not wait for the device
        loss = f"loss={last.loss:.3f}, " if last is not None else ""
        assert self._bar is not None
        self._bar.set_postfix_str(f"{loss}{tiles_per_second:.0f} tiles/s", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # The time of a validation within the fit does not count.
        self._pause = time.monotonic()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        then, tiles = self._since
        self._since = (then + time.monotonic() - self._pause, tiles)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        assert self._bar is not None
        self._bar.update(trainer.global_step - self._bar.n)  # an early stop is between refreshes
        self._bar.close()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)))
