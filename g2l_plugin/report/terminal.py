"""The report as tables on the terminal."""

from __future__ import annotations

import itertools

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from g2l_plugin.report import page
from g2l_plugin.report.comparison import Difference
from g2l_plugin.report.report import Report
from g2l_plugin.report.tables import NOT_RUN, Cell, ResultTable

_STYLES = {1: "bold", 2: "underline"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints the tables, with the best value of a column bold and the second best underlined."""
    console = console or Console(soft_wrap=True)
    for table in report.tables:
        console.print(_results(table))
        for mark, note in table.notes.items():
            console.print(f"{mark} {note}", style="dim", markup=False, highlight=False)
        console.print()
    if any(model.parameters or model.speeds for model in report.models):
        console.print(_sizes(report))
    if report.differences:
        console.print(_differences(report))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _results(table: ResultTable) -> Table:
    printed = _table(table.title)
    printed.add_column("model")
    for column in table.columns:
        printed.add_column(f"{column.task}\n{table.subtitle(column)}", justify="right")
    for row in table.rows:
        style = "italic dim" if row.published else ""
        printed.add_row(
            Text(f"{row.model} {row.note}".strip()),
            *(_cell(cell, row.published) for cell in row.cells),
            style=style,
        )
    return printed


def _cell(cell: Cell, published: bool) -> Text:
    if published and cell.value is None:
        return Text("")
    shown = Text(cell.text, style=_STYLES.get(cell.rank or 0, ""))
    shown.append(f" {cell.note}" if cell.note else "", style="dim")
    shown.append(f"\n{cell.spread}" if cell.spread else "", style="not bold not underline dim")
    return shown


def _sizes(report: Report) -> Table:
    printed = _table("Size and speed")
    printed.add_column("model")
    for name in ("M parameters", "GFLOP per tile", "tiles/s"):
        printed.add_column(name, justify="right")
    printed.add_column("device")
    printed.add_column("peak GB", justify="right")
    for model in report.models:
        size = (Text(model.name), page.millions(model.parameters), page.billions(model.flops))
        for speed in model.speeds:
            rate = page.speed_text(speed)
            peak = page.gigabytes(speed.peak_memory_bytes)
            printed.add_row(*size, rate, Text(speed.device), peak)
        if not model.speeds:
            printed.add_row(*size, NOT_RUN, "", "")
    return printed


def _differences(report: Report) -> Table:
    printed = _table("Differences, with 95 % intervals of a paired bootstrap")
    for name in ("task", "model", "reference"):
        printed.add_column(name)
    printed.add_column("difference", justify="right")
    printed.add_column("units")
    printed.add_column("interval")
    for title, own in itertools.groupby(report.differences, lambda difference: difference.title):
        printed.add_row(Text(title, style="bold"))
        for difference in own:
            printed.add_row(
                Text(difference.column.task),
                Text(difference.model),
                Text(difference.reference),
                *_outcome(difference),
            )
    return printed


def _outcome(difference: Difference) -> tuple[str, str, str]:
    if difference.interval is None:
        return NOT_RUN, "", escape(difference.problem)
    return (
        f"{page.signed(difference.interval.value)}\n[dim]{page.interval_of(difference)}[/dim]",
        page.count_of_units(difference),
        "excludes 0" if difference.is_significant else "includes 0",
    )
