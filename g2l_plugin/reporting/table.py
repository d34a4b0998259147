"""Tables of models and tasks, one a group of measures, with the best of each column marked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd

from g2l_plugin.reporting.names import GROUPS, Group, group_of, k_of, measure_detail

NOT_RUN = "\N{EN DASH}"
UNDEFINED = "undefined"
_MARKS = "†‡§¶‖#"
ITSELF = 1 - 1e-6
"""CKA from which on an encoder is compared with itself."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A task in a table.

    Attributes:
        task: Name of the task.
        split: The split that was evaluated.
        measure: The measure.
        detail: What of the measure stands in the column's head.
    """

    task: str
    split: str
    measure: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure in a table.

    Attributes:
        text: The figure, `undefined`, or a dash where the task was not run.
        spread: Standard deviation over runs, or the interval; empty where there is neither.
        rank: 1 for the best of the column, 2 for the second best.
        note: Mark of the footnote.
        figure: The row of the figure.
    """

    text: str = NOT_RUN
    spread: str = ""
    rank: int | None = None
    note: str = ""
    figure: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A model in a table.

    Attributes:
        model: Name of the model.
        cells: Its figures, in the order of the columns.
        published: Whether they are published figures, and not measured ones.
        note: Mark of the footnote that names the source.
    """

    model: str
    cells: tuple[Cell, ...]
    published: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Models and tasks by one group of measures.

    Attributes:
        group: The group.
        columns: The columns.
        rows: Measured models, then published ones.
        notes: Footnotes, by their marks.
    """

    group: Group
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: dict[str, str]

    @property
    def title(self) -> str:
        """Title of the group, with what all columns have in common: `k=20`."""
        details = {column.detail for column in self.columns}
        common = details.pop() if len(details) == 1 else ""
        return f"{self.group.title}, {common}" if common else self.group.title

    def head(self, column: Column) -> str:
        """What stands below the task in the head of a column: its split, and what is its own."""
        alike = len({other.detail for other in self.columns}) == 1
        return column.split if alike or not column.detail else f"{column.split}, {column.detail}"


def build_tables(figures: pd.DataFrame) -> list[ResultTable]:
    """Builds a table a group of measures, in the order of `GROUPS`.

    A task is shown on its test split where any model has one, else on val. Of an index at several k
    the table shows the largest.

    Args:
        figures: Measured and published figures, as `pool_figures` gives them.
    """
    keys = [group.key for group in GROUPS]
    found = list(dict.fromkeys(figures.loc[~figures["published"], "group"].dropna()))
    found.sort(key=lambda key: keys.index(key) if key in keys else len(keys))
    return [_build(_group(key, figures), figures[figures["group"] == key]) for key in found]


def _group(key: str, figures: pd.DataFrame) -> Group:
    for group in GROUPS:
        if group.key == key:
            return group
    added = group_of(figures.loc[figures["group"] == key, "measure"].iloc[0])
    assert added is not None  # it was grouped by this
    return added


def _build(group: Group, figures: pd.DataFrame) -> ResultTable:
    measured, published = figures[~figures["published"]], figures[figures["published"]]
    columns = _columns(measured)
    models = list(dict.fromkeys(measured["model"]))
    by_place = _by_place(measured)
    ranks = [
        _ranks(group, [by_place.get((model, column)) for model in models]) for column in columns
    ]
    notes: dict[str, str] = {}
    rows = []
    for model in models:
        cells = []
        for column, ranked in zip(columns, ranks, strict=True):
            cell = _cell(by_place.get((model, column)), ranked, notes)
            other = dataclasses.replace(column, split="val" if column.split == "test" else "test")
            if cell.figure is None and (model, other) in by_place:
                cell = Cell(note=_mark(notes, f"Evaluated on {other.split} only.", numbered=True))
            cells.append(cell)
        rows.append(Row(model, tuple(cells)))
    for (source, model), own in published.groupby(["source", "model"], sort=False):
        by_place = _by_place(own)
        found = [
            by_place.get((model, column))
            or by_place.get((model, dataclasses.replace(column, split="")))
            for column in columns
        ]
        if any(found):
            mark = _mark(notes, f"Published, not measured here: {source}.", numbered=False)
            row_cells = tuple(_cell(figure, {}, notes) for figure in found)
            rows.append(Row(str(model), row_cells, published=True, note=mark))
    return ResultTable(group, tuple(columns), tuple(rows), notes)


def _by_place(figures: pd.DataFrame) -> dict[tuple[Any, Column], dict[str, Any]]:
    return {
        (figure["model"], _column(figure["task"], figure["split"], figure["measure"])): figure
        for figure in figures.to_dict("records")
    }


def _column(task: str, split: str, measure: str) -> Column:
    return Column(task, split, measure, measure_detail(measure))


def _columns(measured: pd.DataFrame) -> list[Column]:
    columns = []
    for task, figures in measured.groupby("task", sort=False):
        split = "test" if (figures["split"] == "test").any() else "val"
        names = list(dict.fromkeys(figures.loc[figures["split"] == split, "measure"]))
        largest = max((k_of(name) or 0 for name in names), default=0)
        columns += [
            _column(str(task), split, name) for name in names if (k_of(name) or 0) == largest
        ]
    return columns


def _ranks(group: Group, figures: list[dict[str, Any] | None]) -> dict[float, int]:
    """Ranks of the best two figures of a column, by their values; of one model alone none."""
    means = [
        figure["mean"]
        for figure in figures
        if figure
        and not math.isnan(figure["mean"])
        and not (group.key == "cka" and figure["mean"] >= ITSELF)
    ]
    best = sorted(set(means), reverse=True)[:2]
    return {mean: rank for rank, mean in enumerate(best, 1)} if len(means) > 1 else {}


def _cell(figure: dict[str, Any] | None, ranks: dict[float, int], notes: dict[str, str]) -> Cell:
    if figure is None:
        return Cell()
    if math.isnan(figure["mean"]):
        mark = _mark(notes, f"Undefined: {figure['undefined']}.", numbered=True)
        return Cell(UNDEFINED, note=mark, figure=figure)
    spread = ""
    if figure["stdev"] > 0:
        spread = f"± {figure['stdev']:.3f}"
    elif not math.isnan(figure["low"]):
        spread = f"{figure['low']:.3f} to {figure['high']:.3f}"
    return Cell(f"{figure['mean']:.3f}", spread, ranks.get(figure["mean"]), figure=figure)


def _mark(notes: dict[str, str], text: str, numbered: bool) -> str:
    """The mark of a footnote, which is added where it is not there yet."""
    for mark, known in notes.items():
        if known == text:
            return mark
    n_alike = sum(mark.isdecimal() == numbered for mark in notes)
    mark = str(n_alike + 1) if numbered else _MARKS[n_alike % len(_MARKS)]
    notes[mark] = text
    return mark
