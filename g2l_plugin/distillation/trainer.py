"""eva's trainer for distillation: resumable, and publishing the student at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from eva.core.trainers import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from loguru import logger
from rich.console import Console
from typing_extensions import override

from g2l_plugin.distillation.guard import LossGuard
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.publishing.options import UploadOptions
from g2l_plugin.slides.slide_tiles import SlideTiles

STUDENT_FOLDER = "student"
"""Name of the published folder in the run's folder."""


class KDTrainer(Trainer):
    """Fits a `DistillationModule`, then writes its student into the run's folder.

    A run that ends, by its steps or by early stopping, leaves
    `<default_root_dir>/<session>/run_<n>/student`, a folder that plain timm loads, and prints where
    it is and the command that benchmarks it. `resume_from` goes on from a checkpoint.
    """

    def __init__(
        self,
        *args: Any,
        resume_from: str | None = None,
        benchmark_config: str = "configs/benchmarks/demo.yaml",
        cancer: str | None = None,
        publish: UploadOptions | None = None,
        **kwargs: Any,
    ) -> None:
        """Initializes the trainer.

        Args:
            args: Positional arguments of `eva.Trainer`.
            resume_from: Checkpoint to go on from: weights, optimizer, schedule, step and early
                stop are restored. None starts anew.
            benchmark_config: eva config named in the benchmark command that is printed at the end.
            cancer: The cancer that the slides are of, e.g. `breast`, for the model card.
            publish: Where the student goes on the Hub at the end; nowhere without a `repo_id`. When
                that fails, checkpoints and student are in the run's folder all the same, but eva
                does not come to write its results.json.
            kwargs: Keyword arguments of `eva.Trainer`.
        """
        callbacks = kwargs.pop("callbacks", None) or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if not any(isinstance(callback, LossGuard) for callback in callbacks):
            callbacks = [*callbacks, LossGuard()]
        super().__init__(*args, callbacks=callbacks, **kwargs)
        self.resume_from = resume_from
        self.benchmark_config = benchmark_config
        self.cancer = cancer
        self.publish = publish or UploadOptions()
        self._upload_error: UserError | None = None
        self.student_folder: Path | None = None
        self._benchmark_command = ""

    @override
    def fit(self, model: DistillationModule, *args: Any, **kwargs: Any) -> None:
        """Fits the module and publishes its student; takes what `lightning.Trainer.fit` takes.

        Raises:
            UserError: The checkpoint to resume from does not exist.
        """
        if self.resume_from is not None:
            if not os.path.isfile(self.resume_from):
                raise UserError(
                    f"There is no checkpoint {self.resume_from} to resume from. Set `resume_from` "
                    "(RESUME_FROM) to a .ckpt file under checkpoints/ of an earlier run."
                )
            # Only tensors and plain values are read: a checkpoint may come from elsewhere.
            kwargs = {"ckpt_path": self.resume_from, "weights_only": True} | kwargs
        super().fit(model, *args, **kwargs)
        if self.state.finished:
            run_folder = Path(self.log_dir).resolve()  # devices agree on it: all must ask
            self._report_lost_tiles(run_folder)
            model.finished = True
            self._publish(self._save_last_checkpoint(run_folder), run_folder)

    @override
    def finish_logger_run(self, run_id: int | None) -> None:
        super().finish_logger_run(run_id)
        # eva calls this after everything else of a run, so that these are the last lines printed.
        if self.student_folder is not None:
            self._print_outcome()
        if self._upload_error is not None:
            raise self._upload_error

    def _save_last_checkpoint(self, run_folder: Path) -> Path:
        """Brings last.ckpt up to the last step: what is published is what is validated after."""
        path = run_folder / "checkpoints" / "last.ckpt"
        for callback in self.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last:
                name = callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION
                path = Path(str(callback.dirpath)) / name
                callback.last_model_path = str(path)
        self.save_checkpoint(path)
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
