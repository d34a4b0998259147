"""All values in one long table: those of the sessions, pooled over runs, and published ones."""

from __future__ import annotations

import functools
import importlib.resources
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from g2l_plugin.evaluation.training_patients import Overlap
from g2l_plugin.metrics.families import FAMILIES, family_of
from g2l_plugin.metrics.metric import MetricFamily
from g2l_plugin.report.config import task_key
from g2l_plugin.report.sessions import RESULTS, SPLITS, Session

COLUMNS = (
    "model",
    "task",
    "split",
    "metric",
    "mean",
    "stdev",
    "n_runs",
    "low",
    "high",
    "undefined",
    "n_trained_on",
    "mean_without",
    "published",
    "source",
)
"""Columns of report.csv.

`n_trained_on` counts the evaluated patients that the model was distilled on, and is empty if
unknown; `mean_without` is the mean without them.
"""

_NUMBERS = ("mean", "stdev", "n_runs", "low", "high", "n_trained_on", "mean_without")
_TYPES = dict.fromkeys(_NUMBERS, float) | {"published": bool}
"""Types of the columns that hold no text, needed if a table has no rows."""

HEAD = MetricFamily(
    key="head",
    title="eva's head",
    about="A head that eva trains on frozen embeddings: linear for tiles, attention for slides, "
    "convolutions for segmentation.",
    pattern=r"\w+",
)
"""The metric that a session monitors, whatever its name."""

REPORT_FAMILIES = (HEAD, *FAMILIES)
"""Families in the order of their tables; those of other metrics come after them."""

_HEAD_METRICS = (
    "MulticlassAccuracy",
    "BinaryBalancedAccuracy",
    "MonaiDiceScore",
    "MeanPearson",
)
"""Candidates for the metric of eva's head if its config is missing."""

_MINOR = (
    "KNNBalancedAccuracy",
    "LogisticAccuracy",
    "LogisticBalancedAccuracy",
    "LogisticBrier",
    "CRoMaTail",
    "CRoMaConfounded",
    "GenePearsonStd",
)
"""Metrics that are only in report.csv, by the part of their name before a slash."""

_PUBLISHED_FILES = (
    ("g2l_plugin.publishing", "published.csv"),
    ("g2l_plugin.report", "paper.csv"),
    ("g2l_plugin.report", "leaderboard.csv"),
    ("g2l_plugin.report", "hest.csv"),
)
_PUBLISHED_METRICS = {
    "balanced accuracy": ("MulticlassAccuracy", "BinaryBalancedAccuracy"),
    "Dice": ("MonaiDiceScore",),
    "gene expression": ("GenePearson/pca_ridge",),
    "kNN accuracy": ("KNNAccuracy",),
    "linear CKA": ("LinearCKA",),
    "linear probe AUC": ("LogisticAUROC",),
}
_PUBLISHED_INDEX = "robustness index "


def pool_values(sessions: Sequence[Session]) -> pd.DataFrame:
    """Pools the runs of each model on each task.

    Several sessions of the same model and task count as more runs.

    Args:
        sessions: The sessions.

    Returns:
        A row per model, task, split and metric: `COLUMNS`, and `family`, the `MetricFamily` whose
        table shows the metric, or None, `trained_on`, a sentence on the patients that the model was
        distilled on, if there are any, and `files`, those that the value is from. `mean` is NaN if
        the value is undefined, `stdev` for a single run, `low` and `high` if there is no interval.
    """
    together: dict[tuple[str, str], list[Session]] = {}
    for session in sessions:
        together.setdefault((session.model, session.task), []).append(session)
    rows = [
        {"model": model, "task": task, "split": split, **value}
        for (model, task), own in together.items()
        for split in SPLITS
        for value in _pool(own, split)
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, "family", "trained_on", "files"])
    return table.assign(published=False, source="").astype(_TYPES)


