"""When a run is saved: on a schedule of steps and time, and when it is asked to stop."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from loguru import logger
from typing_extensions import override

from g2l_plugin import upstream
from g2l_plugin.distillation.running.atomic_checkpoint import CheckpointWriteError
from g2l_plugin.distillation.running.signals import StopSignals
from g2l_plugin.errors import UserError
from g2l_plugin.runs.checkpoints import BEST, FOLDER, LAST, list_checkpoints, step_file


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoints of a run, `checkpoints/step=NNNNNNNN.ckpt` in its folder.

    All devices save after the same optimizer step. On SIGTERM, SIGUSR1 or SIGINT they save and exit
    with 143, 138 or 130. A checkpoint that cannot be written is a warning: the run continues, and
    the previous one stays. A single device also saves when a `TileLoader` cannot read the next
    batch. At the end `KDTrainer` writes `last.ckpt`. With `checkpoint_type: best` of the trainer,
    the weights with the best validation are kept in `best.ckpt`, and published.

    Lightning's own ModelCheckpoint writes in place, on each device's own clock, and not on signals.
    """

    def __init__(
        self,
        every_n_train_steps: int = 500,
        every_minutes: float = 15.0,
        keep: int = 2,
        monitor: str = "val/cka",
    ) -> None:
        """Initializes the callback.

        Args:
            every_n_train_steps: Optimizer steps between two checkpoints.
            every_minutes: Longest time between two checkpoints, in minutes.
            keep: Checkpoints to keep; the disk holds one more while one is written.
            monitor: The figure of a validation that is highest for the best checkpoint.

        Raises:
            UserError: A value is out of range.
        """
        if every_n_train_steps < 1 or every_minutes <= 0 or keep < 1:
            raise UserError(
                f"RunCheckpoint has every_n_train_steps={every_n_train_steps}, every_minutes="
                f"{every_minutes}, keep={keep}. Expected at least 1 step, some time, and 1 file."
            )
        super().__init__(save_top_k=0, save_last=True, every_n_train_steps=every_n_train_steps)
        self.every_minutes = every_minutes
        self.keep = keep
        self.best_metric = monitor
        self._best = -math.inf
        self._signals = StopSignals()
        self._saved_at = time.monotonic()
        self._step = self._saved_step = 0
        self._stops = False
        self._place: Any = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(str(trainer.log_dir)).resolve() / FOLDER)
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not (Path(str(self.dirpath)) / BEST).is_file():  # it is of another session
            self._best = -math.inf
        self._saved_at, self._step = time.monotonic(), trainer.global_step
        self.last_model_path = self.best_model_path = str(trainer.ckpt_path or "")
        if trainer.is_global_zero:  # what a killed process was writing
            for partial in Path(str(self.dirpath)).glob(".*.ckpt.*.part"):
                partial.unlink(missing_ok=True)
        self._signals.start()
        upstream.skip_sigterm_broadcast(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        minutes = (time.monotonic() - self._saved_at) / 60
        sync = pl_module.step_sync
        sync.stop_requested = self._signals.received is not None
        sync.save_requested = trainer.is_global_zero and minutes >= self.every_minutes
        last = sync.last
        self._stops |= last is not None and last.stop
        # Between accumulated batches there are gradients, which a checkpoint does not hold.
        self._place = None
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if not stepped:
            return
        due = trainer.global_step % upstream.checkpoint_interval(self) == 0
        # A request is known two steps later: those from before the last save are already met.
        requested = last is not None and last.save and last.step >= self._saved_step
        if due or self._stops or requested:
            error = self._save(trainer)
            sync.save_requested = False
            if error is not None:
                _warn(trainer, f"{error} The run continues. Last checkpoint: {self._last}.")
        if self._stops:
            _warn(
                trainer,
                f"Stopped at step {trainer.global_step:,} as requested. Last checkpoint: "
                f"{self._last}. The same command resumes there (`resume: auto`).",
            )
            raise SystemExit(self._exit_status(trainer))
        self._place = _place(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.stop()
        self._place = None

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._signals.stop()
        # Between a step and the next batch the state is whole; later, in validation, or with other
        # devices, it is not.
        whole = self._place is not None and self._place == _place(trainer)
        whole &= trainer.training and trainer.world_size == 1
        if whole and isinstance(exception, Exception):
            with contextlib.suppress(UserError):  # weights that are not worth saving
                self._save(trainer)
            _warn(trainer, f"Ended at step {trainer.global_step:,}. Last checkpoint: {self._last}.")

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves nothing: the end of an epoch is a step like any other."""

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(trainer, "checkpoint_type", None) != "best":
            return
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step == 0:
            return
        value = trainer.callback_metrics.get(self.best_metric)
        if value is None:
            raise UserError(
                f"RunCheckpoint's `monitor` is {self.best_metric}. Expected a figure of the "
                f"validation: {', '.join(sorted(trainer.callback_metrics))}."
            )
        if value.item() > self._best:  # never true of NaN
            self._best = value.item()
            path = Path(str(self.dirpath)) / BEST
            if (error := save_jointly(trainer, path, weights_only=True)) is not None:
                _warn(trainer, f"{error} The run continues.")

    @override
    def state_dict(self) -> dict[str, Any]:
        # For the rest, the folder holds the state.
        return {"best": self._best, "monitor": self.best_metric}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("monitor", self.best_metric) == self.best_metric:
            self._best = state_dict["best"]

    @property
    def _last(self) -> str:
        return self.last_model_path or "none"

    def _save(self, trainer: pl.Trainer) -> str | None:
        """Saves, and removes old checkpoints; returns why saving failed, or None."""
        # Also when it fails: the next try comes as late as the next save would.
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        path = Path(str(self.dirpath)) / step_file(trainer.global_step)
        error = save_jointly(trainer, path)
        if error is None:
            self.last_model_path = self.best_model_path = str(path)
            if trainer.is_global_zero:
                self._remove_old(path)
        return error

    def _exit_status(self, trainer: pl.Trainer) -> int:
        # Lightning kills the first process of a machine when one that it started there fails.
        environment = getattr(trainer.strategy, "cluster_environment", None)
        started = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        return 0 if started else self._signals.exit_status

    def _remove_old(self, newest: Path) -> None:
        """Removes all but the newest by writing time: damaged ones may be of later steps."""
        newest.with_name(LAST).unlink(missing_ok=True)  # of a run that had ended, and goes on
        others = [path for path in list_checkpoints(newest.parent.parent) if path != newest]
        others = [path for path in others if path.name.startswith("step=")]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[self.keep - 1 :]:
            path.unlink(missing_ok=True)


def save_jointly(trainer: pl.Trainer, path: Path, weights_only: bool = False) -> str | None:
    """Saves on all devices together.

    Args:
        trainer: The trainer.
        path: The file to write.
        weights_only: Whether to leave out what only resuming needs.

    Returns:
        Why the checkpoint could not be written, the same on all devices; None if it was.
    """
    error = None
    try:
        trainer.save_checkpoint(path, weights_only=weights_only)
    except CheckpointWriteError as failed:  # on the device that writes, before it met the others
        error = str(failed)
        trainer.strategy.barrier("Trainer.save_checkpoint")
    return trainer.strategy.broadcast(error)


def _place(trainer: pl.Trainer) -> Any:
    """The place in the data; None if the loader does not know it."""
    state = getattr(trainer.train_dataloader, "state_dict", None)
    return state() if state is not None else None


def _warn(trainer: pl.Trainer, message: str) -> None:
    if trainer.is_global_zero:
        logger.warning(message)
