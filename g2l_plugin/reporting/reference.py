"""Published figures of other models, as rows beside measured ones."""

from __future__ import annotations

import functools
import importlib.resources
import math

import pandas as pd

from g2l_plugin.reporting.figures import TYPES
from g2l_plugin.reporting.names import task_key

_FILES = (
    ("g2l_plugin.publishing", "published.csv"),
    ("g2l_plugin.reporting", "paper.csv"),
    ("g2l_plugin.reporting", "leaderboard.csv"),
)
_MEASURES = {
    "balanced accuracy": ("MulticlassAccuracy", "BinaryBalancedAccuracy"),
    "Dice": ("MonaiDiceScore",),
    "kNN accuracy": ("KNNAccuracy",),
    "linear CKA": ("LinearCKA",),
    "linear probe AUC": ("LogisticAUROC",),
}
_INDEX = "robustness index "


def published_figures(figures: pd.DataFrame) -> pd.DataFrame:
    """Finds published figures of the tasks and measures of a report.

    Args:
        figures: Measured figures, as `pool_figures` gives them.

    Returns:
        Rows of the same columns. `split` is empty where the publication does not name it: it
        matches both.
    """
    measured = figures[figures["group"].notna()].drop_duplicates(["task", "split", "measure"])
    rows = []
    for column in measured.itertuples():
        for found in _published().itertuples():
            if (
                found.key == task_key(column.task)
                and column.measure in found.measures
                and found.split in ("", column.split)
            ):
                rows.append(
                    {
                        "model": found.model,
                        "task": column.task,
                        "split": found.split,
                        "measure": column.measure,
                        "mean": found.value,
                        "stdev": math.nan,
                        "low": math.nan,
                        "high": math.nan,
                        "published": True,
                        "source": found.source,
                        "group": column.group,
                    }
                )
    return pd.DataFrame(rows, columns=figures.columns).drop_duplicates().astype(TYPES)


@functools.cache
def _published() -> pd.DataFrame:
    tables = []
    for package, name in _FILES:
        with (importlib.resources.files(package) / name).open(encoding="utf-8") as file:
            tables.append(pd.read_csv(file, dtype={"split": str}))
    table = pd.concat(tables, ignore_index=True)
    table["split"] = table["split"].fillna("")
    table["key"] = [task_key(task) for task in table["task"]]
    table["measures"] = [_measures(name) for name in table["measure"]]
    return table


def _measures(name: str) -> tuple[str, ...]:
    if name.startswith(_INDEX):
        return (f"RobustnessIndex/{name.removeprefix(_INDEX)}",)
    return _MEASURES[name]
