"""All that a report says, before it is written down."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Iterator, Sequence

import pandas as pd

from g2l_plugin.reporting.figures import pool_figures
from g2l_plugin.reporting.models import Model, describe_models
from g2l_plugin.reporting.names import CKA, HEAD, KNN, LOGISTIC
from g2l_plugin.reporting.panels import Plot
from g2l_plugin.reporting.plots import plot_cka, plot_index, plot_quality
from g2l_plugin.reporting.reference import published_figures
from g2l_plugin.reporting.scatter import plot_embeddings
from g2l_plugin.reporting.sessions import Session, read_sessions
from g2l_plugin.reporting.significance import Difference, compare_models
from g2l_plugin.reporting.table import ResultTable, build_tables

_PACKAGES = {
    "g2l_plugin": "g2l-plugin",
    "eva": "kaiko-eva",
    "torch": "torch",
    "timm": "timm",
}
_QUALITY = (HEAD, LOGISTIC, KNN)
"""Groups of which the first one that there is is plotted against size and speed."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        date: When it was made.
        versions: Versions of the packages that made it.
        sessions: The sessions.
        models: The models, in the order of the sessions.
        figures: All figures; see `pool_figures`.
        tables: The tables, one a group of measures.
        differences: Comparisons of models.
        plots: The plots.
    """

    date: str
    versions: dict[str, str]
    sessions: list[Session]
    models: list[Model]
    figures: pd.DataFrame
    tables: list[ResultTable]
    differences: list[Difference]
    plots: list[Plot]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the sessions."""
        return list(dict.fromkeys(session.task for session in self.sessions))


def build_report(
    results: Sequence[str], reference: str | None = None, published: bool = True
) -> Report:
    """Reads sessions and makes tables, comparisons and plots of them.

    Args:
        results: Folders of sessions, or above them; see `read_sessions`.
        reference: The model that the others are compared with; None takes the best of each task.
        published: Whether to put published figures beside the measured ones.

    Raises:
        UserError: The results cannot be read, or no result is of the reference.
    """
    sessions = read_sessions(results)
    models = describe_models(sessions)
    figures = pool_figures(sessions)
    if published:
        figures = pd.concat([figures, published_figures(figures)], ignore_index=True)
    tables = build_tables(figures)
    return Report(
        date=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        versions={name: _version(package) for name, package in _PACKAGES.items()},
        sessions=sessions,
        models=models,
        figures=figures,
        tables=tables,
        differences=compare_models(tables, sessions, reference),
        plots=list(_plots(sessions, models, figures, tables)),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _plots(
    sessions: list[Session],
    models: list[Model],
    figures: pd.DataFrame,
    tables: list[ResultTable],
) -> Iterator[Plot]:
    names = [model.name for model in models]
    by_key = {table.group.key: table for table in tables}
    quality = next((by_key[group.key] for group in _QUALITY if group.key in by_key), None)
    if quality:
        yield from plot_quality(quality, models)
    for table in tables:
        if table.group.neutral is not None and (plot := plot_index(table, figures, names)):
            yield plot
    if CKA.key in by_key and (plot := plot_cka(by_key[CKA.key], names)):
        yield plot
    splits = {column.task: column.split for table in tables for column in table.columns}
    yield from plot_embeddings(sessions, splits)
