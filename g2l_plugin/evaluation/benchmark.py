"""What turns eva's offline evaluation into the paper's: its measures, on the same embeddings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from loguru import logger
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embeddings import (
    Embeddings,
    concatenate,
    read_embeddings,
    splits_of,
)
from g2l_plugin.evaluation.measure import Measure, Outcome
from g2l_plugin.evaluation.measures import join, take, write_measures
from g2l_plugin.evaluation.writer import read_model

MEASURES = "measures"
"""Name of the folder of the measures' files, in the run's folder."""


class EmbeddingMeasures(pl.Callback):
    """Takes measures of the embeddings that eva's offline flow computes, beside its linear head.

    They are taken where eva validates and tests a head that it has fitted, and logged, so that
    they stand in eva's results.json. What `g2l report` reads beside it goes to `measures` in the
    run's folder.
    """

    def __init__(
        self,
        root: str,
        task: str,
        measures: Sequence[Measure],
        measures_of_all: Sequence[Measure] = (),
        classes: Sequence[str] | None = None,
        groups: dict[str, str] | None = None,
        model_label: str | None = None,
    ) -> None:
        """Initializes the callback.

        Args:
            root: Folder of the embeddings, as `g2l_plugin.EmbeddingsWriter` wrote them.
            task: Name of the task, for reports.
            measures: What is measured on the split that is evaluated, with the training split.
            measures_of_all: What is measured on all splits together, as robustness is where a task
                has few tiles of some centres in each.
            classes: Names of the classes, in the order of their numbers, for reports.
            groups: What else a tile belongs to, where its name tells, e.g. `slide`: a regular
                expression with one group in brackets.
            model_label: What reports call the model; None takes its name or source.

        Raises:
            UserError: A regular expression has not one group.
        """
        super().__init__()
        self.root = root
        self.task = task
        self.measures = list(measures)
        self.measures_of_all = list(measures_of_all)
        self.patterns = {name: _compile(pattern) for name, pattern in (groups or {}).items()}
        self.model_label = model_label
        self.classes = None if classes is None else list(classes)
        # eva copies callbacks for each of its runs: the measures are the same in all of them.
        self._taken = _Shared()

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":  # and not within a fit
            self._take("val", trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take("test", trainer, pl_module)

    def _take(self, split: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = Path(str(trainer.log_dir)) / MEASURES  # devices agree on it: all must ask
        values: dict[str, float] = {}
        problem = None
        if trainer.is_global_zero:
            try:
                values = self._measure(split, folder).values
            except UserError as error:
                problem = error
        # One device measures; the others would wait for it for ever.
        values, problem = trainer.strategy.broadcast((values, problem))
        if problem is not None:
            raise problem
        pl_module.log_dict({f"{split}/{name}": value for name, value in values.items()})

    def _measure(self, split: str, folder: Path) -> Outcome:
        if split not in self._taken:
            train, evaluated = self._read("train"), self._read(split)
            outcome = take(self.measures, train, evaluated)
            if self.measures_of_all:
                every = concatenate([self._read(name) for name in splits_of(self.root)])
                outcome = join([outcome, take(self.measures_of_all, every, every)])
            self._taken[split] = evaluated, outcome
        evaluated, outcome = self._taken[split]
        model = read_model(self.root) or {}
        write_measures(
            folder,
            split,
            outcome,
            evaluated,
            task=self.task,
            classes=self.classes,
            model=model | {"name": self.model_label or model.get("name", "")},
        )
        return outcome

    def _read(self, split: str) -> Embeddings:
        embeddings = read_embeddings(self.root, split)
        found = {name: _find(pattern, embeddings) for name, pattern in self.patterns.items()}
        named = {name: values for name, values in found.items() if values is not None}
        return dataclasses.replace(embeddings, groups=embeddings.groups | named)


def _compile(pattern: str) -> re.Pattern[str]:
    compiled = re.compile(pattern)
    if compiled.groups != 1:
        raise UserError(
            f"The pattern {pattern!r} of `groups` has {compiled.groups} groups in brackets. "
            "Expected one, around the name of the slide or patient."
        )
    return compiled


def _find(pattern: re.Pattern[str], embeddings: Embeddings) -> np.ndarray | None:
    """What a pattern finds in the tiles' names, str (N,); None where some have nothing of it."""
    found = [pattern.search(tile) for tile in embeddings.names]
    if missing := [tile for tile, match in zip(embeddings.names, found, strict=True) if not match]:
        logger.warning(
            f"{len(missing):,} tiles have no {pattern.pattern!r} in their names ({missing[0]} has "
            "none): it is left out of the measures."
        )
        return None
    return np.array([match[1] for match in found if match])


class _Shared(dict[str, Any]):
    """A dictionary of which copies are itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self
