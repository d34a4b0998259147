"""Several measures of one encoder on one task, and the files that hold what they found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loguru import logger
from sklearn.decomposition import PCA
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.cka import cka_between
from g2l_plugin.evaluation.embeddings import Embeddings, read_embeddings
from g2l_plugin.evaluation.measure import Measure, Outcome
from g2l_plugin.files import new_file, write_text

FACTS = "facts.json"
"""Name of the file that says which model and which task the measures are of."""

_MAX_FITTED = 20_000
"""Tiles that the principal components are found on, evenly spread: all are projected."""


class CKA(Measure):
    """Linear CKA with another encoder's embeddings of the same tiles: with the teacher's."""

    def __init__(self, teacher_root: str | None = None) -> None:
        """Initializes the measure.

        Args:
            teacher_root: Folder of the teacher's embeddings of the same task; None measures none.
        """
        self.teacher_root = teacher_root

    @override
    def measure(self, train: Embeddings, evaluated: Embeddings) -> Outcome:
        if self.teacher_root is None:
            return Outcome({})
        teacher = read_embeddings(self.teacher_root, evaluated.split)
        outcome = align(evaluated, teacher)
        return dataclasses.replace(outcome, details={"teacher_root": self.teacher_root})


def align(evaluated: Embeddings, teacher: Embeddings) -> Outcome:
    """Takes linear CKA of embeddings with the teacher's; undefined where one is constant."""
    values = cka_between(evaluated, teacher)
    undefined = {
        name: "all embeddings of one encoder are the same"
        for name, value in values.items()
        if np.isnan(value)
    }
    return Outcome(
        {name: value for name, value in values.items() if name not in undefined}, undefined
    )


def take(measures: Iterable[Measure], train: Embeddings, evaluated: Embeddings) -> Outcome:
    """Takes several measures and joins what they found.

    Args:
        measures: The measures.
        train: Embeddings of the training split.
        evaluated: Embeddings of the split that is evaluated.

    Raises:
        UserError: One cannot be taken, or a class is evaluated that is not trained on.
    """
    if unknown := sorted(set(evaluated.labels) - set(train.labels)):
        raise UserError(
            f"The classes {', '.join(map(str, unknown))} are in the split that is evaluated and "
            "not in the training split. Check the `split` column, or MAX_TILES."
        )
    outcome = join([measure.measure(train, evaluated) for measure in measures])
    for name, reason in outcome.undefined.items():
        logger.warning(f"{name} is undefined: {reason}")
    return outcome


def join(outcomes: Iterable[Outcome]) -> Outcome:
    """Puts what several measures found into one."""
    joined = Outcome({})
    for outcome in outcomes:
        joined.values.update(outcome.values)
        joined.undefined.update(outcome.undefined)
        joined.scores.update(outcome.scores)
        for name, value in outcome.details.items():
            if isinstance(value, dict) and isinstance(joined.details.get(name), dict):
                joined.details[name] = joined.details[name] | value
            else:
                joined.details[name] = value
    return joined


def write_measures(
    folder: Path,
    split: str,
    outcome: Outcome,
    evaluated: Embeddings,
    *,
    task: str,
    classes: Sequence[str] | None,
    model: dict[str, Any],
) -> None:
    """Writes what `g2l report` reads: facts.json, and SPLIT.json and SPLIT.parquet of one split.

    Args:
        folder: The folder to write to.
        split: `val` or `test`.
        outcome: What was found.
        evaluated: The embeddings of the split.
        task: Name of the task.
        classes: Names of its classes, where known.
        model: Whose embeddings they are: `name`, `sha256`, parameters, speed.
    """
    facts = {"task": task, "classes": None if classes is None else list(classes), "model": model}
    found = {
        "n_tiles": len(evaluated),
        "n_units": len(np.unique(evaluated.units)),
        "values": outcome.values,
        "undefined": outcome.undefined,
        "details": outcome.details,
    }
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    write_text(folder / f"{split}.json", json.dumps(found, indent=2) + "\n")
    with new_file(folder / f"{split}.parquet") as partial:
        _tabulate(outcome, evaluated).to_parquet(partial)


def _tabulate(outcome: Outcome, evaluated: Embeddings) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {"name": evaluated.names, "label": evaluated.labels}
    columns |= evaluated.groups
    for classifier, scores in outcome.scores.items():
        for number, column in enumerate(scores.T):
            columns[f"{classifier}/{number}"] = column.astype(np.float32)
    every = max(1, -(-len(evaluated) // _MAX_FITTED))
    if min(evaluated.values[::every].shape) >= 2:
        pca = PCA(2, random_state=0).fit(evaluated.values[::every])
        projected = pca.transform(evaluated.values).astype(np.float32)
        columns |= {"pca/1": projected[:, 0], "pca/2": projected[:, 1]}
    return pd.DataFrame(columns)
