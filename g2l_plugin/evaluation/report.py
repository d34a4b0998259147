"""Teacher, student before and student after: what distilling did, as a table and as files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from eva.core.data.datasets import Dataset
from rich.table import Table
from typing_extensions import override

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.evaluation.benchmark import MEASURES
from g2l_plugin.evaluation.embed import embed_tiles
from g2l_plugin.evaluation.embeddings import Embeddings
from g2l_plugin.evaluation.knn import KNNVoting
from g2l_plugin.evaluation.measure import Measure, Outcome
from g2l_plugin.evaluation.measures import align, join, take, write_measures
from g2l_plugin.evaluation.probe import LogisticProbe
from g2l_plugin.evaluation.robustness import RobustnessIndex
from g2l_plugin.evaluation.speed import measure_speed
from g2l_plugin.files import write_text

REPORT_FILE = "evaluation.json"
"""Name of the results file in the run's folder."""

START_FOLDER = "start"
"""Name of the folder in the run's folder that holds the student as it was before."""

_SPLIT = "test"
_BEFORE = "student before"
_TITLES = {
    "KNNAccuracy": "kNN accuracy",
    "LogisticAUROC": "logistic AUROC",
    "LinearCKA": "CKA with the teacher",
}
_INDEXES = {
    "RobustnessIndex/k=": "robustness index",
    "PathoROBIndex/k=": "PathoROB index",
}


class DistillationReport(pl.Callback):
    """Measures teacher and student on labelled tiles before the fit, and the student after it.

    The measures are those of the benchmarks, taken on `test` with the tiles of `train`, and linear
    CKA with the teacher. The results go to `evaluation.json` in the run's folder, and for
    `g2l report` to `evaluation/<encoder>`; `table` holds them for the trainer to print last.
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset,
        task: str = "held-out tiles",
        measures: Sequence[Measure] | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        save_start: bool = False,
    ) -> None:
        """Initializes the callback.

        Args:
            train: Labelled tiles, for the measures that learn or seek neighbours.
            test: Labelled tiles of held-out slides.
            task: Name of the task, for reports.
            measures: What to measure; None takes kNN voting, a logistic probe and the robustness
                index.
            classes: Names of the classes, in the order of their numbers, for reports.
            batch_size: Tiles per batch.
            num_workers: Processes that read tiles.
            save_start: Whether to save the student as it is before the fit, as a folder that loads
                like the published one: a start from random weights can be had in no other way.
        """
        super().__init__()
        self.train, self.test = train, test
        self.task, self.classes = task, classes
        self.measures = list(measures or (KNNVoting(), LogisticProbe(), RobustnessIndex()))
        self.batch_size, self.num_workers = batch_size, num_workers
        self.save_start = save_start
        self.results: dict[str, dict[str, Any]] = {}
        self._size: dict[str, int] = {}
        self._teacher: Embeddings | None = None
        self._before: dict[str, Any] | None = None

    @property
    def table(self) -> Table:
        """The results, a row per encoder; a figure that is undefined has a dash."""
        table = Table(
            title="On {n_tiles:,} tiles of {n_units} held-out slides".format(**self._size)
        )
        table.add_column("encoder", no_wrap=True)
        columns = headline(self.results)
        for label in columns.values():
            table.add_column(label, justify="right")
        for name, row in self.results.items():
            values = [row["values"].get(column) for column in columns]
            table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
        return table

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(task=self.task)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(str(trainer.log_dir))  # devices agree on it: all must ask
        if not trainer.is_global_zero:
            return
        for dataset in (self.train, self.test):
            dataset.prepare_data()
            dataset.setup()
        self._measure("teacher", pl_module.teacher, pl_module.view.size, folder)
        if self._before is not None:
            self.results[_BEFORE] = self._before
        if trainer.ckpt_path is not None:
            return  # the student has learnt already: how it was before is in the checkpoint
        self._measure(_BEFORE, pl_module.student, pl_module.view.size, folder)
        if self.save_start:
            _save_start(pl_module.student, folder / START_FOLDER)

    @override
    def state_dict(self) -> dict[str, Any]:
        before = self.results.get(_BEFORE)
        return {} if before is None else {_BEFORE: json.dumps(before)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = json.loads(state_dict[_BEFORE]) if _BEFORE in state_dict else None

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(str(trainer.log_dir))  # devices agree on it: all must ask
        if not trainer.is_global_zero:
            return
        self._measure("student after", pl_module.student, pl_module.view.size, folder)
        report = {
            "task": self.task,
            "step": trainer.global_step,
            **self._size,
            "columns": headline(self.results),
            "encoders": self.results,
        }
        write_text(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")

    def _measure(self, name: str, encoder: Encoder, view_size: int, folder: Path) -> None:
        train, test = (
            embed_tiles(
                encoder,
                dataset,
                view_size,
                split,
                self.batch_size,
                self.num_workers,
                description=f"Measuring {name}",
            )
            for split, dataset in (("train", self.train), (_SPLIT, self.test))
        )
        if self._teacher is None:
            self._teacher = test
        outcome = join([take(self.measures, train, test), align(test, self._teacher)])
        session = folder / "evaluation" / name.replace(" ", "_")
        write_measures(
            session / MEASURES,
            _SPLIT,
            outcome,
            test,
            task=self.task,
            classes=self.classes,
            model=_describe(name, encoder, view_size, self.batch_size),
        )
        _write_results(session, outcome)
        self._size = {"n_tiles": len(test), "n_units": len(set(test.units))}
        self.results[name] = {
            "values": outcome.values,
            "undefined": outcome.undefined,
            "intervals": outcome.details.get("intervals", {}),
        }


def headline(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The figures that a short table shows, with their column titles.

    Args:
        results: `values` of each encoder, by its name.

    Returns:
        Names of figures to titles; of the robustness indexes, those at the largest k.
    """
    found = {name: None for row in results.values() for name in row["values"]}
    titles = {name: title for name, title in _TITLES.items() if name in found}
    for prefix, title in _INDEXES.items():
        at = [int(name.removeprefix(prefix)) for name in found if name.startswith(prefix)]
        if at:
            titles[f"{prefix}{max(at)}"] = f"{title} (k={max(at)})"
    return titles


def _describe(name: str, encoder: Encoder, view_size: int, batch_size: int) -> dict[str, Any]:
    images = torch.rand(batch_size, 3, view_size, view_size, device=encoder.mean.device)
    was_training = encoder.training
    speed = measure_speed(encoder.eval(), images)
    encoder.train(was_training)
    return {
        "name": name,
        "sha256": hash_tensors(encoder.model),
        "input_size": view_size,
        "embedding_dim": encoder.embedding_dim,
        **dataclasses.asdict(speed),
    }


def _write_results(session: Path, outcome: Outcome) -> None:
    """Writes results.json as eva's sessions have it."""
    statistics = {
        f"{_SPLIT}/{name}": {"mean": value, "stdev": 0, "values": [value]}
        for name, value in outcome.values.items()
    }
    results = {"metrics": {"val": [], _SPLIT: [statistics]}}
    write_text(session / "results.json", json.dumps(results, indent=2) + "\n")


def _save_start(student: Encoder, folder: Path) -> None:
    from g2l_plugin.publishing.export import export_student

    export_student(
        student, folder, card=f"The student before it was distilled: {student.describe()}\n"
    )
