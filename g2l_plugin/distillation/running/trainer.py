"""eva's trainer for distillation: runs resume, errors are clear, and files are whole."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eva.core.trainers import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from loguru import logger
from rich.console import Console
from typing_extensions import override

from g2l_plugin import upstream
from g2l_plugin.distillation.running.atomic_checkpoint import AtomicCheckpointIO
from g2l_plugin.distillation.running.data_wait import DataWait
from g2l_plugin.distillation.running.failures import explain
from g2l_plugin.distillation.running.full_disk import tolerate_full_disk
from g2l_plugin.distillation.running.loss_guard import LossGuard
from g2l_plugin.distillation.running.resume import (
    compare_configs,
    find_session,
    keep_config,
    reopen,
    sole_process,
)
from g2l_plugin.distillation.running.run_checkpoint import save_jointly
from g2l_plugin.distillation.running.run_module import RunModule
from g2l_plugin.distillation.running.run_state import CONFIG_KEY, tile_dataset
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import printable, write_text
from g2l_plugin.runs.checkpoints import (
    FOLDER,
    LAST,
    find_damage,
    is_finished,
    newest_whole,
    read_checkpoint,
    student_checkpoint,
)
from g2l_plugin.runs.run_callback import RunCallback
from g2l_plugin.slides.workers import explain_dead_workers

AUTO = "auto"
"""Value of `resume` for the newest unfinished run of the same configuration."""

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions in which the objective and the published weights stay in float32."""

_SECONDS_TO_END = 3.0
"""Time for the processes of other devices to report their own error when one has failed."""

upstream.write_session_results_once()
upstream.read_without_workers()


