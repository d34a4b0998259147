"""eva's trainer for distillation: resumable, and publishing the student at the end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from eva.core.trainers import Trainer
from eva.core.trainers._recorder import SessionRecorder
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from loguru import logger
from rich.console import Console
from typing_extensions import override

from g2l_plugin.distillation.checkpoint_io import (
    LAST,
    AtomicCheckpointIO,
    find_damage,
    newest_whole,
)
from g2l_plugin.distillation.data_wait import DataWait
from g2l_plugin.distillation.guard import LossGuard
from g2l_plugin.distillation.log_files import may_fail
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.record import KEY
from g2l_plugin.distillation.resume import (
    find_session,
    keep_config,
    sole_process,
    submitted_config,
)
from g2l_plugin.distillation.run_checkpoint import save_jointly
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import write_text
from g2l_plugin.publishing.options import UploadOptions
from g2l_plugin.slides.loader import dead_workers_told
from g2l_plugin.slides.slide_tiles import SlideTiles

STUDENT_FOLDER = "student"
"""Name of the published folder in the run's folder."""


AUTO = "auto"
"""Value of `resume` that goes on with the newest unfinished run of the same configuration."""

_SECONDS_TO_END = 3.0
"""What processes of other devices have to say what happened to them, when one has failed."""

# eva would write the results of a session on every device.
SessionRecorder.save = rank_zero_only(SessionRecorder.save)  # type: ignore[method-assign]


