"""Numbers as people read them."""

from __future__ import annotations

from g2l_plugin.reporting.significance import Difference
from g2l_plugin.reporting.table import NOT_RUN, ResultTable


def count(number: int, what: str) -> str:
    """A number of things: `1 model`, `6 models`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def runs_of(table: ResultTable) -> str:
    """How many runs the figures of a table are of; empty where all are of one."""
    runs = [
        int(cell.figure["n_runs"])
        for row in table.rows
        if not row.published
        for cell in row.cells
        if cell.figure
    ]
    least, most = min(runs, default=1), max(runs, default=1)
    if most == 1:
        return ""
    return f"{least} runs each." if least == most else f"{least} to {most} runs each."


def millions(value: int | None) -> str:
    """A number of weights in millions: `303.7`."""
    return NOT_RUN if value is None else f"{value / 1e6:,.1f}"


def giga(value: int | None) -> str:
    """A number of operations in billions, of three digits or more: `164.8`."""
    if value is None:
        return NOT_RUN
    return f"{value / 1e9:,.1f}" if value >= 1e10 else f"{value / 1e9:.3g}"


def gigabytes(value: int | None) -> str:
    """A size in memory in GB, of three digits: `1.23`."""
    return NOT_RUN if value is None else f"{value / 1e9:.3g}"


def speed(value: float) -> str:
    """Tiles per second: `1,234` or `12.3`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def whole(value: int | None) -> str:
    """A whole number that may not be known."""
    return NOT_RUN if value is None else f"{value:,}"


def signed(value: float) -> str:
    """A difference: `+0.0123`, with a minus sign where it is below 0."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def interval_of(difference: Difference) -> str:
    """The interval of a difference: `+0.001 to +0.023`."""
    if difference.interval is None:
        return ""
    return f"{signed(difference.interval.low)} to {signed(difference.interval.high)}"


def count_of_units(difference: Difference) -> str:
    """How many patients, slides or tiles a comparison rests on: `127 patients`."""
    return count(difference.n_units, difference.unit)
