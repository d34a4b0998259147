"""`g2l report`: the report as a folder, and as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from g2l_plugin.errors import UserError
from g2l_plugin.files import new_folder
from g2l_plugin.reporting.figures import COLUMNS
from g2l_plugin.reporting.page import GENERATOR, PLOTS, render_markdown, render_page
from g2l_plugin.reporting.report import Report, build_report
from g2l_plugin.reporting.significance import Difference
from g2l_plugin.reporting.svg import on_white

PAGE = "report.html"
"""Name of the page in the folder of a report."""

_FILES = (PAGE, "report.md", "report.csv", "differences.csv", PLOTS)
_COLUMNS = (
    "task",
    "split",
    "measure",
    "model",
    "reference",
    "difference",
    "low",
    "high",
    "excludes_0",
    "n_tiles",
    "n_units",
    "unit",
    "not_compared",
)


def write_report(
    results: Sequence[str],
    output: Path,
    reference: str | None = None,
    published: bool = True,
) -> Report:
    """Makes a report and writes it: report.html, report.md, report.csv, differences.csv, plots.

    Args:
        results: Folders of sessions, or above them; `LABEL=PATH` names the model.
        output: Folder to write; a report that stands there is replaced when the new one is
            complete.
        reference: The model that the others are compared with; None takes the best of each task.
        published: Whether to put published figures beside the measured ones.

    Raises:
        UserError: The results cannot be read, or the folder holds something else.
    """
    output = output.expanduser()
    _check_place(output)
    report = build_report(results, reference, published)
    with new_folder(output) as folder:
        (folder / PAGE).write_text(render_page(report), encoding="utf-8")
        (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
        figures = report.figures[list(COLUMNS)].astype({"n_runs": "Int64"})
        figures.to_csv(folder / "report.csv", index=False)
        _tabulate(report.differences).to_csv(folder / "differences.csv", index=False)
        (folder / PLOTS).mkdir()
        for plot in report.plots:
            (folder / PLOTS / f"{plot.name}.svg").write_text(on_white(plot.svg), encoding="utf-8")
    return report


def _check_place(folder: Path) -> None:
    """Raises where something would be replaced that is no report."""
    if folder.is_dir():
        files = [path.name for path in folder.iterdir()]
        page = folder / PAGE
        is_report = (
            set(files) <= set(_FILES)
            and page.is_file()
            and f'content="{GENERATOR}"' in page.read_text(encoding="utf-8", errors="replace")
            and all(path.suffix == ".svg" for path in folder.glob(f"{PLOTS}/*"))
        )
        if not files or is_report:
            return
    elif not folder.exists():
        return
    raise UserError(
        f"{folder} holds other files than a report, and is not replaced. Give a folder that does "
        "not exist yet (g2l report RESULTS --output DIR)."
    )


def _tabulate(differences: Sequence[Difference]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (
                difference.column.task,
                difference.column.split,
                difference.column.measure,
                difference.model,
                difference.reference,
                *_numbers(difference),
                difference.n_tiles,
                difference.n_units,
                difference.unit,
                difference.problem,
            )
            for difference in differences
        ],
        columns=_COLUMNS,
    )


def _numbers(difference: Difference) -> tuple[float | bool | None, ...]:
    interval = difference.interval
    if interval is None:
        return None, None, None, None
    return interval.value, interval.low, interval.high, difference.is_told
