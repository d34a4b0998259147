"""The report as an HTML page and as Markdown, with numbers formatted for people."""

from __future__ import annotations

import importlib.resources
import itertools
import math
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe

from g2l_plugin.metrics.bootstrap import Interval
from g2l_plugin.report.comparison import Difference
from g2l_plugin.report.embedding_plots import EMBEDDINGS_CAPTION
from g2l_plugin.report.models import Speed
from g2l_plugin.report.svg import in_page, looks_of
from g2l_plugin.report.tables import NOT_RUN, UNDEFINED, Cell, ResultTable

if TYPE_CHECKING:
    from g2l_plugin.report.report import Report

GENERATOR = "g2l report"
"""Generator that the page names; it marks a folder that may be replaced."""

PLOTS = "plots"
"""Name of the folder of the plots, next to the page."""

_RANKS = {1: "best", 2: "second"}
_INTERVAL_WIDTH = 150
"""Width of a drawn interval, in pixels."""


def render_page(report: Report, folder: Path) -> str:
    """Renders a report as an HTML page that loads nothing, with links to the results.

    Args:
        report: The report.
        folder: Its folder, which the links to results start from.
    """

    def link(file: Path) -> str:
        """Relative address of a file or folder."""
        relative = os.path.relpath(file.resolve(), folder.resolve())
        return urllib.parse.quote(Path(relative).as_posix())

    return _template("page.html.jinja", autoescape=True).render(
        **_context(report),
        link=link,
        cell_class=_cell_class,
        files_of=_files_of,
        looks=looks_of([model.name for model in report.models]),
        drawn_interval=_IntervalScale(report.differences),
        svg=lambda plot: markupsafe.Markup(in_page(plot.svg)),
    )


def render_markdown(report: Report) -> str:
    """Renders a report as Markdown that refers to the files in `plots/`."""
    return _template("report.md.jinja", autoescape=False).render(
        **_context(report), escape=_escape_markdown, markdown_cell=_markdown_cell
    )


def count(number: int, what: str) -> str:
    """A number of things: `1 model`, `6 models`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def count_of_units(difference: Difference) -> str:
    """The number of patients, slides or tiles that were compared: `127 patients`."""
    return count(difference.n_units, difference.unit)


def count_of_runs(table: ResultTable) -> str:
    """How many runs the values of a table come from; empty if each is from one run."""
    runs = [
        int(cell.value["n_runs"])
        for row in table.rows
        if not row.published
        for cell in row.cells
        if cell.value
    ]
    least, most = min(runs, default=1), max(runs, default=1)
    if most == 1:
        return ""
    return f"{least} runs each." if least == most else f"{least} to {most} runs each."


def millions(value: int | None) -> str:
    """A number of parameters in millions: `303.7`."""
    return NOT_RUN if value is None else f"{value / 1e6:,.1f}"


def billions(value: int | None) -> str:
    """A number of operations in billions, with at least three digits: `164.8`."""
    if value is None:
        return NOT_RUN
    return f"{value / 1e9:,.1f}" if value >= 1e10 else f"{value / 1e9:.3g}"


def gigabytes(value: int | None) -> str:
    """An amount of memory in GB, with three digits: `1.23`."""
    return NOT_RUN if value is None else f"{value / 1e9:.3g}"


def rate(value: float) -> str:
    """Tiles per second: `1,234` or `12.3`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def speed_text(speed: Speed) -> str:
    """Tiles per second, and in brackets the middle half of the rounds: `1,234 (1,200-1,250)`."""
    middle = rate(speed.tiles_per_second)
    if speed.middle_half is None:
        return middle
    low, high = map(rate, speed.middle_half)
    return f"{middle} ({low}-{high})"


def integer(value: int | None) -> str:
    """An integer that may be unknown."""
    return NOT_RUN if value is None else f"{value:,}"


