"""Metrics of the teacher, the student before and the student after distillation."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import lightning.pytorch as pl
import torch
from eva.core.data.datasets import Dataset
from rich.console import RenderableType
from rich.table import Table
from typing_extensions import override

from g2l_plugin import upstream
from g2l_plugin.encoders.encoder import Encoder, in_eval_mode
from g2l_plugin.encoders.folder import export_student
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.evaluation.embed import embed_tiles
from g2l_plugin.evaluation.metric_files import METRICS_FOLDER, write_results
from g2l_plugin.evaluation.speed import measure_speed
from g2l_plugin.evaluation.tiles import name_classes
from g2l_plugin.files import write_text
from g2l_plugin.metrics.cka import align
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.families import FAMILIES, family_of, k_of
from g2l_plugin.metrics.knn import KNNVoting
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricResult, compute_all, merge
from g2l_plugin.metrics.neighbours import computing_on
from g2l_plugin.metrics.probe import LogisticProbe
from g2l_plugin.metrics.robustness import RobustnessIndex
from g2l_plugin.runs.checkpoints import (
    BEST,
    read_checkpoint,
    student_checkpoint,
    student_weights,
)
from g2l_plugin.runs.run_callback import RunCallback
from g2l_plugin.runs.run_folder import EVALUATION, START

_SPLIT = "test"
_BEFORE = "student before"


class EncoderResult(TypedDict):
    """Result of one encoder, as in evaluation.json."""

    values: dict[str, float]
    undefined: dict[str, str]
    intervals: dict[str, dict[str, float | None]]


class DistillationEvaluation(RunCallback):
    """Evaluates teacher and student on labelled tiles before the fit, and the student after it.

    It computes the benchmarks' metrics on `test`, with the tiles of `train`, and linear CKA with
    the teacher. The results go to `evaluation.json` in the run's folder and, for `g2l report`, to
    `evaluation/<encoder>`. The trainer prints them as a table at the end of the run.
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset,
        task: str = "held-out tiles",
        metrics: Sequence[EmbeddingMetric] | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        save_start: bool = False,
    ) -> None:
        """Initializes the callback.

        Args:
            train: Labelled tiles, for metrics that fit a classifier or find neighbours.
            test: Labelled tiles of held-out slides.
            task: Name of the task, for reports.
            metrics: The metrics; None uses kNN voting, a logistic probe and the robustness index.
            classes: Names of the classes, in the order of their numbers, for reports.
            batch_size: Tiles per batch.
            num_workers: Processes that read tiles.
            save_start: Whether to save the student before the fit, as a folder that loads like the
                published one. A student that starts from random weights can't be obtained later.
        """
        super().__init__()
        self.train, self.test = train, test
        self.task, self.classes = task, classes
        self.metrics = list(metrics or (KNNVoting(), LogisticProbe(), RobustnessIndex()))
        self.batch_size, self.num_workers = batch_size, num_workers
        self.save_start = save_start
        self.results: dict[str, EncoderResult] = {}
        self._size: dict[str, int] = {}
        self._teacher: Embeddings | None = None
        self._before: EncoderResult | None = None

    @property
    def table(self) -> Table:
        """The results, one row per encoder; undefined values are dashes."""
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

    @override
    def on_session_end(self) -> list[RenderableType]:
        return [self.table] if self.results else []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(task=self.task)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(str(trainer.log_dir))  # synchronises devices: all must call it
        with upstream.others_waiting(trainer) as is_first:
            if is_first:
                self._evaluate_start(trainer, pl_module, folder)

    def _evaluate_start(self, trainer: pl.Trainer, pl_module: Any, folder: Path) -> None:
        for dataset in (self.train, self.test):
            dataset.prepare_data()
            dataset.setup()
        self.classes = name_classes(self.classes, getattr(self.test, "classes", None))
        self._evaluate("teacher", pl_module.teacher, pl_module.view.size, folder)
        if self._before is not None:
            self.results[_BEFORE] = self._before
        if trainer.ckpt_path is not None:
            return  # the student is trained already; its results before are in the checkpoint
        self._evaluate(_BEFORE, pl_module.student, pl_module.view.size, folder)
        if self.save_start:
            _save_start(pl_module.student, folder / START)

    @override
    def state_dict(self) -> dict[str, Any]:
        before = self.results.get(_BEFORE)
        return {} if before is None else {_BEFORE: json.dumps(before)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = json.loads(state_dict[_BEFORE]) if _BEFORE in state_dict else None

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(str(trainer.log_dir))  # synchronises devices: all must call it
        with upstream.others_waiting(trainer) as is_first:
            if is_first:
                self._evaluate_end(trainer, pl_module, folder)

    def _evaluate_end(self, trainer: pl.Trainer, pl_module: Any, folder: Path) -> None:
        student, step = copy.deepcopy(pl_module.student), trainer.global_step
        if (best := student_checkpoint(folder)).name == BEST:  # what is published
            checkpoint = read_checkpoint(best)
            step = checkpoint["global_step"]
            student.model.load_state_dict(student_weights(checkpoint))
        student.to(trainer.strategy.root_device)  # Lightning has moved the module to the CPU
        self._evaluate("student after", student, pl_module.view.size, folder)
        report = {
            "task": self.task,
            "step": step,
            **self._size,
            "columns": headline(self.results),
            "encoders": self.results,
        }
        write_text(folder / EVALUATION, json.dumps(report, indent=2) + "\n")

    def _evaluate(self, name: str, encoder: Encoder, view_size: int, folder: Path) -> None:
        with torch.compiler.set_stance("force_eager"):  # as published, and in batches of any size
            train, test = (
                embed_tiles(
                    encoder,
                    dataset,
                    view_size,
                    split,
                    self.batch_size,
                    self.num_workers,
                    description=f"Evaluating {name}",
                )
                for split, dataset in (("train", self.train), (_SPLIT, self.test))
            )
            model = _describe(name, encoder, view_size, self.batch_size)
        if self._teacher is None:
            self._teacher = test
        with computing_on(encoder.mean.device):
            result = merge([compute_all(self.metrics, train, test), align(test, self._teacher)])
        session = folder / "evaluation" / name.replace(" ", "_")
        write_results(
            session / METRICS_FOLDER,
            _SPLIT,
            result,
            test,
            task=self.task,
            classes=self.classes,
            model=model,
        )
        _write_results(session, result)
        self._size = {"n_tiles": len(test), "n_units": len(set(test.units))}
        self.results[name] = {
            "values": result.values,
            "undefined": result.undefined,
            "intervals": result.details.get("intervals", {}),
        }


def headline(results: Mapping[str, EncoderResult]) -> dict[str, str]:
    """Chooses the metrics of a short table: one per family with a column title.

    Args:
        results: Results by name of the encoder.

    Returns:
        Column titles by metric name. Metrics at several k are shown at the largest, and come last.
    """
    found = dict.fromkeys(name for row in results.values() for name in row["values"])
    plain, at_k = {}, {}
    for family in FAMILIES:
        names = [name for name in found if family_of(name) is family]
        if family.column is None or not names:
            continue
        name = max(names, key=lambda name: k_of(name) or 0)
        if (k := k_of(name)) is None:
            plain[name] = family.column
        else:
            at_k[name] = f"{family.column} (k={k})"
    return plain | at_k


def _describe(name: str, encoder: Encoder, view_size: int, batch_size: int) -> dict[str, Any]:
    images = torch.rand(batch_size, 3, view_size, view_size, device=encoder.mean.device)
    with in_eval_mode(encoder):
        speed = measure_speed(encoder, images)
    return {
        "name": name,
        "sha256": hash_tensors(encoder.model),
        "input_size": view_size,
        "embedding_dim": encoder.embedding_dim,
        **dataclasses.asdict(speed),
    }


def _write_results(session: Path, result: MetricResult) -> None:
    """Writes results.json in the format of eva's sessions."""
    statistics = {
        f"{_SPLIT}/{name}": {"mean": value, "stdev": 0, "values": [value]}
        for name, value in result.values.items()
    }
    results = {"metrics": {"val": [], _SPLIT: [statistics]}}
    write_text(session / "results.json", json.dumps(results, indent=2) + "\n")


def _save_start(student: Encoder, folder: Path) -> None:
    export_student(student, folder, card=f"The student before distillation: {student.describe()}\n")
