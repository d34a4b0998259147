"""All figures of some sessions in one long table, several runs as one figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from g2l_plugin.reporting.names import (
    HEAD,
    group_of,
    head_metric,
    is_known,
)
from g2l_plugin.reporting.sessions import SPLITS, Session

COLUMNS = (
    "model",
    "task",
    "split",
    "measure",
    "mean",
    "stdev",
    "n_runs",
    "low",
    "high",
    "undefined",
    "published",
    "source",
)
"""Columns of report.csv."""

TYPES = dict.fromkeys(("mean", "stdev", "n_runs", "low", "high"), float) | {"published": bool}
"""Types of the columns that are no text, also where a table has no rows."""


def pool_figures(sessions: Sequence[Session]) -> pd.DataFrame:
    """Pools the runs of each model on each task.

    Several sessions of the same model and task are taken as more runs of it.

    Args:
        sessions: The sessions.

    Returns:
        A row a model, task, split and measure: `COLUMNS`, and `group`, the key of the measure's
        group, which is missing where it has a table nowhere. `stdev` is NaN for one run, `low` and
        `high` where there is no interval, `mean` where the figure is undefined.
    """
    together: dict[tuple[str, str], list[Session]] = {}
    for session in sessions:
        together.setdefault((session.model, session.task), []).append(session)
    rows = [
        {"model": model, "task": task, "split": split, **figure}
        for (model, task), group in together.items()
        for split in SPLITS
        for figure in _figures(group, split)
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, "group"])
    return table.assign(published=False, source="").astype(TYPES)


def _figures(sessions: list[Session], split: str) -> Iterator[dict[str, Any]]:
    values: dict[str, list[float]] = {}
    undefined: dict[str, str] = {}
    intervals: dict[str, tuple[float, float]] = {}
    groups: dict[str, str] = {}
    for session in sessions:
        metrics = session.metrics.get(split, {})
        measured = session.measured.get(split)
        # eva repeats for each run of its head what was measured once.
        taken = {name: (value,) for name, value in measured.values.items()} if measured else {}
        for name, found in (metrics | taken).items():
            values.setdefault(name, []).extend(found)
        if measured:
            undefined |= measured.undefined
            intervals = measured.intervals | intervals
        head = head_metric(metrics, session.metric)
        for name in (*metrics, *taken, *undefined):
            if name == head:
                groups[name] = HEAD.key
            elif (name in taken or name in undefined or is_known(name)) and (
                group := group_of(name)
            ):
                groups[name] = group.key
    for name in (*values, *(undefined.keys() - values.keys())):
        figure = _figure(values.get(name, []), undefined.get(name), intervals.get(name))
        yield {"measure": name, "group": groups.get(name), **figure}


def _figure(
    values: list[float], undefined: str | None, interval: tuple[float, float] | None
) -> dict[str, Any]:
    lost = sum(not math.isfinite(value) for value in values)
    if lost:
        undefined = f"{lost} of {len(values)} runs gave no number"
    if not values or lost:
        return {"mean": math.nan, "n_runs": len(values), "undefined": undefined}
    # An interval is of one set of embeddings: of several, their spread is told.
    low, high = interval if interval and len(set(values)) == 1 else (math.nan, math.nan)
    return {
        "mean": statistics.fmean(values),
        "stdev": statistics.stdev(values) if len(values) > 1 else math.nan,
        "n_runs": len(values),
        "low": low,
        "high": high,
    }
