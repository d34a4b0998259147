"""A report as one HTML page, and as Markdown."""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe

from g2l_plugin.reporting import text
from g2l_plugin.reporting.panels import looks_of
from g2l_plugin.reporting.report import Report
from g2l_plugin.reporting.scatter import EMBEDDINGS_CAPTION
from g2l_plugin.reporting.significance import Difference
from g2l_plugin.reporting.svg import in_page
from g2l_plugin.reporting.table import UNDEFINED, Cell

GENERATOR = "g2l report"
"""What the page names as its maker: the mark of a folder that may be replaced."""

PLOTS = "plots"
"""Name of the folder of the plots, beside the page."""

_RANKS = {1: "best", 2: "second"}
_FOREST = 150
"""Width of the drawing of an interval, in pixels."""


def render_page(report: Report) -> str:
    """Writes a report as HTML that loads nothing."""
    return _template("page.html.jinja", autoescape=True).render(
        **_context(report),
        cell_class=_cell_class,
        looks=looks_of([model.name for model in report.models]),
        forest=_Forest(report.differences),
        svg=lambda plot: markupsafe.Markup(in_page(plot.svg)),
    )


def render_markdown(report: Report) -> str:
    """Writes a report as Markdown, with the plots beside it in `plots/`."""
    template = _template("report.md.jinja", autoescape=False)
    return template.render(
        **_context(report), escape=_escape_markdown, markdown_cell=_markdown_cell
    )


def _template(name: str, autoescape: bool) -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = importlib.resources.files("g2l_plugin.reporting") / name
    return environment.from_string(source.read_text(encoding="utf-8"))


def _context(report: Report) -> dict[str, Any]:
    embeddings = [plot for plot in report.plots if plot.name.startswith("embeddings")]
    return {
        "report": report,
        "generator": GENERATOR,
        "plots_folder": PLOTS,
        "text": text,
        "count": text.count,
        "runs_of": text.runs_of,
        "by_name": {model.name: model for model in report.models},
        "curves": [plot for plot in report.plots if plot not in embeddings],
        "embeddings": embeddings,
        "embeddings_caption": EMBEDDINGS_CAPTION,
        "comparisons": _by_column(report.differences),
        "has_sizes": any(model.parameters or model.flops for model in report.models),
        "has_speeds": any(model.speeds for model in report.models),
        "devices": sorted({s.device for model in report.models for s in model.speeds}),
    }


def _by_column(differences: Sequence[Difference]) -> list[list[Difference]]:
    def key(difference: Difference) -> tuple[Any, ...]:
        return difference.column, difference.reference

    return [list(own) for _, own in itertools.groupby(differences, key)]


def _cell_class(cell: Cell) -> str:
    if cell.text == UNDEFINED:
        return "undefined"
    if cell.figure is None:
        return "none"
    return _RANKS.get(cell.rank or 0, "")


def _markdown_cell(cell: Cell, published: bool) -> str:
    if cell.figure is None:
        return "" if published else f"{cell.text} {cell.note}".strip()
    marked = {1: f"**{cell.text}**", 2: f"<ins>{cell.text}</ins>"}.get(cell.rank or 0, cell.text)
    shown = f"*{cell.text}*" if published else marked
    spread = f"({cell.spread})" if " to " in cell.spread else cell.spread
    return " ".join(part for part in (shown, spread, cell.note) if part)


def _escape_markdown(value: str) -> str:
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


class _Forest:
    """Draws intervals of differences to one scale, 0 in the middle."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        ends = [
            abs(end)
            for difference in differences
            if difference.interval
            for end in (difference.interval.low, difference.interval.high)
        ]
        self.reach = max(ends, default=0) or 1.0

    def __call__(self, difference: Difference) -> dict[str, float]:
        """Places of the interval's ends and middle on a line of `width` pixels."""
        assert difference.interval is not None  # the template asks for no other
        middle = _FOREST / 2

        def place(value: float) -> float:
            return round(middle + value / self.reach * (middle - 5), 1)

        interval = difference.interval
        return {
            "width": _FOREST,
            "zero": middle,
            "low": place(interval.low),
            "value": place(interval.value),
            "high": place(interval.high),
        }
