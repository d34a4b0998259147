"""When a run is saved: on a schedule of steps and of time, and when it is asked to end."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from loguru import logger
from typing_extensions import override

from g2l_plugin.distillation.checkpoint_io import CheckpointWriteError, list_checkpoints, step_file
from g2l_plugin.distillation.interruption import Interruption
from g2l_plugin.errors import UserError


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoints of a run, `checkpoints/step=NNNNNNNN.ckpt` in its folder.

    All devices save at the same step, after its optimizer step. On SIGTERM, SIGUSR1 or SIGINT they
    save and exit with 143, 138 or 130. A checkpoint that cannot be written is a warning: the run
    goes on, and the one before stays. On a single device, one is written too when the next batch
    of a `TileLoader` cannot be read. At the end `KDTrainer` writes `last.ckpt`.
    """

    def __init__(
        self, every_n_train_steps: int = 500, every_minutes: float = 15.0, keep: int = 2
    ) -> None:
        """Initializes the callback.

        Args:
            every_n_train_steps: Optimizer steps between two checkpoints.
            every_minutes: Minutes after which one is written at the latest.
            keep: Checkpoints that are kept; the disk holds one more while one is written.

        Raises:
            UserError: One of them makes no sense.
        """
        if every_n_train_steps < 1 or every_minutes <= 0 or keep < 1:
            raise UserError(
                f"RunCheckpoint is given every_n_train_steps={every_n_train_steps}, every_minutes="
                f"{every_minutes}, keep={keep}. Expected at least 1 step, 1 file, and some time."
            )
        super().__init__(save_top_k=0, save_last=True, every_n_train_steps=every_n_train_steps)
        self.every_minutes = every_minutes
        self.keep = keep
        self._interruption = Interruption()
        self._saved_at = time.monotonic()
        self._step = self._saved_step = 0
        self._ends = False
        self._place: Any = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(str(trainer.log_dir)).resolve() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at, self._step = time.monotonic(), trainer.global_step
        self.last_model_path = self.best_model_path = str(trainer.ckpt_path or "")
        if trainer.is_global_zero:  # what a process that was killed was writing
            for partial in Path(str(self.dirpath)).glob(".*.ckpt.*.part"):
                partial.unlink(missing_ok=True)
        self._interruption.start()
        # Lightning asks all devices for SIGTERM before each batch, and waits for the answer.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _not_needed  # type: ignore

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
        pl_module.stop_wished = self._interruption.wished is not None
        pl_module.save_wished = trainer.is_global_zero and minutes >= self.every_minutes
        known = pl_module.agreement.known
        self._ends |= known is not None and known.stop
        # Within accumulated batches there are gradients, which a checkpoint does not hold.
        self._place = None
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if not stepped:
            return
        due = trainer.global_step % self._every_n_train_steps == 0
        # A wish takes two steps to be known: those from before a save are met by it.
        wished = known is not None and known.save and known.step >= self._saved_step
        if due or self._ends or wished:
            error = self._save(trainer)
            pl_module.save_wished = False
            if error is not None:
                _warn(trainer, f"{error} The run goes on; kept: {self._kept}.")
        if self._ends:
            _warn(
                trainer,
                f"Ended at step {trainer.global_step:,} as asked; kept: {self._kept}. The same "
                "command goes on from there (`resume: auto`).",
            )
            raise SystemExit(self._exit_status(trainer))
        self._place = _place(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._interruption.stop()
        self._place = None

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._interruption.stop()
        # Between a step and the next batch all that counts is whole; later, in validation, or with
        # other devices, it is not.
        whole = self._place is not None and self._place == _place(trainer)
        whole &= trainer.training and trainer.world_size == 1
        if whole and isinstance(exception, Exception):
            with contextlib.suppress(UserError):  # weights that are not worth it
                self._save(trainer)
            _warn(trainer, f"Ended at step {trainer.global_step:,}; kept: {self._kept}.")

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves nothing: an epoch's end is a step like any other."""

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves nothing: no metric decides what is kept."""

    @override
    def state_dict(self) -> dict[str, Any]:
        return {}  # what is there is in the folder

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is none."""

    @property
    def _kept(self) -> str:
        return self.last_model_path or "nothing"

    def _save(self, trainer: pl.Trainer) -> str | None:
        """Saves and removes what is old; why that could not be, None where it could."""
        # When it fails too: the next try is after as much time as the next save would be.
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
        return 0 if started else self._interruption.exit_status

    def _remove_old(self, newest: Path) -> None:
        """Removes all but the newest by the time of writing: damaged ones may be of later steps."""
        others = [path for path in list_checkpoints(newest.parent.parent) if path != newest]
        others = [path for path in others if path.name.startswith("step=")]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[self.keep - 1 :]:
            path.unlink(missing_ok=True)


def _not_needed() -> None:
    """Does nothing."""


def _place(trainer: pl.Trainer) -> Any:
    """The place in the data; None where the loader knows none."""
    state = getattr(trainer.train_dataloader, "state_dict", None)
    return state() if state is not None else None


def _warn(trainer: pl.Trainer, message: str) -> None:
    if trainer.is_global_zero:
        logger.warning(message)


def save_jointly(trainer: pl.Trainer, path: Path) -> str | None:
    """Saves on all devices together.

    Returns:
        Why it could not be written, the same on all devices; None where it was.
    """
    error = None
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except CheckpointWriteError as failed:  # on the device that writes, before it met the others
        error = str(failed)
        trainer.strategy.barrier("Trainer.save_checkpoint")
    return trainer.strategy.broadcast(error)