def signed(value: float) -> str:
    """A difference: `+0.0123`, or with a minus sign."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def interval_of(difference: Difference) -> str:
    """The interval of a difference: `+0.001 to +0.023`."""
    if difference.interval is None:
        return ""
    return f"{signed(difference.interval.low)} to {signed(difference.interval.high)}"


def ends_of(interval: Interval) -> str:
    """The ends of an interval of ranks: `1.3 to 2.6`; empty if it has none."""
    return "" if math.isnan(interval.low) else f"{interval.low:.1f} to {interval.high:.1f}"


_FORMATTERS = (
    ends_of,
    count,
    count_of_units,
    count_of_runs,
    millions,
    billions,
    gigabytes,
    rate,
    speed_text,
    integer,
    signed,
    interval_of,
)


def _template(name: str, autoescape: bool) -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {function.__name__: function for function in _FORMATTERS}
    source = importlib.resources.files("g2l_plugin.report") / name
    return environment.from_string(source.read_text(encoding="utf-8"))


def _context(report: Report) -> dict[str, Any]:
    embeddings = [plot for plot in report.plots if plot.name.startswith("embeddings")]
    return {
        "report": report,
        "generator": GENERATOR,
        "plots_folder": PLOTS,
        "not_run": NOT_RUN,
        "by_name": {model.name: model for model in report.models},
        "metric_plots": [plot for plot in report.plots if plot not in embeddings],
        "embeddings": embeddings,
        "embeddings_caption": EMBEDDINGS_CAPTION,
        "overview": report.overview,
        "overview_about": report.overview and report.overview.about,
        "frontier": {True: "on it", False: "", None: "cost not known"},
        "comparisons": _by_column(report.differences),
        "has_sizes": any(model.parameters or model.flops for model in report.models),
        "has_speeds": any(model.speeds for model in report.models),
        "has_trained_on": bool(report.values["n_trained_on"].gt(0).any()),
        "speed_about": _explain_speeds([own for model in report.models for own in model.speeds]),
    }


def _explain_speeds(speeds: Sequence[Speed]) -> str:
    """How speeds were measured, in a few sentences."""
    said = "Speed is that of the network alone, with tiles already in memory."
    if any(speed.middle_half for speed in speeds):
        return (
            f"{said} The models took turns in one process; the fastest of the batches tried, with "
            "the middle half of the rounds."
        )
    devices = sorted({speed.device for speed in speeds})
    if len(devices) > 1:
        said += (
            f" Speeds were measured on {' and '.join(devices)}; speeds on different devices are "
            "not comparable."
        )
    if speeds:
        said += (
            " Each session has timed its own model, under the load of its time: to compare models, "
            "time them in turns (`g2l speed`, then `g2l report --speed`)."
        )
    return said


def _by_column(differences: Sequence[Difference]) -> list[list[Difference]]:
    def key(difference: Difference) -> tuple[Any, ...]:
        return difference.column, difference.reference

    return [list(own) for _, own in itertools.groupby(differences, key)]


def _cell_class(cell: Cell) -> str:
    if cell.text == UNDEFINED:
        return "undefined"
    if cell.value is None:
        return "none"
    return _RANKS.get(cell.rank or 0, "")


def _files_of(cell: Cell) -> tuple[Path, ...]:
    """The files of a value; empty if it is a published one."""
    is_own = cell.value is not None and not cell.value["published"]
    return cell.value["files"] if cell.value and is_own else ()


def _markdown_cell(cell: Cell, published: bool) -> str:
    if cell.value is None:
        return "" if published else f"{cell.text} {cell.note}".strip()
    marked = {1: f"**{cell.text}**", 2: f"<ins>{cell.text}</ins>"}.get(cell.rank or 0, cell.text)
    shown = f"*{cell.text}*" if published else marked
    spread = f"({cell.spread})" if " to " in cell.spread else cell.spread
    return " ".join(part for part in (shown, spread, cell.note) if part)


def _escape_markdown(value: str) -> str:
    """Makes a label plain text in Markdown: no link, code, emphasis, tag or further line."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", " ".join(value.split())).replace("<", "&lt;")


class _IntervalScale:
    """Scales the intervals of all differences to one axis, with 0 in the middle."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        ends = [
            abs(end)
            for difference in differences
            if difference.interval
            for end in (difference.interval.low, difference.interval.high)
        ]
        self._reach = max(ends, default=0) or 1.0

    def __call__(self, difference: Difference) -> dict[str, float]:
        """Positions, in pixels, of the interval's ends and value on a line of `width` pixels."""
        interval = difference.interval
        assert interval is not None  # the template draws no other
        middle = _INTERVAL_WIDTH / 2

        def place(value: float) -> float:
            return round(middle + value / self._reach * (middle - 5), 1)

        places = {name: place(getattr(interval, name)) for name in ("low", "value", "high")}
        return {"width": _INTERVAL_WIDTH, "zero": middle} | places
