"""What follows a run, as callbacks that the trainer calls without knowing them."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from rich.console import RenderableType


class RunCallback(pl.Callback):
    """A callback with three more hooks, which `g2l_plugin.KDTrainer` calls."""

    def on_run_end(self, trainer: pl.Trainer, run_folder: Path) -> None:
        """Runs on the device that writes, after `checkpoints/last.ckpt` of a finished run.

        Args:
            trainer: The trainer.
            run_folder: The run's folder.
        """

    def on_session_end(self) -> list[RenderableType]:
        """Runs after everything else of the run, validation and eva's results included.

        Returns:
            What the trainer prints as the last lines, in the order of its callbacks.
        """
        return []

    def raise_failure(self) -> None:
        """Runs last of all.

        Raises:
            UserError: A part failed after the training; nothing of the run is lost.
        """
