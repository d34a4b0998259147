"""Teacher, student before and student after: what distilling did, as a table and a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from eva.core.data.datasets import Dataset
from rich.table import Table
from typing_extensions import override

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.evaluation.cka import linear_cka
from g2l_plugin.evaluation.embed import embed_tiles
from g2l_plugin.evaluation.knn import knn_accuracy
from g2l_plugin.files import write_text

REPORT_FILE = "evaluation.json"
"""Name of the results file in the run's folder."""


class DistillationReport(pl.Callback):
    """Measures teacher and student on labelled tiles before the fit, and the student after it.

    kNN accuracy goes from the tiles of `train` to those of `test`; linear CKA with the teacher is
    taken on `test`. The results go to `evaluation.json` in the run's folder; `table` holds them for
    the trainer to print last.
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset,
        k: int = 20,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        """Initializes the callback.

        Args:
            train: Labelled tiles that the neighbours are sought among.
            test: Labelled tiles of held-out slides.
            k: Neighbours that vote.
            batch_size: Tiles per batch.
            num_workers: Processes that read tiles.
        """
        super().__init__()
        self.train, self.test, self.k = train, test, k
        self.batch_size, self.num_workers = batch_size, num_workers
        self.results: dict[str, dict[str, float]] = {}
        self._teacher_test: np.ndarray | None = None

    @property
    def table(self) -> Table:
        """The results, a row per encoder."""
        table = Table(title=f"kNN (k={self.k}) accuracy on held-out slides, CKA with the teacher")
        table.add_column("encoder")
        table.add_column("kNN accuracy", justify="right")
        table.add_column("CKA", justify="right")
        for name, row in self.results.items():
            table.add_row(name, f"{row['knn_accuracy']:.4f}", f"{row['cka']:.4f}")
        return table

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        for dataset in (self.train, self.test):
            dataset.prepare_data()
            dataset.setup()
        self._measure("teacher", pl_module.teacher, pl_module.view.size)
        self._measure("student before", pl_module.student, pl_module.view.size)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(str(trainer.log_dir))  # devices agree on it: all must ask
        if not trainer.is_global_zero:
            return
        self._measure("student after", pl_module.student, pl_module.view.size)
        report = {"k": self.k, "step": trainer.global_step, "encoders": self.results}
        write_text(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")

    def _measure(self, name: str, encoder: Encoder, view_size: int) -> None:
        (train, train_labels), (test, test_labels) = (
            embed_tiles(
                encoder,
                dataset,
                view_size,
                self.batch_size,
                self.num_workers,
                description=f"Measuring {name}",
            )
            for dataset in (self.train, self.test)
        )
        if self._teacher_test is None:
            self._teacher_test = test
        self.results[name] = {
            "knn_accuracy": knn_accuracy(train, train_labels, test, test_labels, self.k),
            "cka": float(linear_cka(torch.from_numpy(test), torch.from_numpy(self._teacher_test))),
        }
