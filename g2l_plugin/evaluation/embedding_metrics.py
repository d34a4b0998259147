"""Callback that adds the paper's metrics to eva's offline evaluation, on the same embeddings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
from loguru import logger
from typing_extensions import override

from g2l_plugin import upstream
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embedding_files import (
    TRAINING_PATIENTS,
    read_embeddings,
    read_model,
    splits_of,
)
from g2l_plugin.evaluation.metric_files import (
    ALL_SPLITS,
    EVALUATED,
    METRICS_FOLDER,
    write_results,
)
from g2l_plugin.evaluation.segmentation import MAPS, read_patches
from g2l_plugin.evaluation.tiles import name_classes
from g2l_plugin.evaluation.training_patients import Overlap, compute_without
from g2l_plugin.metrics.cka import align
from g2l_plugin.metrics.embeddings import Embeddings, concatenate, take
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricResult, compute_all, merge
from g2l_plugin.metrics.neighbours import computing_on

_Value = TypeVar("_Value")
_Overlaps = dict[str, Overlap | None]


class EmbeddingMetrics(pl.Callback):
    """Computes metrics of the embeddings on which eva's offline flow fits its linear head.

    The metrics are computed when eva validates and tests a fitted head. They are logged, so eva's
    results.json includes them. Files for `g2l report` go to `metrics` in the run's folder. If
    evaluated patients are known to be of the cohort that a student was distilled on, these also
    have the metrics without them.

    Without metrics, as for segmentation, the files say which model and patients eva's head is of.
    """

    def __init__(
        self,
        root: str,
        task: str,
        metrics: Sequence[EmbeddingMetric],
        metrics_on_all_splits: Sequence[EmbeddingMetric] = (),
        classes: Sequence[str] | None = None,
        groups: dict[str, str] | None = None,
        model_label: str | None = None,
    ) -> None:
        """Initializes the callback.

        Args:
            root: Folder of the embeddings that `g2l_plugin.EmbeddingsWriter` wrote.
            task: Name of the task, for reports.
            metrics: Metrics of the evaluated split, with the training split.
            metrics_on_all_splits: Metrics of all splits together, e.g. robustness if each split
                has few tiles of some centres.
            classes: Names of the classes, in the order of their numbers, for reports; None uses the
                dataset's labels.
            groups: Groups to read from the tiles' names, e.g. `slide`: regular expressions with one
                capturing group each, by name of the group.
            model_label: Name of the model in reports; None uses its name or source.

        Raises:
            UserError: A regular expression does not have exactly one capturing group, or the
                model's name has a part `..`.
        """
        if ".." in Path(model_label or "").parts:
            raise UserError(
                f"The model's label is {model_label!r} (MODEL_LABEL). Expected a name without "
                "`..`: its folders are named after it."
            )
        super().__init__()
        self.root = root
        self.task = task
        self.metrics = list(metrics)
        self.metrics_on_all_splits = list(metrics_on_all_splits)
        self.patterns = {name: _compile(pattern) for name, pattern in (groups or {}).items()}
        self.model_label = model_label
        self.classes = None if classes is None else list(classes)
        # eva copies callbacks for each of its runs, but the metrics are the same in all of them.
        self._computed: _Shared[tuple[Embeddings, MetricResult, _Overlaps]] = _Shared()
        self._on_all_splits: _Shared[tuple[MetricResult, Overlap | None]] = _Shared()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict":  # before anything is embedded
            datasets = trainer.datamodule.datasets.predict  # type: ignore[attr-defined]
            first = datasets[0] if isinstance(datasets, list) else datasets
            name_classes(self.classes, getattr(first, "classes", None))

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":  # not during a fit
            self._log("val", trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log("test", trainer, pl_module)

    def _log(self, split: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = (
            Path(str(trainer.log_dir)) / METRICS_FOLDER
        )  # synchronises devices: all must call it
        values: dict[str, float] = {}
        problem = None
        with upstream.others_waiting(trainer) as is_first:  # it can take an hour
            try:
                with computing_on(trainer.strategy.root_device):
                    values = self._compute(split, folder).values if is_first else {}
            except UserError as error:
                problem = error
        # An error is shared too: otherwise the other devices would wait forever.
        values, problem = trainer.strategy.broadcast((values, problem))
        if problem is not None:
            raise problem
        pl_module.log_dict({f"{split}/{name}": value for name, value in values.items()})

    def _compute(self, split: str, folder: Path) -> MetricResult:
        model = read_model(self.root) or {}
        patients = model.pop(TRAINING_PATIENTS, None)
        if MAPS in model:
            # Its weights are not all of the model's, so their hash is no hash of the model.
            model = {"name": model["name"], MAPS: model[MAPS]}
        if split not in self._computed and not (self.metrics or self.metrics_on_all_splits):
            evaluated = read_patches(self.root, split)
            overlaps = {EVALUATED: compute_without((), evaluated, evaluated, patients)}
            self._computed[split] = evaluated, MetricResult({}), overlaps
        if split not in self._computed:
            train, evaluated = self._read("train"), self._read(split)
            result = compute_all(self.metrics, train, evaluated)
            overlaps = {EVALUATED: compute_without(self.metrics, train, evaluated, patients)}
            if self.metrics_on_all_splits:
                on_all_splits, overlaps[ALL_SPLITS] = self._compute_on_all_splits(patients)
                result = merge([result, on_all_splits])
            self._computed[split] = evaluated, result, overlaps
        evaluated, result, overlaps = self._computed[split]
        write_results(
            folder,
            split,
            result,
            evaluated,
            task=self.task,
            classes=name_classes(self.classes, model.get("classes")),
            model=model | {"name": self.model_label or model.get("name", "")},
            overlaps=overlaps,
        )
        return result

    def _compute_on_all_splits(
        self, patients: list[str] | None
    ) -> tuple[MetricResult, Overlap | None]:
        """Computes once what is the same for every evaluated split: it can take an hour."""
        if "" not in self._on_all_splits:
            every = concatenate([self._read(name) for name in splits_of(self.root)])
            self._on_all_splits[""] = (
                compute_all(self.metrics_on_all_splits, every, every),
                compute_without(self.metrics_on_all_splits, every, every, patients),
            )
        return self._on_all_splits[""]

    def _read(self, split: str) -> Embeddings:
        embeddings = read_embeddings(self.root, split)
        found = {name: _find(pattern, embeddings) for name, pattern in self.patterns.items()}
        named = {name: values for name, values in found.items() if values is not None}
        return dataclasses.replace(embeddings, groups=embeddings.groups | named)


class CKA(EmbeddingMetric):
    """Linear CKA with the teacher's embeddings of the same tiles."""

    def __init__(self, teacher_root: str | None = None) -> None:
        """Initializes the metric.

        Args:
            teacher_root: Folder of the teacher's embeddings of the same task; None disables the
                metric.
        """
        self.teacher_root = teacher_root

    @property
    @override
    def names(self) -> Sequence[str]:
        return ["LinearCKA", "LinearCKAUnbiased"]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        if self.teacher_root is None:
            return MetricResult({})
        teacher = read_embeddings(self.teacher_root, evaluated.split)
        if len(evaluated) < len(teacher) and evaluated.images == teacher.images:
            # Patients of the same split were left out.
            rows = np.flatnonzero(np.isin(teacher.names, evaluated.names))
            teacher = take(teacher, rows)
        result = align(evaluated, teacher)
        return dataclasses.replace(result, details={"teacher_root": self.teacher_root})


def _compile(pattern: str) -> re.Pattern[str]:
    compiled = re.compile(pattern)
    if compiled.groups != 1:
        raise UserError(
            f"The pattern {pattern!r} in `groups` has {compiled.groups} capturing groups. "
            "Expected one, around the name of the slide or patient."
        )
    return compiled


def _find(pattern: re.Pattern[str], embeddings: Embeddings) -> np.ndarray | None:
    """Matches a pattern in the tiles' names, str (N,); None if some names don't match."""
    found = [pattern.search(tile) for tile in embeddings.names]
    if missing := [tile for tile, match in zip(embeddings.names, found, strict=True) if not match]:
        logger.warning(
            f"{len(missing):,} tile names don't match {pattern.pattern!r} (e.g. {missing[0]}); "
            "the metrics ignore this group."
        )
        return None
    return np.array([match[1] for match in found if match])


class _Shared(dict[str, _Value]):
    """Results by split; copies are the same object."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared[_Value]:
        return self
