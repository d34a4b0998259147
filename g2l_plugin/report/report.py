"""`g2l report`: builds a report from results, and writes it to a folder."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from g2l_plugin.errors import UserError
from g2l_plugin.files import new_folder
from g2l_plugin.metrics.cka import CKA
from g2l_plugin.metrics.knn import KNN
from g2l_plugin.metrics.probe import LOGISTIC
from g2l_plugin.report.comparison import Difference, compare_models
from g2l_plugin.report.embedding_plots import plot_embeddings
from g2l_plugin.report.models import Model, describe_models, read_speeds
from g2l_plugin.report.overview import Overview, build_overview
from g2l_plugin.report.page import GENERATOR, PLOTS, render_markdown, render_page
from g2l_plugin.report.plots import plot_cka, plot_curve, plot_quality
from g2l_plugin.report.sessions import Session, read_sessions
from g2l_plugin.report.svg import Plot, on_white
from g2l_plugin.report.tables import ResultTable, build_tables
from g2l_plugin.report.values import COLUMNS, HEAD, pool_values, published_values

PAGE = "report.html"
"""Name of the page in the folder of a report."""

_FILES = (PAGE, "report.md", "report.csv", "differences.csv", PLOTS)
_DIFFERENCE_COLUMNS = (
    "task",
    "split",
    "metric",
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
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell starts with that spreadsheets take for a formula."""

_PACKAGES = {
    "g2l_plugin": "g2l-plugin",
    "eva": "kaiko-eva",
    "torch": "torch",
    "timm": "timm",
}
_QUALITY = (HEAD, LOGISTIC, KNN)
"""The first of these families that has a table is the quality of the overview and the plots."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        date: When it was created.
        versions: Versions of the packages that created it.
        sessions: The sessions.
        models: The models, in the order of the sessions.
        values: All values, with the columns of `pool_values`.
        overview: Quality, robustness, size and speed of each model; None for a single model.
        tables: The tables, one per family of metrics.
        differences: Comparisons of models.
        plots: The plots.
    """

    date: str
    versions: dict[str, str]
    sessions: list[Session]
    models: list[Model]
    values: pd.DataFrame
    overview: Overview | None
    tables: list[ResultTable]
    differences: list[Difference]
    plots: list[Plot]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the sessions."""
        return list(dict.fromkeys(session.task for session in self.sessions))


def write_report(
    results: Sequence[str],
    output: Path,
    reference: str | None = None,
    published: bool = True,
    speeds: Path | None = None,
) -> Report:
    """Builds a report and writes report.html, report.md, report.csv, differences.csv and plots.

    Args:
        results: Session folders, or folders above them; `LABEL=PATH` names the model.
        output: Folder to write. A report that it holds is replaced once the new one is complete.
        reference: The model that others are compared with; None compares with the best of each
            task.
        published: Whether to show published values as well.
        speeds: File of `g2l speed`; None shows the speed that each session has measured.

    Raises:
        UserError: The results or speeds cannot be read, no model of the speeds has results, the
            reference has no result, or the folder holds something else.

    Examples:
        Two sessions as eva leaves them:

        >>> import json
        >>> from pathlib import Path
        >>> from g2l_plugin import write_report
        >>> for model, accuracy in (("teacher", 0.91), ("student", 0.93)):
        ...     session = Path("logs", model)
        ...     session.mkdir(parents=True)
        ...     values = {"test/MulticlassAccuracy": {"values": [accuracy]}}
        ...     results = {"metrics": {"val": [], "test": [values]}}
        ...     _ = (session / "results.json").write_text(json.dumps(results))
        ...     config = "trainer: {init_args: {default_root_dir: logs/bach}}"
        ...     _ = (session / "config.yaml").write_text(config)
        >>> report = write_report(["teacher=logs/teacher", "student=logs/student"], Path("report"))
        >>> [table.title for table in report.tables]
        ["eva's head, balanced accuracy"]
        >>> sorted(path.name for path in Path("report").iterdir())
        ['differences.csv', 'plots', 'report.csv', 'report.html', 'report.md']
    """
    output = output.expanduser()
    _check_replaceable(output)
    report = build_report(results, reference, published, speeds)
    with new_folder(output) as folder:
        (folder / PAGE).write_text(render_page(report, output), encoding="utf-8")
        (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
        values = report.values[list(COLUMNS)].astype({"n_runs": "Int64", "n_trained_on": "Int64"})
        _without_formulas(values).to_csv(folder / "report.csv", index=False)
        differences = _tabulate(report.differences)
        _without_formulas(differences).to_csv(folder / "differences.csv", index=False)
        (folder / PLOTS).mkdir()
        for plot in report.plots:
            (folder / PLOTS / f"{plot.name}.svg").write_text(on_white(plot.svg), encoding="utf-8")
    return report


def build_report(
    results: Sequence[str],
    reference: str | None = None,
    published: bool = True,
    speeds: Path | None = None,
) -> Report:
    """Builds a report; see `write_report`."""
    sessions = read_sessions(results)
    models = describe_models(sessions, read_speeds(speeds) if speeds else None)
    if speeds and not any(model.speeds for model in models):
        raise UserError(
            f"None of the models of {speeds} has results here: their weights differ. Time the "
            f"models of the report: {', '.join(model.name for model in models)}."
        )
    values = pool_values(sessions)
    if published:
        values = pd.concat([values, published_values(values)], ignore_index=True)
    tables = build_tables(values)
    return Report(
        date=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        versions={name: _version(package) for name, package in _PACKAGES.items()},
        sessions=sessions,
        models=models,
        values=values,
        overview=build_overview(tables, models, _QUALITY),
        tables=tables,
        differences=compare_models(tables, sessions, reference),
        plots=list(_plots(sessions, models, values, tables)),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _plots(
    sessions: list[Session],
    models: list[Model],
    values: pd.DataFrame,
    tables: list[ResultTable],
) -> Iterator[Plot]:
    names = [model.name for model in models]
    by_family = {table.family: table for table in tables}
    quality = next((by_family[family] for family in _QUALITY if family in by_family), None)
    if quality:
        yield from plot_quality(quality, models)
    for table in tables:
        if table.family.curve and (plot := plot_curve(table, values, names)):
            yield plot
    if CKA in by_family and (plot := plot_cka(by_family[CKA], names)):
        yield plot
    splits = {column.task: column.split for table in tables for column in table.columns}
    yield from plot_embeddings(sessions, splits)


def _check_replaceable(folder: Path) -> None:
    """Raises if the folder holds anything that is not a report."""
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


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Marks texts that a spreadsheet would run as formulas: labels come from anyone's folders."""
    texts = table.select_dtypes(exclude="number")
    return table.assign(**{str(name): column.map(_as_text) for name, column in texts.items()})


def _as_text(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _tabulate(differences: Sequence[Difference]) -> pd.DataFrame:
    rows = []
    for difference in differences:
        interval = difference.interval
        rows.append(
            (
                difference.column.task,
                difference.column.split,
                difference.column.metric,
                difference.model,
                difference.reference,
                interval and interval.value,
                interval and interval.low,
                interval and interval.high,
                interval and difference.is_significant,
                difference.n_tiles,
                difference.n_units,
                difference.unit,
                difference.problem,
            )
        )
    return pd.DataFrame(rows, columns=_DIFFERENCE_COLUMNS)