class KDTrainer(Trainer):
    """Fits a `DistillationModule`, then writes its student into the run's folder.

    A run that ends, by its steps or by early stopping, leaves
    `<default_root_dir>/<session>/run_<n>/student`, a folder that plain timm loads, and prints where
    it is and the command that benchmarks it. A run that was cut short goes on with `resume`.
    """

    _session_id: str

    def __init__(
        self,
        *args: Any,
        resume: str | None = None,
        benchmark_config: str = "configs/benchmarks/demo.yaml",
        cancer: str | None = None,
        publish: UploadOptions | None = None,
        callbacks: Any = None,
        plugins: Any = None,
        **kwargs: Any,
    ) -> None:
        """Initializes the trainer.

        Args:
            args: Positional arguments of `eva.Trainer`.
            resume: Where to go on: weights, optimizer, schedule, place in the data and early stop
                are restored. `auto` takes the newest session in `default_root_dir` that has the
                same `model` and `data` and has not come to its end, in its own folder, from its
                newest checkpoint that is not damaged, and starts anew where there is none. A path
                goes on from that checkpoint, in a new session. None starts anew.
            benchmark_config: eva config named in the benchmark command that is printed at the end.
            cancer: The cancer that the slides are of, e.g. `breast`, for the model card.
            publish: Where the student goes on the Hub at the end; nowhere without a `repo_id`. When
                that fails, checkpoints and student are in the run's folder all the same, but eva
                does not come to write its results.json.
            callbacks: As in `eva.Trainer`; a `LossGuard` and a `DataWait` are added where there is
                none.
            plugins: As in `eva.Trainer`; checkpoints are written by `AtomicCheckpointIO` where
                there is no other.
            kwargs: Keyword arguments of `eva.Trainer`.
        """
        # Before eva's own: it makes the session's folder already.
        self.resume = resume
        self._run_id: int | None = None
        self._searched = False
        callbacks = _with_default(callbacks, LossGuard, LossGuard)
        super().__init__(
            *args,
            callbacks=_with_default(callbacks, DataWait, DataWait),
            plugins=_with_default(plugins, CheckpointIO, AtomicCheckpointIO),
            **kwargs,
        )
        self.benchmark_config = benchmark_config
        self.cancer = cancer
        self.publish = publish or UploadOptions()
        self._upload_error: UserError | None = None
        self.student_folder: Path | None = None
        self._benchmark_command = ""

    @override
    def init_logger_run(self, run_id: int | None) -> None:
        if self.resume == AUTO and not self._searched:
            self._searched = True  # once: copies for each run are of the same session
            root = Path(self.default_root_dir)
            self._session_id = find_session(root, submitted_config()) or self._session_id
        self._run_id = run_id
        super().init_logger_run(run_id)

    @override
    def fit(self, model: DistillationModule, *args: Any, **kwargs: Any) -> None:
        """Fits the module and publishes its student; takes what `lightning.Trainer.fit` takes.

        Raises:
            UserError: The checkpoint to resume from does not exist or is damaged, or another
                process trains this session.
        """
        checkpoint = self._find_checkpoint()
        if checkpoint is not None:
            logger.info(f"Goes on from {checkpoint}. RESUME=null starts anew.")
            # Only tensors and plain values are read: a checkpoint may come from elsewhere.
            kwargs = {"ckpt_path": str(checkpoint), "weights_only": True} | kwargs
            model.finished = self.resume == AUTO and _is_finished(checkpoint)
        session = Path(self.default_log_dir)
        with sole_process(session) if self.is_global_zero else contextlib.nullcontext():
            if self.is_global_zero and (config := submitted_config()) is not None:
                keep_config(self._run_folder, config)
            with self._failing_well():
                super().fit(model, *args, **kwargs)
                if self.state.finished:
                    run_folder = Path(self.log_dir).resolve()  # devices agree on it: all must ask
                    self._report_lost_tiles(run_folder)
                    model.finished = True
                    self._publish(self._save_last_checkpoint(run_folder), run_folder)

    @override
    def validate(self, *args: Any, **kwargs: Any) -> Any:
        with self._failing_well():
            return super().validate(*args, **kwargs)

    @override
    def test(self, *args: Any, **kwargs: Any) -> Any:
        with self._failing_well():
            return super().test(*args, **kwargs)

    @override
    def finish_logger_run(self, run_id: int | None) -> None:
        super().finish_logger_run(run_id)
        # eva calls this after everything else of a run, so that these are the last lines printed.
        if self.student_folder is not None:
            self._print_outcome()
        if self._upload_error is not None:
            raise self._upload_error

    @property
    def _run_folder(self) -> Path:
        """The run's folder, on the device that writes and, in a resumed session, on all."""
        return Path(self.default_log_dir) / ("" if self._run_id is None else f"run_{self._run_id}")

    def _find_checkpoint(self) -> Path | None:
        if self.resume is None:
            return None
        if self.resume == AUTO:
            return newest_whole(self._run_folder)
        path = Path(self.resume)
        if not path.is_file():
            raise UserError(
                f"There is no checkpoint {path} to resume from. Set `resume` (RESUME) to a .ckpt "
                "file under checkpoints/ of an earlier run, or to `auto`."
            )
        if (damage := find_damage(path)) is not None:
            raise UserError(
                f"The checkpoint {path} is damaged ({damage}). Set `resume` (RESUME) to another in "
                "its folder, or to `auto`."
            )
        return path

    @contextlib.contextmanager
    def _failing_well(self) -> Iterator[None]:
        """Says in a line what can be said in one, and leaves no device waiting for this one."""
        try:
            with may_fail(self.loggers), dead_workers_told():
                yield
        except Exception as error:
            self._end_other_processes()
            if (message := _explain(error, self.world_size)) is not None:
                raise UserError(message) from error
            raise

    def _end_other_processes(self) -> None:
        """Ends those that Lightning has started here, unless they end by themselves."""
        if not isinstance(self.strategy.launcher, _SubprocessScriptLauncher):
            return
        processes = list(self.strategy.launcher.procs)
        # Lightning, which watches that list, would kill this process when one of them has ended.
        self.strategy.launcher.procs.clear()
        until = time.monotonic() + _SECONDS_TO_END
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
            process.wait()

    def _save_last_checkpoint(self, run_folder: Path) -> Path:
        """Brings last.ckpt up to the last step: what is published is what is validated after."""
        path = run_folder / "checkpoints" / LAST
        for callback in self.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last:
                name = callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION
                path = Path(str(callback.dirpath)) / name
                callback.last_model_path = str(path)
        if (error := save_jointly(self, path)) is not None:
            raise UserError(f"{error} Then run the same command again: it goes on (`resume: auto`)")
        return path

    def _report_lost_tiles(self, run_folder: Path) -> None:
        """Writes which tiles of the slides could not be read, where there are any."""
        tiles = getattr(getattr(self.train_dataloader, "dataset", None), "tiles", None)
        if not isinstance(tiles, SlideTiles) or not (lost := tiles.lost()):
            return
        rank = f"_rank{self.global_rank}" if self.world_size > 1 else ""
        path = run_folder / f"lost_tiles{rank}.csv"
        write_text(path, pd.DataFrame(lost, columns=["slide", "x", "y"]).to_csv(index=False))
        logger.warning(f"{len(lost):,} of {len(tiles):,} tiles could not be read: {path}")

    def _publish(self, checkpoint: Path, run_folder: Path) -> None:
        if not self.is_global_zero:
            return
        from g2l_plugin.publishing.run import benchmark_command, publish_run, upload_published

        published = publish_run(
            checkpoint,
            run_folder / STUDENT_FOLDER,
            cancer=self.cancer,
            license=self.publish.license,
        )
        for restriction in published.license.restrictions:
            logger.warning(restriction)
        self.student_folder = published.folder
        self._benchmark_command = benchmark_command(published, self.benchmark_config)
        if self.publish.repo_id is not None:
            try:
                upload_published(published, self.publish)
            except UserError as error:  # told last, when nothing of the run can be lost any more
                self._upload_error = error

    def _print_outcome(self) -> None:
        console = Console(soft_wrap=True)
        for callback in self.callbacks:
            if (table := getattr(callback, "table", None)) is not None:
                console.print(table)
        print(f"Student:   {self.student_folder}")
        print(
            f"Load:      timm.create_model({f'local-dir:{self.student_folder}'!r}, pretrained=True)"
        )
        print(f"Benchmark: {self._benchmark_command}", flush=True)


def _with_default(given: Any, kind: type, make: Any) -> list[Any]:
    """What was given, as a list, with one of a kind."""
    parts = list(given) if isinstance(given, list | tuple) else [given] if given else []
    return parts if any(isinstance(part, kind) for part in parts) else [*parts, make()]


def _explain(error: Exception, n_devices: int) -> str | None:
    """What PyTorch's error means for a user, and what to do; None for others."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"The device's memory is full: {in_one_line(error)}. Set `micro_batch_size` "
            "(MICRO_BATCH_SIZE), which leaves the loss as it is, or lower BATCH_SIZE."
        )
    # A collective has failed, as it does where a device is gone.
    if n_devices > 1 and (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)):
        return (
            "Another device of the run has ended, and its own error says why. Run the same command "
            "again: it goes on where it was saved (`resume: auto`)."
        )
    return None


def _is_finished(checkpoint: Path) -> bool:
    values = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    return bool(values.get(KEY, {}).get("finished"))