def _pool(sessions: list[Session], split: str) -> Iterator[dict[str, Any]]:
    values: dict[str, list[float]] = {}
    undefined: dict[str, str] = {}
    intervals: dict[str, tuple[float, float]] = {}
    families: dict[str, MetricFamily] = {}
    files: dict[str, list[Path]] = {}
    for session in sessions:
        runs = session.run_values.get(split, {})
        metrics = session.split_metrics.get(split)
        # eva repeats the values of EmbeddingMetrics, computed once, for each run of its head.
        computed = {name: (value,) for name, value in metrics.values.items()} if metrics else {}
        for name, own in (runs | computed).items():
            values.setdefault(name, []).extend(own)
        if metrics:
            undefined |= metrics.undefined
            intervals = metrics.intervals | intervals
        sources = dict.fromkeys(runs, session.folder / RESULTS)
        if metrics:
            sources |= dict.fromkeys((*computed, *metrics.undefined), metrics.file)
        for name, file in sources.items():
            files.setdefault(name, []).append(file)
        candidates = (session.monitor, *_HEAD_METRICS)
        head = next((name for name in candidates if name in runs), None)
        for name in (*runs, *computed, *undefined):
            if name == head:
                families[name] = HEAD
            elif (name in computed or name in undefined or family_of(name)) and (
                family := _table_family(name)
            ):
                families[name] = family
    for name in (*values, *(undefined.keys() - values.keys())):
        pooled = _mean(values.get(name, []), undefined.get(name), intervals.get(name))
        overlaps = [
            metrics.overlap_of(name) if (metrics := session.split_metrics.get(split)) else None
            for session in sessions
        ]
        without = _without(name, overlaps, pooled)
        facts = {"metric": name, "family": families.get(name), "files": tuple(files[name])}
        yield facts | pooled | without


def _table_family(metric: str) -> MetricFamily | None:
    """The family whose table shows a metric that is not of eva's head; None if no table does."""
    name = metric.partition("/")[0]
    if name in _MINOR:
        return None
    return family_of(metric) or MetricFamily(
        key=name,
        title=name,
        about="A metric that was added to the benchmark.",
        pattern=rf"{re.escape(name)}(/.*)?",
    )


def _mean(
    values: list[float], undefined: str | None, interval: tuple[float, float] | None
) -> dict[str, Any]:
    n_missing = sum(not math.isfinite(value) for value in values)
    if n_missing:
        undefined = f"{n_missing} of {len(values)} runs gave no number"
    if not values or n_missing:
        return {"mean": math.nan, "n_runs": len(values), "undefined": undefined}
    # An interval belongs to one set of embeddings; several have a standard deviation instead.
    low, high = interval if interval and len(set(values)) == 1 else (math.nan, math.nan)
    return {
        "mean": statistics.fmean(values),
        "stdev": statistics.stdev(values) if len(values) > 1 else math.nan,
        "n_runs": len(values),
        "low": low,
        "high": high,
    }


def _without(metric: str, overlaps: list[Overlap | None], pooled: dict[str, Any]) -> dict[str, Any]:
    """The patients that the model was distilled on, and the mean without them, if all are known."""
    known = [overlap for overlap in overlaps if overlap]
    if len(known) < len(overlaps):
        return {}
    most = max(known, key=lambda overlap: overlap.n_shared)
    if not most.n_shared:
        return {"n_trained_on": 0, "mean_without": pooled["mean"]}
    values = [own.values.get(metric, math.nan) for own in known if own.n_shared]
    mean = statistics.fmean(values) if len(values) == len(known) else math.nan
    if not math.isnan(mean):
        outcome = f"without them {mean:.3f}"
    elif reason := most.undefined.get(metric):
        outcome = f"without them undefined: {reason}"
    else:
        outcome = "no value was computed without them"
    return {
        "n_trained_on": most.n_shared,
        "mean_without": mean,
        "trained_on": f"{most.describe()}; {outcome}.",
    }


def published_values(values: pd.DataFrame) -> pd.DataFrame:
    """Finds published values for the tasks and metrics of a report.

    Args:
        values: Values of the sessions, from `pool_values`.

    Returns:
        Rows with the same columns. `split` is empty if the publication does not name it; it then
        matches both splits.
    """
    shown = values[values["family"].notna()].drop_duplicates(["task", "split", "metric"])
    rows = [
        {
            "model": found.model,
            "task": own.task,
            "split": found.split,
            "metric": own.metric,
            "mean": found.value,
            "published": True,
            "source": found.source,
            "family": own.family,
        }
        for own in shown.itertuples()
        for found in _read_published().itertuples()
        if found.key == task_key(own.task)
        and own.metric in found.metrics
        and found.split in ("", own.split)
    ]
    return pd.DataFrame(rows, columns=values.columns).drop_duplicates().astype(_TYPES)


@functools.cache
def _read_published() -> pd.DataFrame:
    tables = []
    for package, name in _PUBLISHED_FILES:
        with (importlib.resources.files(package) / name).open(encoding="utf-8") as file:
            tables.append(pd.read_csv(file, dtype={"split": str}))
    table = pd.concat(tables, ignore_index=True)
    table["split"] = table["split"].fillna("")
    table["key"] = [task_key(task) for task in table["task"]]
    table["metrics"] = [_metrics_named(name) for name in table["metric"]]
    return table


def _metrics_named(published: str) -> tuple[str, ...]:
    if published.startswith(_PUBLISHED_INDEX):
        return (f"RobustnessIndex/{published.removeprefix(_PUBLISHED_INDEX)}",)
    return _PUBLISHED_METRICS[published]
