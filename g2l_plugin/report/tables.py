"""Tables of models and tasks, one per family of metrics, with the best of each column marked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd

from g2l_plugin.metrics.cka import BIASED_CKA, CKA
from g2l_plugin.metrics.families import family_of, k_of
from g2l_plugin.metrics.metric import MetricFamily
from g2l_plugin.metrics.plism import RETRIEVAL
from g2l_plugin.report.values import REPORT_FAMILIES

NOT_RUN = "\N{EN DASH}"
UNDEFINED = "undefined"
ITSELF = 1 - 1e-6
"""CKA from which on an encoder counts as compared with itself."""

_MARKS = "†‡§¶‖#"
_HEAD_DETAILS = {
    "BinaryBalancedAccuracy": "balanced accuracy",
    "MeanPearson": "mean correlation of genes",
    "MonaiDiceScore": "Dice",
    "MulticlassAccuracy": "balanced accuracy",
}
"""What eva's metrics are; its MulticlassAccuracy is the mean over classes."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A task in a table.

    Attributes:
        task: Name of the task.
        split: The evaluated split.
        metric: Name of the metric.
    """

    task: str
    split: str
    metric: str

    @property
    def detail(self) -> str:
        """What the title of the metric's family leaves open: `k=20`, `balanced accuracy`."""
        detail = self.metric.partition("/")[2] or _HEAD_DETAILS.get(self.metric, "")
        if family_of(self.metric) is RETRIEVAL:
            return f"{detail}, top {k_of(self.metric)}"
        return detail


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value in a table.

    Attributes:
        text: The value, `undefined`, or a dash if the task was not run.
        spread: Standard deviation over runs, or the interval; empty if there is neither.
        rank: 1 for the best of the column, 2 for the second best.
        note: Mark of the footnote.
        value: Row of the table of values; None if the task was not run.
    """

    text: str = NOT_RUN
    spread: str = ""
    rank: int | None = None
    note: str = ""
    value: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A model in a table.

    Attributes:
        model: Name of the model.
        cells: Its values, in the order of the columns.
        published: Whether the values are published ones instead of values of the sessions.
        note: Mark of the footnote that names the source.
    """

    model: str
    cells: tuple[Cell, ...]
    published: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Values of one family of metrics, by model and task.

    Attributes:
        family: The family.
        columns: The columns.
        rows: Evaluated models, then published ones.
        notes: Footnotes by mark.
    """

    family: MetricFamily
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: dict[str, str]

    @property
    def title(self) -> str:
        """Title of the family, with the detail that all columns share, e.g. `k=20`."""
        details = {column.detail for column in self.columns}
        common = details.pop() if len(details) == 1 else ""
        return f"{self.family.title}, {common}" if common else self.family.title

    def subtitle(self, column: Column) -> str:
        """Second line of a column's head: the split, and the detail if columns differ in it."""
        differs = len({other.detail for other in self.columns}) > 1
        return f"{column.split}, {column.detail}" if differs and column.detail else column.split

    def values(self, column: Column) -> dict[str, dict[str, Any]]:
        """Defined values of the evaluated models in a column, by model."""
        index = self.columns.index(column)
        return {
            row.model: value
            for row in self.rows
            if not row.published
            and (value := row.cells[index].value) is not None
            and not math.isnan(value["mean"])
        }


def build_tables(values: pd.DataFrame) -> list[ResultTable]:
    """Builds a table per family of metrics, in the order of `REPORT_FAMILIES`.

    A task is shown on its test split if any model has one, else on val. If a metric was computed at
    several k, the table shows the largest at which it is defined. Biased CKA is shown where a
    published value is only.

    Args:
        values: Values of the sessions and published ones, from `pool_values` and
            `published_values`.
    """
    biased = values["family"] == BIASED_CKA
    compared = values.loc[biased & values["published"], "task"]
    values = values[~biased | values["task"].isin(compared)]
    families = list(dict.fromkeys(values.loc[~values["published"], "family"].dropna()))
    order = {family: index for index, family in enumerate(REPORT_FAMILIES)}
    families.sort(key=lambda family: order.get(family, len(order)))
    return [_build(family, values[values["family"] == family]) for family in families]