class KDTrainer(Trainer):
    """Fits a `DistillationModule`, and resumes a run that was cut short.

    A run ends after its steps or at an early stop. Its folder, `<default_root_dir>/<session>/
    run_<n>`, then holds `checkpoints/last.ckpt`, and the callbacks that are a `RunCallback` run:
    `PublishStudent` writes the student, `DistillationEvaluation` shows its table.
    """

    def __init__(
        self,
        *args: Any,
        resume: str | None = None,
        callbacks: Any = None,
        plugins: Any = None,
        **kwargs: Any,
    ) -> None:
        """Initializes the trainer.

        Args:
            args: Positional arguments of `eva.Trainer`.
            resume: The run to resume: weights, optimizer, schedule, place in the data and early
                stop are restored. `auto` continues the newest session in `default_root_dir` with
                the same `model` and `data` that has not ended, in its folder, from its newest
                undamaged checkpoint; if there is none, it starts a new run. A path resumes from
                that checkpoint, in a new session. None starts a new run.
            callbacks: As in `eva.Trainer`. A `LossGuard` and a `DataWait` are added if missing.
            plugins: As in `eva.Trainer`. `AtomicCheckpointIO` writes the checkpoints unless another
                CheckpointIO is given.
            kwargs: Keyword arguments of `eva.Trainer`.

        Raises:
            UserError: Lightning does not accept a setting, no step is to be made, or the precision
                is not one of mixed or full precision.
        """
        # Before eva's own constructor, which calls `init_logger_run`.
        self.resume = resume
        self._run_id: int | None = None
        self._session_is_chosen = False
        callbacks = _with_default(callbacks, LossGuard, LossGuard)
        try:
            super().__init__(
                *args,
                callbacks=_with_default(callbacks, DataWait, DataWait),
                plugins=_with_default(plugins, CheckpointIO, AtomicCheckpointIO),
                **kwargs,
            )
        except (MisconfigurationException, ValueError) as error:
            raise UserError(
                f"The trainer cannot be made: {in_one_line(error)}. Check NUM_DEVICES, "
                "ACCELERATOR, STRATEGY and PRECISION."
            ) from error
        if self.precision not in _PRECISIONS:
            raise UserError(
                f"The precision is {self.precision} (PRECISION). Expected {', '.join(_PRECISIONS)}:"
                " the weights that are trained stay in float32."
            )
        if 0 in (self.max_steps, self.max_epochs):
            raise UserError(
                "`max_steps` (MAX_STEPS) or `max_epochs` is 0, so nothing would be trained. "
                "Expected at least 1."
            )

    @override
    def init_logger_run(self, run_id: int | None) -> None:
        if self.resume == AUTO and not self._session_is_chosen:
            self._session_is_chosen = True  # once: the copies for each run share the session
            root = Path(self.default_root_dir)
            config = upstream.submitted_config()
            if (session := find_session(root, config, self.max_steps)) is not None:
                upstream.set_session(self, session)
        self._run_id = run_id
        super().init_logger_run(run_id)

    @override
    def fit(self, model: RunModule, *args: Any, **kwargs: Any) -> None:
        """Fits the module; accepts the arguments of `lightning.Trainer.fit`.

        Raises:
            UserError: The checkpoint to resume from is missing, damaged or of other settings,
                another process trains this session, no step was made, or the run failed in a way
                that the user can mend.
        """
        checkpoint = self._find_checkpoint()
        model.run_state.config = config = upstream.submitted_config()
        if checkpoint is not None:
            saved = read_checkpoint(checkpoint)
            changes = ", ".join(compare_configs(saved.get(CONFIG_KEY), config))
            if changes:
                model.run_state.resumed = (f"step {saved['global_step']:,}: {changes}",)
            logger.info(
                f"Resuming from {checkpoint}{' with ' * bool(changes)}{changes}. RESUME=null "
                "starts a new run."
            )
            # Only tensors and plain values are read: a checkpoint may come from elsewhere.
            kwargs = {"ckpt_path": str(checkpoint), "weights_only": True} | kwargs
            model.run_state.finished = self.resume == AUTO and is_finished(
                checkpoint, self.max_steps
            )
        session = Path(self.default_log_dir)
        with sole_process(session) if self.is_global_zero else contextlib.nullcontext():
            if self.is_global_zero:
                if not model.run_state.finished:
                    reopen(session)
                if config is not None:
                    keep_config(self._run_folder, config)
            with self._explaining_failures():
                super().fit(model, *args, **kwargs)
                if self.state.finished:
                    self._end_run(model)

    @override
    def validate(self, *args: Any, **kwargs: Any) -> Any:
        with self._explaining_failures():
            return super().validate(*args, **kwargs)

    @override
    def test(self, *args: Any, **kwargs: Any) -> Any:
        with self._explaining_failures():
            return super().test(*args, **kwargs)

    @override
    def finish_logger_run(self, run_id: int | None) -> None:
        super().finish_logger_run(run_id)
        # eva calls this after everything else of a run, so these are the last lines printed.
        callbacks = [part for part in self.callbacks if isinstance(part, RunCallback)]
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for callback in callbacks:
            for part in callback.on_session_end():
                console.print(part)
        for callback in callbacks:
            callback.raise_failure()

    @property
    def _run_folder(self) -> Path:
        """The run's folder: on the device that writes and, in a resumed session, on all."""
        return Path(self.default_log_dir) / ("" if self._run_id is None else f"run_{self._run_id}")

    def _find_checkpoint(self) -> Path | None:
        if self.resume is None:
            return None
        if self.resume == AUTO:
            return newest_whole(self._run_folder)
        path = Path(self.resume)
        if not path.is_file():
            raise UserError(
                f"The checkpoint {path} does not exist. Set `resume` (RESUME) to a .ckpt file in "
                "checkpoints/ of an earlier run, or to `auto`."
            )
        if (damage := find_damage(path)) is not None:
            raise UserError(
                f"The checkpoint {path} is damaged ({damage}). Set `resume` (RESUME) to another in "
                "its folder, or to `auto`."
            )
        return path

    def _end_run(self, model: RunModule) -> None:
        if self.global_step == 0:
            raise UserError(
                "The run has ended without a step, so it has no student to publish. Check that a "
                "batch (BATCH_SIZE) is not larger than the tiles, and the trainer's limits."
            )
        run_folder = Path(str(self.log_dir)).resolve()  # a collective call: all devices make it
        self._write_lost_tiles(run_folder)
        model.run_state.finished = True
        self._save_last_checkpoint(run_folder)
        callbacks = [part for part in self.callbacks if isinstance(part, RunCallback)]
        with upstream.others_waiting(self) as is_first:  # an upload or an evaluation may take long
            for callback in callbacks if is_first else []:
                callback.on_run_end(self, run_folder)

    def _save_last_checkpoint(self, run_folder: Path) -> None:
        """Writes last.ckpt after the last step: what is published is what is validated after."""
        path = run_folder / FOLDER / LAST
        for callback in self.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last:
                callback.last_model_path = str(path)
                callback.best_model_path = str(student_checkpoint(run_folder))
        if (error := save_jointly(self, path)) is not None:
            raise UserError(f"{error} Then run the same command again: it resumes (`resume: auto`)")

    def _write_lost_tiles(self, run_folder: Path) -> None:
        """Lists the tiles that could not be read, if there are any."""
        dataset = tile_dataset(self)
        if dataset is None or (lost := dataset.lost_tiles()).empty:
            return
        rank = f"_rank{self.global_rank}" if self.world_size > 1 else ""
        path = run_folder / f"lost_tiles{rank}.csv"
        write_text(path, printable(lost.to_csv(index=False)))
        logger.warning(f"{len(lost):,} of {len(dataset):,} tiles could not be read: {path}")

    @contextlib.contextmanager
    def _explaining_failures(self) -> Iterator[None]:
        """Reports known failures in one line, and leaves no device waiting for this one."""
        try:
            with tolerate_full_disk(self.loggers), explain_dead_workers():
                yield
        except Exception as error:
            _end(upstream.take_over_processes(self))
            if (message := explain(error, self.world_size)) is not None:
                raise UserError(message) from error
            raise


def _with_default(given: Any, kind: type, make: Any) -> list[Any]:
    """What was given, as a list, with at least one object of a kind."""
    parts = list(given) if isinstance(given, list | tuple) else [given] if given else []
    return parts if any(isinstance(part, kind) for part in parts) else [*parts, make()]


def _end(processes: list[subprocess.Popen]) -> None:
    """Ends processes that do not end on their own within a few seconds."""
    until = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()
        process.wait()
