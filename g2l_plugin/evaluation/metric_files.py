"""Writes the metrics of one encoder on one task as files, which `g2l report` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from g2l_plugin.evaluation.maps import map_embeddings
from g2l_plugin.evaluation.training_patients import Overlap, overlaps_to_dict
from g2l_plugin.files import new_file, write_text
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import MetricResult

METRICS_FOLDER = "metrics"
"""Folder of these files, in the run's folder."""

FACTS = "facts.json"
"""File that holds the model and the task of the metrics."""

TRAINED_ON = "training_patients"
"""Key of the evaluated patients that a model was distilled on; absent if unknown."""

EVALUATED, ALL_SPLITS = "evaluated", "all_splits"
"""Whether they are patients of the evaluated split, or of all splits together."""


def write_results(
    folder: Path,
    split: str,
    result: MetricResult,
    evaluated: Embeddings,
    *,
    task: str,
    classes: Sequence[str] | None,
    model: dict[str, Any],
    overlaps: dict[str, Overlap | None] | None = None,
) -> None:
    """Writes facts.json, and SPLIT.json and SPLIT.parquet of one split.

    Without embeddings (N, 0), as of segmentation, there is no SPLIT.parquet.

    Args:
        folder: The folder to write to.
        split: `val` or `test`.
        result: The metrics.
        evaluated: Embeddings of the split.
        task: Name of the task.
        classes: Names of the classes, if known.
        model: The model: `name`, `sha256`, parameters, speed.
        overlaps: The evaluated patients that the model was distilled on, by `EVALUATED` and
            `ALL_SPLITS`; None if unknown.
    """
    facts = {"task": task, "classes": None if classes is None else list(classes), "model": model}
    found = {
        "n_tiles": len(evaluated),
        "n_units": len(np.unique(evaluated.units)),
        "values": result.values,
        "undefined": result.undefined,
        "details": result.details,
    }
    if known := overlaps_to_dict(overlaps or {}):
        found[TRAINED_ON] = known
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    write_text(folder / f"{split}.json", json.dumps(found, indent=2) + "\n")
    if not evaluated.values.size:
        return
    with new_file(folder / f"{split}.parquet") as partial:
        _tabulate(result, evaluated).to_parquet(partial)


def _tabulate(result: MetricResult, evaluated: Embeddings) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {"name": evaluated.names, "label": evaluated.labels}
    columns |= evaluated.groups
    for classifier, scores in result.scores.items():
        for number, column in enumerate(scores.T):
            columns[f"{classifier}/{number}"] = column.astype(np.float32)
    for kind, points in map_embeddings(evaluated.values).items():
        columns |= {f"{kind}/1": points[:, 0], f"{kind}/2": points[:, 1]}
    return pd.DataFrame(columns)