def _build(family: MetricFamily, values: pd.DataFrame) -> ResultTable:
    evaluated, published = values[~values["published"]], values[values["published"]]
    columns = _columns(evaluated)
    by_cell = _by_cell(evaluated)
    models = list(dict.fromkeys(evaluated["model"]))
    ranks = [_ranks(family, [by_cell.get((m, column)) for m in models]) for column in columns]
    notes: dict[str, str] = {}
    rows = []
    for model in models:
        cells = []
        for column, ranked in zip(columns, ranks, strict=True):
            cell = _cell(by_cell.get((model, column)), ranked, notes)
            other = "val" if column.split == "test" else "test"
            if cell.value is None and (model, dataclasses.replace(column, split=other)) in by_cell:
                cell = Cell(note=_mark(notes, f"Evaluated on {other} only.", numbered=True))
            cells.append(cell)
        rows.append(Row(model, tuple(cells)))
    for (source, model), own in published.groupby(["source", "model"], sort=False):
        by_cell = _by_cell(own)
        found = [
            by_cell.get((model, column))
            or by_cell.get((model, dataclasses.replace(column, split="")))
            for column in columns
        ]
        if any(found):
            mark = _mark(notes, f"Published, not measured here: {source}.", numbered=False)
            row_cells = tuple(_cell(value, {}, notes) for value in found)
            rows.append(Row(str(model), row_cells, published=True, note=mark))
    return ResultTable(family, tuple(columns), tuple(rows), notes)


def _by_cell(values: pd.DataFrame) -> dict[tuple[Any, Column], dict[str, Any]]:
    return {
        (value["model"], Column(value["task"], value["split"], value["metric"])): value
        for value in values.to_dict("records")
    }


def _columns(values: pd.DataFrame) -> list[Column]:
    columns = []
    for task, own in values.groupby("task", sort=False):
        split = "test" if (own["split"] == "test").any() else "val"
        own = own[own["split"] == split]
        names = list(dict.fromkeys(own["metric"]))
        defined = set(own.loc[own["mean"].notna(), "metric"]) or names
        largest = max((k_of(name) or 0 for name in defined), default=0)
        columns += [
            Column(str(task), split, name) for name in names if (k_of(name) or 0) == largest
        ]
    return columns


def _ranks(family: MetricFamily, values: list[dict[str, Any] | None]) -> dict[float, int]:
    """Ranks of the two best values of a column, by value; empty if there is only one model."""
    means = [
        value["mean"]
        for value in values
        if value
        and not math.isnan(value["mean"])
        and not (family in (CKA, BIASED_CKA) and value["mean"] >= ITSELF)
    ]
    best = sorted(set(means), reverse=not family.smaller_is_better)[:2]
    return {mean: rank for rank, mean in enumerate(best, 1)} if len(means) > 1 else {}


def _cell(value: dict[str, Any] | None, ranks: dict[float, int], notes: dict[str, str]) -> Cell:
    if value is None:
        return Cell()
    if math.isnan(value["mean"]):
        mark = _mark(notes, f"Undefined: {value['undefined']}.", numbered=True)
        return Cell(UNDEFINED, note=mark, value=value)
    spread = ""
    if value["stdev"] > 0:
        spread = f"± {value['stdev']:.3f}"
    elif not math.isnan(value["low"]):
        spread = f"{value['low']:.3f} to {value['high']:.3f}"
    shared = value.get("trained_on")
    note = _mark(notes, shared, numbered=True) if isinstance(shared, str) else ""
    return Cell(f"{value['mean']:.3f}", spread, ranks.get(value["mean"]), note, value)


def _mark(notes: dict[str, str], text: str, numbered: bool) -> str:
    """The mark of a footnote; adds the footnote if it is new."""
    for mark, known in notes.items():
        if known == text:
            return mark
    n_alike = sum(mark.isdecimal() == numbered for mark in notes)
    mark = str(n_alike + 1) if numbered else _MARKS[n_alike % len(_MARKS)]
    notes[mark] = text
    return mark
