"""Publishing at the end of a run, as a callback of its config."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as pl
from loguru import logger
from rich.console import RenderableType
from typing_extensions import override

from g2l_plugin.config_files import find_config
from g2l_plugin.errors import UserError
from g2l_plugin.publishing.licenses import check_license
from g2l_plugin.publishing.onnx_export import check_onnx
from g2l_plugin.publishing.publish import benchmark_command, publish_run, upload_published
from g2l_plugin.publishing.upload import UploadOptions
from g2l_plugin.runs.checkpoints import read_checkpoint, student_checkpoint
from g2l_plugin.runs.outcome import describe_outcome
from g2l_plugin.runs.record import RunRecord
from g2l_plugin.runs.run_callback import RunCallback
from g2l_plugin.runs.run_folder import STUDENT


class PublishStudent(RunCallback):
    """Writes the student of a run that has ended into `student/` in its folder, and uploads it.

    The last lines of the run say what it came to, where the student is, how to load it, and how to
    benchmark it. A student that is worse than its start is not published. That, or an upload that
    fails, is reported as the very last, when nothing of the run can be lost any more.

    Attributes:
        student_folder: The published folder; None before the run has ended.
    """

    def __init__(
        self,
        cancer: str | None = None,
        benchmark_config: str = "benchmarks/demo",
        repo_id: str | None = None,
        private: bool = False,
        revision: str | None = None,
        tag: str | None = None,
        create_pr: bool = False,
        replace: bool = False,
        license: str | None = None,
        force: bool = False,
        patients: bool = False,
        onnx: bool = False,
    ) -> None:
        """Initializes the callback.

        Args:
            cancer: The cancer of the slides, e.g. `breast`, for the model card.
            benchmark_config: eva config of the printed benchmark command: a name that `g2l config`
                lists, a path, or a URL.
            repo_id: Repository on the Hub, `org/name`; None uploads nothing.
            private: Whether a new repository is private.
            revision: Branch to commit to; None commits to main.
            tag: Tag for the commit.
            create_pr: Whether to open a pull request instead of committing.
            replace: Whether another model in the repository may be replaced.
            license: Licence identifier; None uses the one that follows from teacher and start, if
                that restricts nothing.
            force: Whether to publish a student that is worse than its start too.
            patients: Whether to list the training patients, hashed, even if some have no TCGA
                barcode; see `publish_run`.
            onnx: Whether to write and upload model.onnx too, which needs the extra `onnx`.

        Raises:
            UserError: There is no such benchmark config, the Hub knows no such licence, or the
                extra is not installed: said before the run, not after it.
        """
        super().__init__()
        if license:
            check_license(license)
        if onnx:
            check_onnx()
        self.cancer = cancer
        self.force = force
        self.patients = patients
        self.onnx = onnx
        is_url = "://" in benchmark_config
        self.benchmark_config = (
            benchmark_config if is_url else str(find_config(benchmark_config).resolve())
        )
        self.upload = UploadOptions(repo_id, private, revision, tag, create_pr, replace, license)
        self.student_folder: Path | None = None
        self._benchmark_command = ""
        self._outcome = ""
        self._failure: UserError | None = None

    @override
    def on_run_end(self, trainer: pl.Trainer, run_folder: Path) -> None:
        path = student_checkpoint(run_folder)
        record = RunRecord.from_checkpoint(read_checkpoint(path), str(path))
        self._outcome = describe_outcome(record.start, record.alignment)
        for partial in run_folder.glob(f".{STUDENT}.*.part"):  # of a run killed as it published
            shutil.rmtree(partial, ignore_errors=True)
        try:
            published = publish_run(
                run_folder,
                cancer=self.cancer,
                license=self.upload.license,
                force=self.force,
                patients=self.patients,
                onnx=self.onnx,
            )
        except UserError as error:
            self._failure = error
            return
        for restriction in published.license.restrictions:
            logger.warning(restriction)
        self.student_folder = published.folder
        self._benchmark_command = benchmark_command(published, self.benchmark_config)
        if self.upload.repo_id is not None:
            try:
                upload_published(published, self.upload)
            except UserError as error:
                self._failure = error

    @override
    def on_session_end(self) -> list[RenderableType]:
        outcome = [f"Outcome:   {self._outcome}"] if self._outcome else []
        if self.student_folder is None:
            return [*outcome]
        source = f"local-dir:{self.student_folder}"
        return [
            *outcome,
            f"Student:   {self.student_folder}",
            f"Load:      timm.create_model({source!r}, pretrained=True)",
            f"Benchmark: {self._benchmark_command}",
        ]

    @override
    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
